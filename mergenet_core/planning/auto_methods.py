"""What `transfer.method: auto` tries, and what the validation split then picks: a way to transfer, or none."""

from __future__ import annotations

import math
from collections.abc import Iterable

from mergenet_core.errors import PairingRefused
from mergenet_core.model_files.model_info import ModelInfo
from mergenet_core.pairing.pair import TRIED, Pairing, pair
from mergenet_core.records.job import Job, Trial, Way
from mergenet_core.spec.job import JobSpec, TransferSpec


def ways(source: ModelInfo, target: ModelInfo, transfer: TransferSpec, found: Pairing) -> dict[Way, Pairing]:
    """The ways that a pair allows with what each moves, the one that its anatomy speaks for, `found`, first.

    A way is left out where it is refused, and where it would move what an earlier one of its method moves.
    """
    assert found.kind != "named", "pairs by name go with a method by name"
    tried = {Way(method=found.method, include=transfer.include): found}
    for method, include in TRIED[found.kind]:
        if transfer.include not in ("all", include):
            continue
        settings = transfer.model_copy(update={"method": method, "include": include})
        try:
            paired = pair(source, target, settings)
        except PairingRefused:
            continue
        if (method, _moved(paired)) not in ((way.method, _moved(other)) for way, other in tried.items()):
            tried[Way(method=method, include=include)] = paired
    return tried


def _moved(pairing: Pairing) -> frozenset[str]:
    return frozenset(entry.target for entry in pairing.pairs)


def best(trials: Iterable[Trial]) -> Trial:
    """Of trials with results, the one whose last weights are best on validation; of equals the first."""
    return max(trials, key=_validation)


def preferred(control: Trial, transfers: Iterable[Trial]) -> Trial:
    """The best transfer where it is ahead of the control on validation by more than a standard error, else the control.

    Equation: √(v (1 − v) / n) for a metric v over n examples, which is the most that one between 0 and 1 can have.
    """
    found, metric = best(transfers), _validation(control)
    data = control.result.data.get("validation", {}) if control.result is not None else {}
    error = math.sqrt(metric * (1 - metric) / int(data["examples"])) if 0 < metric < 1 and data else 0.0
    return found if _validation(found) > metric + error else control


def _validation(trial: Trial) -> float:
    return -math.inf if trial.result is None else trial.result.last.get("validation", -math.inf)


def on_its_way(spec: JobSpec, job: Job, trial: Trial) -> JobSpec:
    """The document with `auto` replaced by the trial's own way, or by the one that is best at its seed."""
    tried = [one for one in (job.trial(need) for need in trial.needs) if one.way is not None]
    way = trial.way or (best(tried).way if tried and trial.kind == "arm" else None)
    if way is None:
        return spec
    transfer = spec.transfer.model_copy(update={"method": way.method, "include": way.include})
    return spec.model_copy(update={"transfer": transfer})
