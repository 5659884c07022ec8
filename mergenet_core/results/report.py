"""The job's answer: what each arm reached, how it differs from its control, and what may be said of that."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from mergenet_core.planning.auto_methods import preferred
from mergenet_core.records.job import Trial, TrialResult
from mergenet_core.records.record import Record

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
    """Test metric of the last step's weights, a value a seed."""
    best: tuple[float, ...]
    """Test metric of the weights that were best on validation."""
    mean: float
    """Of `last`."""
    sd: float | None
    """Sample standard deviation of `last`; null for a single seed."""
    step_seconds: float
    """Median over the seeds of a training step's median time."""
    seconds: float
    """Mean over the seeds of all training, what had to come first included."""
    memory_bytes: int | None = None
    """The most that a process of any of its trials held."""
    difference: Difference | None
    """To the control; null for the control itself."""
    picked: tuple[str, ...] = ()
    """`auto`: the trial that each seed's value is of, as validation picked it."""


class Report(Record):
    """Arms side by side, and the verdict on the transfer."""

    job: str
    name: str
    metric: str
    steps: int
    arms: tuple[ArmReport, ...]
    strategy: str | None = None
    """How a trial's model was spread over its processes."""
    estimated_bytes: int | None = None
    """What the plan thought that a process would hold."""
    verdict: Verdict
    sentence: str
    """The verdict with its numbers."""
    chosen: str
    """The trial whose weights are in the artifact: of the arm that was asked for, the seed best on validation."""

    @property
    def transferred(self) -> bool:
        """Whether those weights learned from the source; `auto` may find that the control's are better."""
        return not self.chosen.startswith("control")

    def arm(self, name: str) -> ArmReport | None:
        """The arm of that name."""
        return next((arm for arm in self.arms if arm.arm == name), None)


def build_report(job_id: str, name: str, trials: Sequence[Trial], estimated_bytes: int | None = None) -> Report:
    """Compare the arms of a job whose trials have all succeeded."""
    done = {trial.id: trial for trial in trials if trial.kind == "arm" and trial.result is not None}
    results = {name: trial.result for name, trial in done.items() if trial.result is not None}
    picks = picked(list(done.values())) if any(trial.way for trial in trials) else {}
    arms: dict[str, dict[int, TrialResult]] = {}
    if picks:
        arms["transfer"] = {seed: results[trial.id] for seed, trial in picks.items()}
    for trial in done.values():
        row = str(trial.arm) if trial.way is None else f"{trial.arm} by {trial.way.name}"
        arms.setdefault(row, {})[trial.seed] = results[trial.id]
    asked = "transfer" if "transfer" in arms else "transfer+distill"
    reports = tuple(_arm(arm, by_seed, arms["control"]) for arm, by_seed in arms.items())
    if picks:
        reports = (_of_picks(reports[0], picks, done), *reports[1:])
    gained = next(arm.difference for arm in reports if arm.arm == asked)
    assert gained is not None
    verdict = _verdict(gained)
    taken = {seed: result for seed, result in arms[asked].items() if seed not in picks or picks[seed].way is not None}
    metric = next(iter(results.values()))
    seed = max(arms[asked], key=lambda seed: arms[asked][seed].last.get("validation", -math.inf))
    return Report(
        job=job_id,
        name=name,
        metric=metric.metric,
        steps=metric.steps,
        arms=reports,
        strategy=metric.strategy,
        estimated_bytes=estimated_bytes,
        verdict=verdict,
        sentence=_told(picks) + _sentence(asked, gained, verdict, metric.metric, arms, taken),
        chosen=picks[seed].id if picks else f"{asked}-{seed}",
    )


def picked(trials: Sequence[Trial]) -> dict[int, Trial]:
    """At each seed the transfer that is best on validation, or the control where none is clearly ahead of it."""
    controls = {trial.seed: trial for trial in trials if trial.arm == "control"}
    return {
        seed: preferred(control, [trial for trial in trials if trial.arm == "transfer" and trial.seed == seed])
        for seed, control in sorted(controls.items())
    }


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
    return "\n".join([*lines, *(["", told] if (told := memory(report)) else [])])


def memory(report: Report) -> str:
    """What a process held, beside what the plan thought; empty where it was not measured."""
    held = max((arm.memory_bytes for arm in report.arms if arm.memory_bytes), default=None)
    if held is None:
        return ""
    thought = "" if report.estimated_bytes is None else f"; the estimate was {report.estimated_bytes / 1e9:.2f} GB"
    return f"A process held at most {held / 1e9:.2f} GB ({report.strategy}){thought}."


def _arm(name: str, by_seed: dict[int, TrialResult], control: dict[int, TrialResult]) -> ArmReport:
    results = [by_seed[seed] for seed in sorted(by_seed)]
    last = tuple(result.last["test"] for result in results)
    steps = sorted(result.cost.step_seconds for result in results)
    totals = [result.cost.train_seconds + result.cost.extra_seconds for result in results]
    return ArmReport(
        arm=name,
        seeds=tuple(sorted(by_seed)),
        last=last,
        best=tuple(result.best.get("test", result.last["test"]) for result in results),
        mean=sum(last) / len(last),
        sd=_sd(last) if len(last) > 1 else None,
        step_seconds=steps[len(steps) // 2],
        seconds=sum(totals) / len(totals),
        memory_bytes=max((result.memory_bytes for result in results if result.memory_bytes), default=None),
        difference=None if name == "control" else difference(_test(by_seed), _test(control), "control"),
    )


def _of_picks(arm: ArmReport, picks: dict[int, Trial], done: dict[str, Trial]) -> ArmReport:
    """What `auto` delivers: its cost is that of all that it tried."""
    tried = [trial.result for trial in done.values() if trial.arm in ("control", "transfer")]
    seconds = sum(one.cost.train_seconds + one.cost.extra_seconds for one in tried if one is not None) / len(picks)
    return arm.model_copy(update={"picked": tuple(trial.id for trial in picks.values()), "seconds": seconds})


def _told(picks: dict[int, Trial]) -> str:
    """Which ways `auto` took."""
    if not picks:
        return ""
    counts = Counter("no transfer" if trial.way is None else trial.way.name for trial in picks.values())
    return f"auto took {', '.join(f'{way} at {count}' for way, count in counts.most_common())} of {len(picks)} seeds; "


def _sentence(
    asked: str,
    gained: Difference,
    verdict: Verdict,
    metric: str,
    arms: dict[str, dict[int, TrialResult]],
    taken: dict[int, TrialResult],
) -> str:
    """The verdict in words; the sham is compared where a transfer was taken, which went the same way at that seed."""
    count = len(gained.seeds)
    said = f"{asked} changes test {metric} by {_interval(gained)} points against its control"
    if verdict == "one seed":
        return f"{said} at one seed; one seed shows no spread, run at least five for a claim."
    said += f" over {count} paired seeds (95 % interval)"
    if "sham" not in arms:
        return f"{said}; no sham arm was run, so where it comes from is open."
    if not taken:
        return f"{said}; no transfer was taken."
    sham = difference(_test(taken), _test(arms["sham"]), "sham")
    if sham.low is None:
        return f"{said}; its sham stands beside it at one seed, which shows no spread."
    said += ";" if len(taken) == count else f"; at the {len(taken)} seeds where a transfer was taken"
    if sham.low > 0:
        return f"{said} it is {_interval(sham)} points ahead of its sham, so the source's knowledge matters."
    return f"{said} a source with shuffled weights does as well, so it is not the source's knowledge."


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
