"""Makes the plan of a job: its trials, its pairing and an estimate, before anything is downloaded, queued or trained.

It runs where the API runs. It reads configs, safetensors headers and the first bytes of data files, never weights.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mergenet_core.errors import FieldError, MergeNetError
from mergenet_core.model_files.model_info import ModelInfo
from mergenet_core.pairing.pair import Pairing, pair
from mergenet_core.pairing.rank import limit_rank
from mergenet_core.planning.auto_methods import candidates
from mergenet_core.planning.checks import check_copy, check_distillation, check_trajectory
from mergenet_core.planning.data_checks import check_data
from mergenet_core.planning.estimate import estimate
from mergenet_core.planning.job_models import UnknownModel, source_info, source_pack, target_info, with_data_labels
from mergenet_core.planning.placement import (
    check_devices,
    check_machine,
    choose_strategy,
    required_bytes,
    suitable,
)
from mergenet_core.planning.plan import Estimate, Plan, Strategy
from mergenet_core.planning.trials import trials
from mergenet_core.records.job import Candidate
from mergenet_core.records.workers import WorkerInfo
from mergenet_core.spec.deepspeed import check_user_config
from mergenet_core.spec.job import JobSpec
from mergenet_core.storage.paths import Roots

_FIELD = re.compile(r"(?:source|target|transfer|train|resources|retention)(?:\.\w+)+")


def make_plan(spec: JobSpec, roots: Roots, home: Path, workers: Sequence[WorkerInfo]) -> Plan:
    """Check everything that can be checked without loading a model, and lay out the trials.

    Raises: `PathRefused`, `ModelRefused`, `DataRefused`, `PairingRefused`, `SpecInvalid`, `TooLarge`, each naming the
    field and what to change.
    """
    with _point_at_field():
        check_data(spec.target.data, spec.target.task, roots, "target.data")
        if spec.source.data is not None:
            check_data(spec.source.data, spec.source_task, roots, "source.data")
        models = source_info(spec, roots), target_info(spec, roots)
        notes = [model.note for model in models if isinstance(model, UnknownModel)]
        source, target = (None if isinstance(model, UnknownModel) else model for model in models)
        check_distillation(spec, source, target)
        pairings = _pairings(spec, source, target, roots)
        laid_out = trials(spec, tuple(pairings))
        check_user_config(spec.resources.deepspeed)
        if spec.resources.nodes == 1:
            check_devices(spec.resources.devices, workers)
        found = estimate(
            spec, source, target, [one for one in pairings.values() if one], sum(one.kind == "arm" for one in laid_out)
        )
        strategy = choose_strategy(found, spec, workers)
        needed = found.under(strategy)
        if needed is not None:
            found = found.model_copy(update={"memory_bytes": required_bytes(needed, spec.resources, workers)})
        notes += check_machine(found, strategy, spec, home, workers)
        notes += _strategy_notes(found, strategy, spec, workers)
        pairing = next(iter(pairings.values()))
        return Plan(
            trials=laid_out,
            pairing=pairing and pairing.brief(),
            estimate=found,
            strategy=strategy,
            notes=tuple(notes),
        )


def _pairings(
    spec: JobSpec, source: ModelInfo | None, target: ModelInfo | None, roots: Roots
) -> dict[Candidate, Pairing | None]:
    """What each candidate pairs, the preferred one first; None where a model's shapes are not known yet.

    A method that is named in the document is its only candidate.
    """
    transfer = spec.transfer
    only = Candidate(method=transfer.method, include=transfer.include)
    if source is None or target is None:
        return {only: None}
    source, target = with_data_labels(spec, source, target)
    pack, rank = source_pack(spec, roots), spec.source.rank
    if pack is not None:
        check_trajectory(spec, pack)
        rank = pack.rank
    if transfer.method == "auto":
        found = candidates(source, target, transfer, may_fit=spec.may_fit)
        check_copy(spec, found)
    else:
        found = {only: pair(source, target, transfer)}
    return {candidate: limit_rank(one, rank, transfer.rank) for candidate, one in found.items()}


def _strategy_notes(found: Estimate, strategy: Strategy, spec: JobSpec, workers: Sequence[WorkerInfo]) -> list[str]:
    """Why `auto` became the strategy."""
    if spec.resources.strategy != "auto" or strategy == "single":
        return []
    unknown = found.under(strategy) is None or not suitable(spec.resources, workers)
    because = "no machine or no shape is known, and it needs least" if unknown else "by the estimate"
    return [f"resources.strategy auto is {strategy}: {because}"]


@contextlib.contextmanager
def _point_at_field() -> Iterator[None]:
    """Add a pointer to the field with which an error's message begins."""
    try:
        yield
    except MergeNetError as error:
        if not error.errors and (field := _FIELD.match(error.message)):
            error.errors = (FieldError("/" + field[0].replace(".", "/"), error.message),)
        raise
