"""The stage loss of method `fit`: the target's activations stay near the source's while the target trains.

Legend: b inputs of a batch, t tokens, c channels, h height, w width, n positions of all inputs that are not padding,
s and t channels or units of source and target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mergenet_core.fitting.context import Boundary, Chunk
from mergenet_core.pairing.result import Pairing
from mergenet_core.tasks.task import Batch, Examples, Task
from mergenet_core.training.distributed.world import World

_ENTRIES = ("mean", "map", "offset")


@dataclass(frozen=True)
class StageSource:
    """A frozen source and its inputs, in the order in which the target's task has them."""

    model: nn.Module
    task: Task
    examples: Examples
    world: World

    def batch(self, index_b: Tensor) -> Batch:
        """The source's inputs with these indices, on the process's device."""
        read = self.examples.batch(index_b).items()
        return {name: X.to(self.world.device) for name, X in read if name not in self.task.targets}

    @torch.no_grad()
    def run(self, batch: Batch) -> None:
        """A forward pass of the source."""
        with self.world.accelerator.autocast():
            self.model(**batch)


@dataclass
class Stages:
    """The boundaries of a fitted target in training."""

    source: StageSource
    boundaries: Sequence[Boundary]
    energies: Tensor
    """Of each boundary; see `stage_energies`."""
    weight: float
    batch_size: int
    """Inputs of a step, over all devices and micro-batches."""
    _kept: dict[str, Tensor] = field(default_factory=dict)

    @property
    def watched(self) -> bool:
        """Whether the target has read inputs of which the loss was not taken yet."""
        return bool(self._kept)

    @contextmanager
    def watch(self, target: nn.Module) -> Iterator[None]:
        """Keep what the target's modules at the boundaries compute inside of the context."""
        with kept_outputs(target, [boundary.target for boundary in self.boundaries], self._kept):
            yield

    def loss(self, index_b: Tensor) -> Tensor:
        """The weighted stage loss of the inputs that the target read last; padding does not count.

        Equation: Σ over boundaries of ‖T − z‖² / (b · energy), with T the target's activations and z the source's,
        mapped to the target's units. The energy is the same in every batch, so that losses of parts of a batch average
        to that of the whole.
        """
        read = self.source.batch(index_b)
        outputs: dict[str, Tensor] = {}
        with kept_outputs(self.source.model, [boundary.source for boundary in self.boundaries], outputs):
            self.source.run(read)
        total = torch.zeros((), device=self.source.world.device)
        for boundary, energy in zip(self.boundaries, self.energies, strict=True):
            own = self._kept[boundary.target].float()
            z_nt, T_nt = _kept_rows(read, own, wanted(boundary, outputs[boundary.source].float(), own), as_rows(own))
            apart_nt = (T_nt - z_nt)[:, boundary.map_st.any(0)]  # of a unit without a map nothing is wanted
            total = total + apart_nt.square().sum() / (len(index_b) * energy)
        self._kept.clear()
        return self.weight * total


@dataclass(frozen=True)
class Fitted:
    """A target that began from a fit."""

    pairing: Pairing
    boundaries: Sequence[Boundary]
    seconds: float
    """What the fit took, over all attempts."""
    stages: Stages | None
    """None where the job leaves the stage loss out."""


def wanted(boundary: Boundary, h: Tensor, own: Tensor) -> Tensor:
    """The source's activations mapped to the target's units, one row for each of the target's positions.

    Shapes: h (b, s), (b, t, s) or (b, s, h, w), own alike with the target's units → (n, t).
    """
    if h.ndim == 4 and h.shape[2:] != own.shape[2:]:
        h = torch.nn.functional.adaptive_avg_pool2d(h, (own.shape[2], own.shape[3]))
    return (as_rows(h) - boundary.mean_s) @ boundary.map_st + boundary.offset_t


def stage_energies(
    source: StageSource,
    target: nn.Module,
    boundaries: Sequence[Boundary],
    chunks: Sequence[Chunk],
    sum_: Callable[[Tensor], Tensor],
) -> Tensor:
    """Of each boundary, the mean over inputs of ‖z − offset‖², with z the source's activations in the target's units.

    Shapes: (boundaries).
    """
    sums = torch.zeros(len(boundaries) + 1, dtype=torch.float64, device=source.world.device)
    for chunk in chunks:
        own: dict[str, Tensor] = {}
        other: dict[str, Tensor] = {}
        with (
            torch.no_grad(),
            kept_outputs(target, [one.target for one in boundaries], own),
            kept_outputs(source.model, [one.source for one in boundaries], other),
        ):
            target(**chunk.target)
            source.model(**chunk.source)
        sums[-1] += len(next(iter(chunk.target.values())))
        for number, one in enumerate(boundaries):
            z_nt, _ = _kept_rows(chunk.source, own[one.target], wanted(one, other[one.source], own[one.target]))
            sums[number] += (z_nt - one.offset_t).double().square().sum()
    sum_(sums)
    return (sums[:-1] / sums[-1].clamp_min(1)).clamp_min(1e-12).float()


def _kept_rows(read: Batch, own: Tensor, z_nt: Tensor, T_nt: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The rows that are not padding."""
    T_nt = z_nt if T_nt is None else T_nt
    mask = read.get("attention_mask")
    if mask is None or mask.shape != own.shape[:-1]:
        return z_nt, T_nt
    kept_n = mask.flatten().bool()
    return z_nt[kept_n], T_nt[kept_n]


def as_rows(X: Tensor) -> Tensor:
    """Activations with one row for each position. Shapes: (b, s), (b, t, s) or (b, s, h, w) → (n, s)."""
    return X.movedim(1, -1).flatten(0, -2) if X.ndim == 4 else X.flatten(0, -2)


def boundary_tensors(boundaries: Sequence[Boundary]) -> dict[str, Tensor]:
    """The tensors of boundaries by number and entry."""
    return {
        f"{number}.{name}": X.detach().cpu().contiguous()
        for number, one in enumerate(boundaries)
        for name, X in zip(_ENTRIES, (one.mean_s, one.map_st, one.offset_t), strict=True)
    }


def save_boundaries(boundaries: Sequence[Boundary], energies: Tensor, path: Path) -> None:
    """Write boundaries into a file, in their order."""
    names = {str(number): f"{one.target} {one.source}" for number, one in enumerate(boundaries)}
    save_file({**boundary_tensors(boundaries), "energies": energies.cpu()}, path, metadata=names)


def read_boundaries(path: Path, device: torch.device) -> tuple[list[Boundary], Tensor]:
    """The boundaries and their energies in a file that `save_boundaries` wrote."""
    found = []
    with safe_open(path, framework="pt") as file:
        names = file.metadata() or {}
        for number in range(len(names)):
            target, source = names[str(number)].split(" ")
            mean, matrix, offset = (file.get_tensor(f"{number}.{entry}").to(device) for entry in _ENTRIES)
            found.append(Boundary(target, source, mean, matrix, offset))
        return found, file.get_tensor("energies").to(device)


@contextmanager
def kept_outputs(model: nn.Module, names: Iterable[str], kept: dict[str, Tensor]) -> Iterator[None]:
    """Put the first output of each named module into `kept` whenever it is computed inside of the context."""

    def keeper(name: str) -> Callable[[nn.Module, object, object], None]:
        def keep(_module: nn.Module, _inputs: object, output: object) -> None:
            first = output[0] if isinstance(output, tuple) else output
            assert isinstance(first, Tensor), f"{name} returns no tensor"
            kept[name] = first

        return keep

    handles = [model.get_submodule(name).register_forward_hook(keeper(name)) for name in set(names)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
