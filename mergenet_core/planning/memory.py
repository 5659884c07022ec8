"""The peak memory of one process under each strategy, from shapes and the job document alone.

N parameters, P processes; a number is 4 bytes, in bf16 2 where the strategy computes with such copies.
`benchmarks/sharding.py` compares it with measured peaks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from mergenet_core.architectures.read_structure import read_structure
from mergenet_core.architectures.structure import ModelStructure
from mergenet_core.model_files.model_info import ModelInfo
from mergenet_core.planning.plan import ProcessMemory, Strategy
from mergenet_core.spec.deepspeed import BUCKET, LIVE
from mergenet_core.spec.job import DataSpec, ResourcesSpec, TrainSpec
from mergenet_core.spec.json_values import JsonObject
from mergenet_core.spec.task_info import TASKS, TaskName

RUNTIME_BYTES = 400_000_000
"""The interpreter and the libraries, in the host's memory."""
DEEPSPEED_BYTES = 90_000_000
"""DeepSpeed's own, in the host's memory too."""
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
_LOGITS = 3
"""Numbers kept for a token and an entry of the vocabulary: logits, their log-probabilities, and their gradient."""
_TAUGHT = 6
"""Numbers that a distillation adds for a token and an entry of the vocabulary: the teacher's logits, both models'
log-probabilities at the temperature, and what the divergence is computed of."""
_LANGUAGE_MODELLING = ("causal-language-modelling", "masked-language-modelling")
_TAKEN = 3
"""Copies of a weight's shard while a transfer or the optimizer changes it."""


@dataclass(frozen=True)
class LearnerSpec:
    """A model that a trial trains, with what it learns from."""

    model: ModelInfo
    task: TaskName
    data: DataSpec
    train: TrainSpec


@dataclass(frozen=True)
class Sizes:
    """Parameter counts of a model that memory depends on."""

    parameters: int
    block: int
    """Parameters of the largest block: what a module list holds one of."""
    rest: int
    """Parameters outside of blocks: embeddings and heads."""
    largest: int
    """Entries of the largest weight."""


def sizes(model: ModelInfo) -> Sizes:
    """A model's numbers, from its shapes."""
    blocks: dict[str, int] = {}
    rest = largest = 0
    for name, shape in model.shapes.items():
        count = math.prod(shape)
        largest = max(largest, count)
        if found := _BLOCK.match(name):
            blocks[found[1]] = blocks.get(found[1], 0) + count
        else:
            rest += count
    return Sizes(sum(blocks.values()) + rest, max(blocks.values(), default=0), rest, largest)


def process_memory(
    strategy: Strategy, learner: LearnerSpec, resources: ResourcesSpec, transfer_bytes: int = 0
) -> ProcessMemory:
    """What a process needs to train a model under a strategy.

    Equation: weights, gradients and k moments are N each, N/P where the strategy cuts them; ZeRO adds single-precision
    copies; FSDP2 and ZeRO-3 add what is gathered. The peak is at a backward pass's beginning (activations) or end
    (whole gradients), in the optimizer's step or in an evaluation.
    """
    model, train, processes = sizes(learner.model), learner.train, resources.devices * resources.nodes
    low = 2 if train.precision == "bf16" else _BYTES
    whole, part = model.parameters, -(-model.parameters // processes)
    moments = (2 if train.optimizer == "adamw" else 1) * _BYTES
    bucket = min(BUCKET, whole)
    reduced_at_once = bucket if model.largest <= BUCKET else 2 * model.largest  # a larger weight goes alone, in a copy
    kept = activations(learner, resources)
    seen = evaluated(learner, resources)
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
        device_bytes=static + max(gathered + kept, gathered + seen, reduced, stepping),
        host_bytes=RUNTIME_BYTES + (DEEPSPEED_BYTES if strategy.startswith("zero") else 0) + best + held_at_host,
        exchanged=_exchanged(strategy, whole, processes, train.micro_batches),
    )


def _exchanged(strategy: Strategy, whole: int, processes: int, micro_batches: int) -> int:
    """Numbers that a process sends in a step, by rings: a reduction or a gathering passes (P − 1)/P of the model."""
    rounds = {"single": 0, "ddp": 2, "zero1": 2, "zero2": 1 + micro_batches, "fsdp2": 3 * micro_batches}
    return rounds.get(strategy, 3 * micro_batches) * whole * (processes - 1) // processes


def activations(learner: LearnerSpec, resources: ResourcesSpec) -> int:
    """Bytes that a micro-batch's forward pass keeps for the backward pass, at the data's full length."""
    train = learner.train
    examples = train.batch_size // (resources.devices * resources.nodes * train.micro_batches)
    example = _example(learner)
    low = 2 if train.precision == "bf16" else _BYTES
    count = sum(example.blocks) + example.outside
    if resources.activation_checkpointing and example.blocks:
        count = max(example.blocks) + example.inputs + example.outside
    # the gradient of a block's outputs is held together with what was kept
    return int(low * examples * (count + max(example.blocks, default=0.0) / _KEPT))


def evaluated(learner: LearnerSpec, resources: ResourcesSpec) -> int:
    """Bytes that a forward pass of an evaluation holds at once: a block's outputs, or a head's."""
    examples = -(-max(EVALUATED, learner.train.batch_size) // (resources.devices * resources.nodes))
    return _forward(learner, examples, 1)


def taught(learner: LearnerSpec, resources: ResourcesSpec) -> int:
    """Bytes that a distillation holds at once of a micro-batch: a teacher's forward pass, and the divergence."""
    examples = learner.train.batch_size // (resources.devices * resources.nodes * learner.train.micro_batches)
    return _forward(learner, examples, _TAUGHT / _LOGITS)


def _forward(learner: LearnerSpec, examples: int, heads: float) -> int:
    """Bytes that a forward pass without a backward pass holds: a block's outputs, or so many times a head's."""
    example = _example(learner)
    low = 2 if learner.train.precision == "bf16" else _BYTES
    return int(low * examples * max(max(example.blocks, default=0.0) / _KEPT, heads * example.outside))


@dataclass(frozen=True)
class _Example:
    """Numbers kept of one example."""

    blocks: tuple[float, ...]
    """In each block, for the backward pass."""
    inputs: float
    """The inputs of all blocks, which checkpointing keeps instead of the blocks' own activations."""
    outside: float
    """Outside of blocks."""


@dataclass(frozen=True)
class _Tower:
    """A model, or one tower of several, as far as activations depend on it."""

    prefix: str
    positions: int
    """Tokens and patches of an example; 1 where a layer sees the example as a whole."""
    width: int
    scored_heads: int
    """Heads whose attention scores are kept: all of them where attention has dropout."""
    vocabulary: int
    """Rows of a head over tokens; 0 without a vocabulary."""
    roles: Mapping[str, str]
    """By the name of the state dict's entry; empty where the family is not known."""
    transposed: frozenset[str]
    """Entries that are stored inputs × outputs."""


def _example(learner: LearnerSpec) -> _Example:
    towers = _towers(learner)
    blocks: dict[str, float] = {}
    inputs: dict[str, int] = {}
    outside = 0.0
    first = 0
    has_token_head = False
    for name, shape in learner.model.shapes.items():
        tower = next((one for one in towers if name.startswith(one.prefix)), towers[0])
        role = tower.roles.get(name, "")
        if len(shape) < 2 or "embed" in name or role.startswith("embeddings."):
            continue
        block, outputs = _BLOCK.match(name), shape[1] if name in tower.transposed else shape[0]
        if len(shape) == 4:
            first = first or outputs
            # where a CNN doubles its channels it halves height and width
            numbers = _KEPT * outputs * learner.data.image_size**2 / max(1.0, (outputs / first) ** 2)
        elif block:
            numbers = float(_KEPT * tower.positions * outputs)
        elif role == "tokens.head.weight" or (not role and outputs == tower.vocabulary):
            has_token_head, numbers = True, float(_LOGITS * tower.positions * outputs)
        else:
            numbers = float(outputs)
        if block is None:
            outside += numbers
            continue
        if block[1] not in blocks:
            inputs[block[1]] = tower.width * tower.positions
        if role == "attention.out.weight" or (not tower.roles and block[1] not in blocks):
            numbers += _SCORES * tower.scored_heads * tower.positions**2
        blocks[block[1]] = blocks.get(block[1], 0.0) + numbers
    if TASKS[learner.task].head_task in _LANGUAGE_MODELLING and not has_token_head:  # the head is the word embedding
        outside += _LOGITS * towers[0].positions * towers[0].vocabulary
    return _Example(tuple(blocks.values()), float(sum(inputs.values())), outside)


def _towers(learner: LearnerSpec) -> list[_Tower]:
    model, data = learner.model, learner.data
    towers = [_known(structure, data) for structure in read_structure(model.shapes, model.config)]
    return towers or [_unknown(model, data)]


def _known(structure: ModelStructure, data: DataSpec) -> _Tower:
    sizes, kind = structure.dimensions, structure.kind
    patches = 1 + math.prod(data.image_size // side for side in sizes.patch)
    stored = [(weight.stored.name if weight.stored else weight.name, weight) for weight in structure.weights]
    return _Tower(
        prefix=f"{structure.tower}." if structure.tower else "",
        positions={"vit": patches, "fusion": data.max_length + patches, "mlp": 1, "cnn": 1}.get(kind, data.max_length),
        width=sizes.width,
        scored_heads=sizes.heads if sizes.attention_dropout > 0 else 0,
        vocabulary=structure.sizes().get("vocabulary", 0),
        roles={name: weight.role for name, weight in stored},
        transposed=frozenset(name for name, weight in stored if weight.stored and weight.stored.transposed),
    )


def _unknown(model: ModelInfo, data: DataSpec) -> _Tower:
    """A model of a family that is not declared, by the names that most configs use."""
    config = model.config
    dropout = (config.get(name) for name in ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop"))
    scored = next((rate for rate in dropout if rate is not None), 0.1) != 0
    reads_text = "vocab_size" in config or model.vocabulary is not None
    rows = _count(config, "vocab_size") if model.vocabulary is None else model.vocabulary.size
    return _Tower(
        prefix="",
        positions=data.max_length if reads_text else 1,
        width=_count(config, "hidden_size"),
        scored_heads=_count(config, "num_attention_heads", "n_head") if scored else 0,
        vocabulary=rows if reads_text else 0,
        roles={},
        transposed=frozenset(),
    )


def _count(config: JsonObject, *names: str) -> int:
    """The first of the entries that is a whole number; 0 where none is."""
    return next((value for value in map(config.get, names) if isinstance(value, int)), 0)
