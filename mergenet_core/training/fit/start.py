"""The start of a training with method `fit`: the target's weights, solved before the first step.

Every process holds both models whole while the fit runs. A fit is published in its trial's folder, and a resumed trial
reads it from there. A fit that was interrupted goes on behind the last part that was published.
"""

from __future__ import annotations

import shutil
import time

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mergenet_core.architectures.read_structure import read_structure
from mergenet_core.errors import DataRefused
from mergenet_core.fitting.context import Boundary, Chunk, FitContext, FitModel
from mergenet_core.fitting.fit import fit
from mergenet_core.models.describe import model_info
from mergenet_core.pairing.pair import pair
from mergenet_core.records.provenance import Provenance
from mergenet_core.spec.transfer import FitSpec
from mergenet_core.storage.published_folder import read_manifest, verifies
from mergenet_core.tasks.task import Task, pool_of
from mergenet_core.training.context import TrialContext
from mergenet_core.training.distributed.shared_folder import publishing_together
from mergenet_core.training.fit.refine import refine
from mergenet_core.training.fit.source_model import open_source_model
from mergenet_core.training.fit.stages import (
    Fitted,
    Stages,
    StageSource,
    read_boundaries,
    save_boundaries,
    stage_energies,
)
from mergenet_core.training.learners import Learner
from mergenet_core.training.loop import draw_seed, model_inputs
from mergenet_core.training.protocols import REQUESTS, AttemptContext, Interrupted
from mergenet_core.training.sources import frozen_source_info, frozen_source_path, open_source_task

CHUNK, CHUNKS_LEAST = 64, 16
"""The most inputs that are read together, and how many chunks there are even of few inputs, for several processes. What
a chunk holds is the same for any number of processes."""
PUBLISH_SECONDS = 30.0
"""Time between two publications of an unfinished fit."""
_WHOLE, _PARTIAL = "fit", "fit-partial"
_WEIGHTS, _BOUNDARIES = "model.safetensors", "boundaries.safetensors"


class FitStart:
    """Fits a target, or reads its fit where the trial has one already."""

    def __init__(self, context: TrialContext, attempt: AttemptContext | None) -> None:
        self._context, self._attempt = context, attempt
        self._folder = context.folder.trial(context.trial.id)
        self._spec = context.job.transfer.fit or FitSpec()
        self._source: StageSource | None = None
        self._boundaries: list[Boundary] = []
        self._energies = torch.zeros(0)
        self._seconds = 0.0

    def __call__(self, model: nn.Module, task: Task) -> None:
        """Write the target's weights. Raises: `Interrupted`, `ModelRefused`, `DataRefused`, `StorageFull`."""
        context = self._context
        source, columns = open_source_model(context, task.labels)
        source_task = open_source_task(context, frozen_source_path(context))
        self._source = StageSource(source, source_task, pool_of(source_task), context.world)
        done = self._read(_WHOLE, model)
        if done is None:
            self._fit(model, task, columns, self._read(_PARTIAL, model) or 0)
            self._publish(_WHOLE, model, parts=0)
            if context.world.main:
                shutil.rmtree(self._folder / _PARTIAL, ignore_errors=True)
        model.train()

    def fitted(self, target: Learner) -> Fitted:
        """What the training needs to know of the fit, once the target is under its strategy."""
        context = self._context
        assert self._source is not None, "the target is opened with this start"
        info = frozen_source_info(context.job, frozen_source_path(context), context.roots)
        stages = None
        if self._spec.stage_weight:
            stages = Stages(
                self._source, self._boundaries, self._energies, self._spec.stage_weight, context.job.pool_batch_size
            )
        return Fitted(pair(info, target.info, context.job.transfer), self._boundaries, self._seconds, stages)

    def _fit(self, model: nn.Module, task: Task, columns: tuple[int, ...] | None, start: int) -> None:
        assert self._source is not None
        context, source = self._context, self._source
        world = context.world
        model.to(world.device).eval()
        indices = self._chunk_indices(len(source.examples))
        fitting = FitContext(
            source=_as_fit_model(source.model),
            target=_as_fit_model(model),
            chunks=[self._chunk(task, index_b) for index_b in indices[world.world_rank :: world.size]],
            sum_=_sum_over_processes,
            seed=context.trial.seed,
            columns=columns,
        )
        begun = published = time.perf_counter()
        seconds = self._seconds
        for number, solved in enumerate(fit(fitting, start), start):
            now = time.perf_counter()
            self._seconds = seconds + now - begun
            if solved.boundary is not None:
                self._boundaries.append(solved.boundary)
            if self._attempt is not None:
                message = f"fitted {solved.name}: {solved.error:.3f} of the variance is left"
                self._attempt.reporter.event("fit.part", message, part=number + 1, error=solved.error)
            requested = self._requested()
            if requested is not None or world.largest(int(now - published > PUBLISH_SECONDS)):
                self._publish(_PARTIAL, model, parts=number + 1)
                published = now
            if requested == "stop":
                raise Interrupted(f"stopped in the fit, after {solved.name}")
        chunks, sum_ = fitting.chunks, fitting.sum_
        self._energies = stage_energies(source, model, self._boundaries, chunks, sum_)
        if self._spec.steps:
            stages = Stages(source, self._boundaries, self._energies, weight=1.0, batch_size=CHUNK)
            refine(
                model, stages, [(index_b, self._chunk(task, index_b).target) for index_b in indices], self._spec.steps
            )
        self._seconds = seconds + time.perf_counter() - begun

    def _requested(self) -> str | None:
        if self._attempt is None:
            return None
        return REQUESTS[self._context.world.largest(REQUESTS.index(self._attempt.control.requested()))]

    def _chunk_indices(self, inputs: int) -> list[Tensor]:
        """The indices of the inputs in each chunk of all processes. Raises: `DataRefused` if there are too few."""
        generator = torch.Generator().manual_seed(draw_seed(self._context.trial.seed, 0, stream=7))
        drawn = torch.randperm(inputs, generator=generator)[: self._spec.inputs]
        found = list(torch.split(drawn, max(1, min(CHUNK, len(drawn) // CHUNKS_LEAST))))
        if len(found) < self._context.world.size:
            raise DataRefused(
                f"transfer.method fit divides {len(drawn)} inputs among {self._context.world.size} processes; give at "
                "least one for each in target.data.unlabelled, or take fewer devices"
            )
        return found

    def _chunk(self, task: Task, index_b: Tensor) -> Chunk:
        assert self._source is not None
        device = self._context.world.device
        read = {name: X.to(device) for name, X in model_inputs(pool_of(task).batch(index_b), task).items()}
        return Chunk(source=self._source.batch(index_b), target=read)

    def _publish(self, name: str, model: nn.Module, *, parts: int) -> None:
        """Publish the target as it is. Raises: `StorageFull`."""
        number = self._attempt.number if self._attempt is not None else 1
        about: Provenance = {"seconds": self._seconds, "trial": self._context.trial.id}
        world = self._context.world
        with publishing_together(
            world, self._folder / name, kind="checkpoint", step=parts, attempt=number, about=about
        ) as draft:
            if world.main:
                save_file(_stored(model), draft / _WEIGHTS)
                save_boundaries(self._boundaries, self._energies, draft / _BOUNDARIES)

    def _read(self, name: str, model: nn.Module) -> int | None:
        """Load a published fit; return how many parts it has, or None if there is none that verifies."""
        folder, world = self._folder / name, self._context.world
        if not world.from_main(world.main and verifies(folder)):
            return None
        manifest = read_manifest(folder)
        self._seconds = manifest.about["seconds"]
        self._boundaries, self._energies = read_boundaries(folder / _BOUNDARIES, world.device)
        model.load_state_dict(load_file(folder / _WEIGHTS), strict=False)
        return manifest.step


def _as_fit_model(module: nn.Module) -> FitModel:
    info = model_info(module)
    (structure,) = read_structure(info.shapes, info.config)
    return FitModel(module, structure)


def _sum_over_processes(X: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(X)
    return X


def _stored(model: nn.Module) -> dict[str, Tensor]:
    """A model's entries, each stored once even if it has two names."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, W in model.state_dict(keep_vars=True).items():
        found.setdefault(id(W), (name, W.detach().cpu().contiguous()))
    return dict(found.values())
