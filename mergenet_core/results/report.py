"""The report of a job: what each arm reached, how it differs from the control, and the verdict on the transfer."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mergenet_core.planning.auto_methods import validation_metric
from mergenet_core.records.job import Trial, TrialResult
from mergenet_core.records.record import Record
from mergenet_core.results.selection import picked

Verdict = Literal["gain", "no gain shown", "harm", "one seed"]


class Difference(Record):
    """Paired differences between two arms, in the metric's own unit, seed by seed."""

    to: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    mean: float
    low: float | None
    """Lower end of the 95 % t interval of the mean; null for a single seed."""
    high: float | None
    """Upper end of the same interval."""


class ArmReport(Record):
    """One arm over its seeds, on the test split; fractions, not percent."""

    arm: str
    seeds: tuple[int, ...]
    last: tuple[float, ...]
    """Test metric of the last step's weights, one value per seed."""
    best: tuple[float, ...]
    """Test metric of the weights that were best on validation."""
    mean: float
    """Of `last`."""
    sd: float | None
    """Sample standard deviation of `last`; null for a single seed."""
    step_seconds: float
    """Median over the seeds of a training step's median time."""
    seconds: float
    """Mean over the seeds of all training time, with what had to come first, such as a teacher's."""
    memory_bytes: int | None = None
    """The largest memory of a process of any of its trials."""
    difference: Difference | None
    """To the control; null for the control itself."""
    picked: tuple[str, ...] = ()
    """Method `auto`: the trial that was picked at each seed."""


@dataclass(frozen=True)
class _Done:
    """An arm's trial with its result."""

    trial: Trial
    result: TrialResult


class Report(Record):
    """All arms, and the verdict on the transfer."""

    job: str
    name: str
    metric: str
    steps: int
    arms: tuple[ArmReport, ...]
    strategy: str | None = None
    """How a trial's model was spread over its processes."""
    estimated_bytes: int | None = None
    """The plan's estimate of a process's memory."""
    verdict: Verdict
    sentence: str
    """The verdict with its numbers."""
    chosen: str
    """The trial whose weights are in the artifact: of the arm in question, the seed that is best on validation."""

    transferred: bool
    """Whether these weights learned from the source; with method `auto` they may be the control's."""

    def arm(self, name: str) -> ArmReport | None:
        """The arm of that name."""
        return next((arm for arm in self.arms if arm.arm == name), None)


def build_report(job_id: str, name: str, trials: Sequence[Trial], estimated_bytes: int | None = None) -> Report:
    """Compare the arms of a job whose trials have all succeeded."""
    done = [_Done(trial, trial.result) for trial in trials if trial.kind == "arm" and trial.result is not None]
    picks = picked([one.trial for one in done]) if any(trial.candidate for trial in trials) else {}
    arms: dict[str, dict[int, _Done]] = {}
    if picks:
        by_id = {one.trial.id: one for one in done}
        arms["transfer"] = {seed: by_id[trial.id] for seed, trial in picks.items()}
    for one in done:
        candidate = one.trial.candidate
        row = str(one.trial.arm) if candidate is None else f"{one.trial.arm} by {candidate.name}"
        arms.setdefault(row, {})[one.trial.seed] = one
    wanted = "transfer" if "transfer" in arms else "transfer+distill"
    results = {arm: {seed: one.result for seed, one in by_seed.items()} for arm, by_seed in arms.items()}
    reports = tuple(_arm(arm, by_seed, results["control"]) for arm, by_seed in results.items())
    if picks:
        reports = (_of_picks(reports[0], picks, done), *reports[1:])
    gain = next(arm.difference for arm in reports if arm.arm == wanted)
    assert gain is not None
    verdict, first = _verdict(gain), done[0].result
    transfers = {seed: one.result for seed, one in arms[wanted].items() if one.trial.arm == wanted}
    chosen = max(arms[wanted].values(), key=lambda one: validation_metric(one.trial)).trial
    return Report(
        job=job_id,
        name=name,
        metric=first.metric,
        steps=first.steps,
        arms=reports,
        strategy=first.strategy,
        estimated_bytes=estimated_bytes,
        verdict=verdict,
        sentence=_candidates_sentence(picks) + _sentence(wanted, gain, verdict, first.metric, results, transfers),
        chosen=chosen.id,
        transferred=chosen.arm == wanted,
    )


def difference(arm: dict[int, float], other: dict[int, float], to: str) -> Difference:
    """Paired differences over the seeds that both have, with the 95 % t interval of their mean."""
    from scipy import stats  # only where a report is made: the API reads reports without it

    seeds = tuple(sorted(set(arm) & set(other)))
    values = tuple(arm[seed] - other[seed] for seed in seeds)
    mean = sum(values) / len(values)
    if len(values) < 2:
        return Difference(to=to, seeds=seeds, values=values, mean=mean, low=None, high=None)
    half = float(stats.t.ppf(0.975, len(values) - 1)) * _sd(values) / math.sqrt(len(values))
    return Difference(to=to, seeds=seeds, values=values, mean=mean, low=mean - half, high=mean + half)


def markdown(report: Report) -> str:
    """The arms' table and the verdict, in points (hundredths of the metric)."""
    lines = [
        f"| arm | test {report.metric} | best on validation | Δ to control, points | step, ms | training, s |",
        "|---|---|---|---|---|---|",
    ]
    for arm in report.arms:
        best = sum(arm.best) / len(arm.best)
        cells = [arm.arm, _plus_minus(arm.mean, arm.sd), f"{100 * best:.2f}", _interval(arm.difference)]
        cells += [f"{1000 * arm.step_seconds:.0f}", f"{arm.seconds:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"**{report.verdict}**: {report.sentence}"]
    held = memory_sentence(report)
    return "\n".join([*lines, "", held] if held else lines)


def memory_sentence(report: Report) -> str:
    """The measured memory of a process, and the estimate of the plan; empty where it was not measured."""
    held = max((arm.memory_bytes for arm in report.arms if arm.memory_bytes), default=None)
    if held is None:
        return ""
    estimate = "" if report.estimated_bytes is None else f"; the estimate was {report.estimated_bytes / 1e9:.2f} GB"
    return f"A process held at most {held / 1e9:.2f} GB ({report.strategy}){estimate}."


def _arm(name: str, by_seed: dict[int, TrialResult], control: dict[int, TrialResult]) -> ArmReport:
    results = [by_seed[seed] for seed in sorted(by_seed)]
    last = tuple(result.last["test"] for result in results)
    totals = [result.cost.train_seconds + result.cost.extra_seconds for result in results]
    return ArmReport(
        arm=name,
        seeds=tuple(sorted(by_seed)),
        last=last,
        best=tuple(result.best.get("test", result.last["test"]) for result in results),
        mean=sum(last) / len(last),
        sd=_sd(last) if len(last) > 1 else None,
        step_seconds=statistics.median(result.cost.step_seconds for result in results),
        seconds=sum(totals) / len(totals),
        memory_bytes=max((result.memory_bytes for result in results if result.memory_bytes), default=None),
        difference=None if name == "control" else difference(_test(by_seed), _test(control), "control"),
    )


def _of_picks(arm: ArmReport, picks: dict[int, Trial], done: Sequence[_Done]) -> ArmReport:
    """The arm that method `auto` delivers; its cost is that of everything that was tried."""
    tried = [one.result.cost for one in done if one.trial.arm in ("control", "transfer")]
    seconds = sum(cost.train_seconds + cost.extra_seconds for cost in tried) / len(picks)
    return arm.model_copy(update={"picked": tuple(trial.id for trial in picks.values()), "seconds": seconds})


def _candidates_sentence(picks: dict[int, Trial]) -> str:
    """How often method `auto` took which candidate."""
    if not picks:
        return ""
    counts = Counter("no transfer" if trial.candidate is None else trial.candidate.name for trial in picks.values())
    return (
        f"auto took {', '.join(f'{name} at {count}' for name, count in counts.most_common())} of {len(picks)} seeds; "
    )


def _sentence(
    wanted: str,
    gain: Difference,
    verdict: Verdict,
    metric: str,
    results: dict[str, dict[int, TrialResult]],
    transfers: dict[int, TrialResult],
) -> str:
    """The verdict in words; the sham is compared at the seeds where a transfer was taken, with the same candidate."""
    count = len(gain.seeds)
    sentence = f"{wanted} changes test {metric} by {_interval(gain)} points against its control"
    if verdict == "one seed":
        return f"{sentence} at one seed; one seed shows no spread, run at least five for a claim."
    sentence += f" over {count} paired seeds (95 % interval)"
    if "sham" not in results:
        return f"{sentence}; no sham arm was run, so where it comes from is open."
    if not transfers:
        return f"{sentence}; no transfer was taken."
    sham = difference(_test(transfers), _test(results["sham"]), "sham")
    if sham.low is None:
        return f"{sentence}; its sham was compared at one seed, which shows no spread."
    sentence += ";" if len(transfers) == count else f"; at the {len(transfers)} seeds where a transfer was taken"
    if sham.low > 0:
        return f"{sentence} it is {_interval(sham)} points ahead of its sham, so the source's knowledge matters."
    return f"{sentence} a source with shuffled weights does as well, so it is not the source's knowledge."


def _verdict(gained: Difference) -> Verdict:
    if gained.low is None or gained.high is None:
        return "one seed"
    if gained.low > 0:
        return "gain"
    return "harm" if gained.high < 0 else "no gain shown"


def _test(by_seed: dict[int, TrialResult]) -> dict[int, float]:
    return {seed: result.last["test"] for seed, result in by_seed.items()}


def _sd(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _plus_minus(mean: float, sd: float | None) -> str:
    return f"{100 * mean:.2f}" + ("" if sd is None else f" ± {100 * sd:.2f}")


def _interval(gained: Difference | None) -> str:
    if gained is None:
        return "–"
    mean = f"{100 * gained.mean:+.2f}"
    return (
        mean
        if gained.low is None or gained.high is None
        else (f"{mean} [{100 * gained.low:+.2f}, {100 * gained.high:+.2f}]")
    )
