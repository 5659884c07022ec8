"""What one process holds at its fullest moment under each strategy, from shapes and the job document alone.

N parameters, P processes; a number is 4 bytes, in bf16 2 where the strategy computes with such copies. Measured beside
it by `benchmarks/sharding.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mergenet_core.architectures.structure import matrix_shape
from mergenet_core.model_files.model_info import ModelInfo
from mergenet_core.pairing.result import AxisPair, Pairing
from mergenet_core.records.record import Record
from mergenet_core.spec.deepspeed import BUCKET, LIVE
from mergenet_core.spec.job import DataSpec, ResourcesSpec, TrainSpec, TransferSpec

Strategy = Literal["single", "ddp", "fsdp2", "zero1", "zero2", "zero3"]
RUNTIME_BYTES = 400_000_000
"""The interpreter and the libraries, in the host's memory."""
DEEPSPEED_BYTES = 90_000_000
"""DeepSpeed's own, beside that."""
CONTEXT_BYTES = 500_000_000
"""What a GPU's memory holds before any tensor."""
EVALUATED = 128
"""Examples of a forward pass in an evaluation, at least, over all processes."""
_BYTES = 4
_BLOCK = re.compile(r"(.*\.\d+)\.")
_KEPT = 2
"""Of each output of a block's matrices a backward pass needs about two numbers: itself, and what follows from it."""
_SCORES = 2.25
"""Numbers kept for a pair of tokens and a head, where attention drops some: softmax, mask, and both together."""
_WITHOUT_DROPOUT = ("llama", "mistral", "qwen2")
_MAP = 2
"""Numbers kept for an entry of a map between units: its own, and its share of the products with the map."""
_GRAPH = 8
"""Numbers kept for one of a move's factors, r(m + n), while the loss is carried through it."""
_TAKEN = 3
"""Copies of a weight's part while a transfer or the optimizer changes it."""


class ProcessMemory(Record):
    """What a process needs under a strategy, in bytes; on a CPU all of it is the host's memory."""

    strategy: Strategy
    weights: int
    gradients: int
    moments: int
    """The optimizer's state, single-precision copies of the weights included."""
    buffers: int
    """Buckets of exchanges, and blocks that are gathered for a moment."""
    activations: int
    transfer: int
    """The source's factors, the adapter and its optimizer."""
    device_bytes: int
    """At the fullest moment of a step or an evaluation: less than the sum, for not all is there at once."""
    host_bytes: int
    """Runtime, the copy of the weights that were best so far, and what is offloaded."""
    exchanged: int
    """Numbers that a process sends in a step."""

    @property
    def memory_bytes(self) -> int:
        """Device and host together: what a process on a CPU needs."""
        return self.device_bytes + self.host_bytes


@dataclass(frozen=True)
class Sizes:
    """A model as far as memory knows it."""

    parameters: int
    block: int
    """Parameters of the largest block: what a module list holds one of."""
    rest: int
    """Parameters outside of blocks: embeddings and heads."""
    largest: int
    """Entries of the largest weight."""


def sizes(facts: ModelInfo) -> Sizes:
    """A model's numbers, from its shapes."""
    blocks: dict[str, int] = {}
    rest = largest = 0
    for name, shape in facts.shapes.items():
        count = math.prod(shape)
        largest = max(largest, count)
        if found := _BLOCK.match(name):
            blocks[found[1]] = blocks.get(found[1], 0) + count
        else:
            rest += count
    return Sizes(sum(blocks.values()) + rest, max(blocks.values(), default=0), rest, largest)


def process_memory(
    strategy: Strategy,
    target: ModelInfo,
    data: DataSpec,
    train: TrainSpec,
    resources: ResourcesSpec,
    transfer_bytes: int = 0,
) -> ProcessMemory:
    """What a process needs to train a model under a strategy.

    Equation: weights, gradients and k moments are N each, N/P where the strategy cuts them; ZeRO adds single-precision
    copies; FSDP2 and ZeRO-3 add what is gathered. The fullest moment is a backward pass's beginning (activations) or
    end (whole gradients), the optimizer's step or an evaluation.
    """
    model, processes = sizes(target), resources.devices * resources.nodes
    low = 2 if train.precision == "bf16" else _BYTES
    whole, part = model.parameters, -(-model.parameters // processes)
    moments = (2 if train.optimizer == "adamw" else 1) * _BYTES
    bucket = min(BUCKET, whole)
    reduced_at_once = bucket if model.largest <= BUCKET else 2 * model.largest  # a larger weight goes alone, in a copy
    kept = activations(target, data, train, resources)
    looked = evaluated(target, data, train, resources)
    cut = strategy in ("fsdp2", "zero3")
    weights, gradients, masters, gathered, reduced = {
        "single": (_BYTES * whole, _BYTES * whole, 0, 0, 0),
        "ddp": (_BYTES * whole, _BYTES * whole, 0, 0, 0),
        "fsdp2": (
            _BYTES * part,
            _BYTES * part,
            0,
            low * (model.rest + 2 * model.block),
            low * 3 * max(model.rest, model.block),
        ),
        "zero1": (low * whole, low * whole, _BYTES * part, 0, _BYTES * (reduced_at_once + part)),
        "zero2": (low * whole, _BYTES * part, _BYTES * part, 0, _BYTES * (reduced_at_once + part)),
        "zero3": (
            low * part,
            _BYTES * part,
            _BYTES * part,
            low * min(whole, max(LIVE, model.largest) + bucket),
            _BYTES * (part + min(bucket, whole) + model.largest),
        ),
    }[strategy]
    if train.precision == "bf16" and strategy in ("single", "ddp"):
        gathered = low * whole  # the copies that autocast computes with
    stepping = _TAKEN * _BYTES * (model.largest // processes if cut else model.largest)
    held_at_host = 0
    optimizer = moments * (whole if strategy in ("single", "ddp") else part) + masters
    if strategy.startswith("zero") and resources.offload != "none":
        held_at_host += optimizer
    if strategy == "zero3" and resources.offload == "parameters":
        held_at_host += weights
    static = weights + gradients + optimizer - held_at_host + transfer_bytes
    best = _BYTES * (whole if strategy in ("single", "ddp") else part)
    return ProcessMemory(
        strategy=strategy,
        weights=weights,
        gradients=gradients,
        moments=optimizer,
        buffers=max(gathered, reduced),
        activations=kept,
        transfer=transfer_bytes,
        device_bytes=static + max(gathered + kept, gathered + looked, reduced, stepping),
        host_bytes=RUNTIME_BYTES + (DEEPSPEED_BYTES if strategy.startswith("zero") else 0) + best + held_at_host,
        exchanged=_exchanged(strategy, whole, processes, train.micro_batches),
    )


def _exchanged(strategy: Strategy, whole: int, processes: int, micro_batches: int) -> int:
    """Numbers that a process sends in a step, by rings: a reduction or a gathering passes (P − 1)/P of the model."""
    rounds = {"single": 0, "ddp": 2, "zero1": 2, "zero2": 1 + micro_batches, "fsdp2": 3 * micro_batches}
    return rounds.get(strategy, 3 * micro_batches) * whole * (processes - 1) // processes


def activations(model: ModelInfo, data: DataSpec, train: TrainSpec, resources: ResourcesSpec) -> int:
    """Bytes that a micro-batch's forward pass keeps for the backward pass, at the data's full length."""
    examples = train.batch_size // (resources.devices * resources.nodes * train.micro_batches)
    blocks, outside = _per_example(model, data)
    low = 2 if train.precision == "bf16" else _BYTES
    count = sum(blocks) + outside
    if resources.activation_checkpointing and blocks:
        width = int(model.config.get("hidden_size") or 0)
        count = max(blocks) + len(blocks) * width * _positions(model, data) + outside
    # the gradient of a block's outputs is there beside what was kept
    return int(low * examples * (count + max(blocks, default=0.0) / _KEPT))


def evaluated(model: ModelInfo, data: DataSpec, train: TrainSpec, resources: ResourcesSpec) -> int:
    """Bytes that a forward pass of an evaluation holds at once: a block's outputs, or a head's."""
    examples = -(-max(EVALUATED, train.batch_size) // (resources.devices * resources.nodes))
    blocks, outside = _per_example(model, data)
    low = 2 if train.precision == "bf16" else _BYTES
    return int(low * examples * max(max(blocks, default=0.0) / _KEPT, outside))


def _per_example(model: ModelInfo, data: DataSpec) -> tuple[list[float], float]:
    """Numbers kept of an example: in each block, and outside of them."""
    length = _positions(model, data)
    vocabulary = model.vocabulary.size if model.vocabulary is not None else model.config.get("vocab_size")
    blocks: dict[str, float] = {}
    outside = 0.0
    first = 0
    for name, shape in model.shapes.items():
        if len(shape) < 2 or "embed" in name:
            continue
        found = _BLOCK.match(name)
        if len(shape) == 4:
            first = first or shape[0]
            # where a CNN doubles its channels it halves height and width
            numbers = _KEPT * shape[0] * data.image_size**2 / max(1.0, (shape[0] / first) ** 2)
        elif found:
            numbers = float(_KEPT * length * _outputs(shape, model.config))
        else:
            numbers = float(3 * length * shape[0]) if shape[0] == vocabulary else float(shape[0])
        if found:
            blocks[found[1]] = blocks.get(found[1], 0.0) + numbers
        else:
            outside += numbers
    heads = model.config.get("num_attention_heads") or model.config.get("n_head") or 0
    if heads and _drops(model.config):
        blocks = {name: numbers + _SCORES * int(heads) * length**2 for name, numbers in blocks.items()}
    tied = vocabulary is not None and "Causal" in str(model.config.get("architectures"))
    if tied and outside == 0:
        outside = 3.0 * length * int(vocabulary or 0)
    return list(blocks.values()), outside


def _outputs(shape: tuple[int, ...], config: Mapping[str, Any]) -> int:
    return shape[1] if config.get("model_type") == "gpt2" else shape[0]  # GPT-2 keeps inputs × outputs


def _positions(model: ModelInfo, data: DataSpec) -> int:
    """Tokens or patches of an example; 1 where a layer sees it whole."""
    patch = model.config.get("patch_size")
    if isinstance(patch, int):
        words = data.max_length if "vocab_size" in model.config else 0
        return (data.image_size // patch) ** 2 + 1 + words
    return data.max_length if "vocab_size" in model.config or model.vocabulary is not None else 1


def _drops(config: Mapping[str, Any]) -> bool:
    """Whether attention drops scores in training, for which they have to be kept."""
    default = 0.0 if config.get("model_type") in _WITHOUT_DROPOUT else 0.1
    names = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")
    return float(next((config[name] for name in names if config.get(name) is not None), default)) > 0


def transfer_memory(pairing: Pairing, spec: TransferSpec) -> tuple[int, int]:
    """Bytes that a transfer adds to a process, and numbers that the processes exchange in one.

    Equation: factors r(M + N) of the source, r(m + n) once projected; the adapter four times (its gradient and
    moments); for `anchored` the graph of the maps between units and of the moves. Exchanged: lpka r(m + n) for the
    target's factors and as much for their gradient, as a hypernetwork twice as much; anchored the products that it
    needs with the source's factors, and as much again for the gradient.
    """
    if pairing.method == "project":
        return 0, 0
    factors = adapter = exchanged = graph = 0
    maps: dict[str, int] = {}
    for pair in pairing.pairs:
        if pair.rank is None:
            continue
        (m, n), (M, N) = (matrix_shape(shape, pair.form) for shape in (pair.target_shape, pair.source_shape))
        projected = pairing.method == "anchored" and pairing.basis is not None
        factors += pair.rank * (m + n if projected else M + N)
        if pairing.method == "lpka":
            adapter += spec.width * (2 * (m + n) + M + N) + 8 * spec.layers * spec.width**2
            exchanged += (3 if spec.update == "hypernetwork" else 2) * pair.rank * (m + n)
            continue
        adapter += 2 * pair.rank * n
        graph += _GRAPH * pair.rank * (m + n)
        exchanged += 2 * pair.rank * (m + n) + 2 * m
        axis = pair.inp if pair.form == "embedding" else pair.out
        if axis is not None and axis in pairing.axes and not pairing.axes[axis].anchored:
            maps[axis] = _MAP * _map_entries(pairing.axes[axis], projected=projected)
    return _BYTES * (factors + 4 * adapter + graph + sum(maps.values())), exchanged


def _map_entries(axis: AxisPair, *, projected: bool) -> int:
    """Of a map between the units of an axis, or its heads; a projection leaves no more units than the target has."""
    source, target = axis.heads or (axis.shared_size if projected else axis.source_size, axis.target_size)
    return source * target
