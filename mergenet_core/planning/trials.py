"""Lays out the trials of a job."""

from __future__ import annotations

from mergenet_core.records.job import Candidate, Trial
from mergenet_core.spec.job import SHAMS, JobSpec


def trials(spec: JobSpec, candidates: tuple[Candidate, ...] = ()) -> tuple[Trial, ...]:
    """The source's own training if it has one, then every arm at every seed, then the report and the artifact.

    With method `auto` the arm `transfer` is one trial per candidate, and the arms that use the best candidate wait for
    those trials.
    """
    first = (Trial(id="source", kind="source", seed=spec.source.seed),) if spec.source.trained_first else ()
    needs = tuple(trial.id for trial in first)
    arms = [trial for seed in spec.seeds for trial in _arms(spec, seed, needs, candidates)]
    last = Trial(id="finalize", kind="finalize", needs=tuple(trial.id for trial in (*first, *arms)))
    return (*first, *arms, last)


def _arms(spec: JobSpec, seed: int, needs: tuple[str, ...], candidates: tuple[Candidate, ...]) -> list[Trial]:
    tried = candidates if spec.transfer.method == "auto" and "transfer" in spec.arms else ()
    transfers = [
        Trial(id=f"transfer-{seed}-{one.name}", kind="arm", arm="transfer", seed=seed, candidate=one, needs=needs)
        for one in tried
    ]
    found: list[Trial] = []
    for arm in spec.arms:
        if arm == "transfer" and transfers:
            found += transfers
            continue
        waits_for = () if arm == "control" else needs
        if arm in (*SHAMS, "transfer+distill"):
            waits_for += tuple(trial.id for trial in transfers)
        found.append(Trial(id=f"{arm}-{seed}", kind="arm", arm=arm, seed=seed, needs=waits_for))
    return found
