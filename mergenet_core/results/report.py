"""The report of a job: what each arm reached, how it differs from the control, and the verdict on the transfer."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mergenet_core.records.job import Trial, TrialResult
from mergenet_core.records.record import Record
from mergenet_core.records.validation import validation_metric
from mergenet_core.results.baselines import Baseline, collect_baselines
from mergenet_core.results.comparisons import (
    Comparison,
    Difference,
    compare,
    difference,
    holm,
    p_text,
    points,
    standard_deviation,
)
from mergenet_core.results.costs import equal_steps, source_seconds, training_seconds
from mergenet_core.results.selection import delivery, picked
from mergenet_core.results.verdict import TRIED, Verdict, judge
from mergenet_core.spec.job import DISTILL_SHAM, SHAMS, Deliver


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
    """Mean over the seeds of the target's training time, with what had to come first, such as a teacher or a fit."""
    source_seconds: float = 0.0
    """Time of the source's training, where the job trains the source and the arm uses it; whole for each seed."""
    memory_bytes: int | None = None
    """The largest memory of a process of any of its trials."""
    difference: Difference | None
    """To the control; null for the control itself."""
    picked: tuple[str, ...] = ()
    """Method `auto`: the trial that was picked at each seed."""

    @property
    def total_seconds(self) -> float:
        """What one model of this arm costs, with everything that was trained for it."""
        return self.seconds + self.source_seconds


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
    comparisons: tuple[Comparison, ...] = ()
    """What the report tests: arms against the control, and the transfer against its shams."""
    baselines: tuple[Baseline, ...] = ()
    """Trivial models fitted to the same labelled examples; no comparison has them."""
    equal_steps: int | None = None
    """Steps that the control would take in the total time of the arm in question."""
    strategy: str | None = None
    """How a trial's model was spread over its processes."""
    estimated_bytes: int | None = None
    """The plan's estimate of a process's memory."""
    verdict: Verdict
    sentence: str
    """The verdict with its numbers."""
    chosen: str
    """The trial whose weights are in the artifact: of the delivered arm, the seed that is best on validation."""

    transferred: bool
    """Whether these weights learned from the source; else they are the control's."""
    reason: str = ""
    """Why the control's model is delivered; empty where the transfer's is."""

    def arm(self, name: str) -> ArmReport | None:
        """The arm of that name."""
        return next((arm for arm in self.arms if arm.arm == name), None)


def build_report(
    job_id: str,
    name: str,
    trials: Sequence[Trial],
    estimated_bytes: int | None = None,
    deliver: Deliver = "auto",
) -> Report:
    """Compare the arms of a job whose trials have all succeeded; `deliver` is `transfer.deliver` of its document."""
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
    source = next((trial for trial in trials if trial.kind == "source"), None)
    reports = tuple(_arm(arm, by_seed, results["control"], source) for arm, by_seed in results.items())
    if picks:
        reports = (_of_picks(reports[0], picks, done), *reports[1:])
    claims = [report for report in reports if report.arm in {one.trial.arm for one in done}]
    comparisons = _comparisons(claims, {arm: _test(by_seed) for arm, by_seed in results.items()}, _tried(done))
    first = done[0].result
    judgement = judge(wanted, comparisons, first.metric)
    taken, controls = ([one.trial for one in arms[arm].values()] for arm in (wanted, "control"))
    delivered = delivery(taken, controls, harms=judgement.verdict == "harm", deliver=deliver)
    return Report(
        job=job_id,
        name=name,
        metric=first.metric,
        steps=first.steps,
        arms=reports,
        comparisons=comparisons,
        baselines=collect_baselines([one.trial for one in done], _test(results["control"])),
        equal_steps=equal_steps(
            next(report for report in reports if report.arm == wanted).total_seconds, list(results["control"].values())
        ),
        strategy=first.strategy,
        estimated_bytes=estimated_bytes,
        verdict=judgement.verdict,
        sentence=_candidates_sentence(picks) + judgement.sentence,
        chosen=delivered.trial.id,
        transferred=delivered.trial.arm == wanted,
        reason=delivered.reason,
    )


def markdown(report: Report) -> str:
    """The arms' table and the verdict, in points (hundredths of the metric)."""
    lines = [
        f"| arm | test {report.metric} | best on validation | Δ to control, points | step, ms | training, s "
        "| total, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in report.arms:
        best = sum(arm.best) / len(arm.best)
        cells = [arm.arm, _plus_minus(arm.mean, arm.sd), f"{100 * best:.2f}", points(arm.difference)]
        cells += [f"{1000 * arm.step_seconds:.0f}", f"{arm.seconds:.1f}", f"{arm.total_seconds:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    for baseline in report.baselines:
        cells = [f"*{baseline.title}*", _plus_minus(baseline.mean, baseline.sd), "–", points(baseline.difference)]
        lines.append("| " + " | ".join([*cells, "–", "–", "–"]) + " |")
    lines += ["", f"**{report.verdict}**: {report.sentence}"]
    if note := baselines_note(report):
        lines += ["", note]
    if report.comparisons:
        lines += [
            "",
            "| comparison | difference, points [95 % interval] | seeds | p | p, Holm |",
            "|---|---|---|---|---|",
        ]
    for one in report.comparisons:
        cells = [f"{one.arm} against {one.difference.to}", points(one.difference), str(len(one.difference.seeds))]
        lines.append("| " + " | ".join([*cells, p_text(one.p), p_text(one.p_holm)]) + " |")
    if note := comparisons_note(report):
        lines += ["", note]
    lines += ["", delivery_sentence(report)]
    for sentence in (cost_sentence(report), memory_sentence(report)):
        lines += ["", sentence] if sentence else []
    return "\n".join(lines)


def baselines_note(report: Report) -> str:
    """What the baselines are, and which of them the arm in question does not reach; empty where there are none."""
    wanted = report.arm("transfer") or report.arm("transfer+distill")
    if not report.baselines or wanted is None:
        return ""
    note = "Rows without times are baselines, fitted to the same labelled examples and not among the comparisons."
    ahead = [f"{one.title}, at {100 * one.mean:.2f}" for one in report.baselines if one.mean > wanted.mean]
    return f"{note} Ahead of {wanted.arm} ({100 * wanted.mean:.2f}): {'; '.join(ahead)}." if ahead else note


def cost_sentence(report: Report) -> str:
    """The steps that the control takes in the arm's total time; empty where it is not known."""
    wanted, control = report.arm("transfer") or report.arm("transfer+distill"), report.arm("control")
    if report.equal_steps is None or wanted is None or control is None:
        return ""
    source = " with the source's training" if wanted.source_seconds else ""
    return (
        f"At equal training time: in the {wanted.total_seconds:.1f} s of {wanted.arm}{source} the control takes "
        f"{report.equal_steps:,} steps, where it took {report.steps:,}."
    )


def delivery_sentence(report: Report) -> str:
    """Which model the job delivers, and why if it is the control's."""
    if report.transferred:
        return f"Delivered: the model of {report.chosen}."
    return f"Delivered: the control's model, {report.chosen}; {report.reason}."


def comparisons_note(report: Report) -> str:
    """How the comparisons were tested; empty where nothing could be, at a single seed."""
    count = sum(one.p is not None for one in report.comparisons)
    if not count:
        return ""
    tested = f"p: paired t tests, then corrected for the number of this report's comparisons, {count} (Holm)."
    if any(one.arm == TRIED for one in report.comparisons):
        tested += f" *{TRIED}*: at each seed the transfer that is best on validation, delivered or not."
    return tested


def memory_sentence(report: Report) -> str:
    """The measured memory of a process, and the estimate of the plan; empty where it was not measured."""
    held = max((arm.memory_bytes for arm in report.arms if arm.memory_bytes), default=None)
    if held is None:
        return ""
    estimate = "" if report.estimated_bytes is None else f"; the estimate was {report.estimated_bytes / 1e9:.2f} GB"
    return f"A process held at most {held / 1e9:.2f} GB ({report.strategy}){estimate}."


def _arm(
    name: str, by_seed: dict[int, TrialResult], control: dict[int, TrialResult], source: Trial | None
) -> ArmReport:
    results = [by_seed[seed] for seed in sorted(by_seed)]
    last = tuple(result.last["test"] for result in results)
    return ArmReport(
        arm=name,
        seeds=tuple(sorted(by_seed)),
        last=last,
        best=tuple(result.best.get("test", result.last["test"]) for result in results),
        mean=sum(last) / len(last),
        sd=standard_deviation(last) if len(last) > 1 else None,
        step_seconds=statistics.median(result.cost.step_seconds for result in results),
        seconds=training_seconds(result.cost for result in results) / len(results),
        source_seconds=source_seconds(name, results, source),
        memory_bytes=max((result.memory_bytes for result in results if result.memory_bytes), default=None),
        difference=None if name == "control" else difference(_test(by_seed), _test(control), "control"),
    )


def _of_picks(arm: ArmReport, picks: dict[int, Trial], done: Sequence[_Done]) -> ArmReport:
    """The arm that method `auto` delivers; its cost is that of everything that was tried."""
    tried = [one.result.cost for one in done if one.trial.arm in ("control", "transfer")]
    seconds = training_seconds(tried) / len(picks)
    return arm.model_copy(update={"picked": tuple(trial.id for trial in picks.values()), "seconds": seconds})


def _candidates_sentence(picks: dict[int, Trial]) -> str:
    """How often method `auto` took which candidate."""
    if not picks:
        return ""
    counts = Counter("no transfer" if trial.candidate is None else trial.candidate.name for trial in picks.values())
    return (
        f"auto took {', '.join(f'{name} at {count}' for name, count in counts.most_common())} of {len(picks)} seeds; "
    )


def _tried(done: Sequence[_Done]) -> dict[int, float]:
    """Method `auto`: the test metric at each seed of the transfer that is best on validation; its sham repeats it."""
    tried: dict[int, list[_Done]] = {}
    for one in done:
        if one.trial.candidate is not None:
            tried.setdefault(one.trial.seed, []).append(one)
    best = {seed: max(ones, key=lambda one: validation_metric(one.trial)) for seed, ones in tried.items()}
    return {seed: one.result.last["test"] for seed, one in best.items()}


def _comparisons(
    claims: Sequence[ArmReport], test: dict[str, dict[int, float]], tried: dict[int, float]
) -> tuple[Comparison, ...]:
    """Every arm against the control, transfer and distillation against their shams, and what one adds to the other.

    A sham against the control, and a single candidate of `auto`, are shown in the table of arms and are no claims.
    """
    found = [
        compare(report.arm, report.difference)
        for report in claims
        if report.difference is not None and report.arm not in (*SHAMS, DISTILL_SHAM)
    ]
    if "transfer" in test:
        name, transfers = (TRIED, tried) if tried else ("transfer", test["transfer"])
        found += [compare(name, difference(transfers, test[sham], sham)) for sham in SHAMS if sham in test]
    pairs = [("distill", DISTILL_SHAM), ("transfer+distill", DISTILL_SHAM), ("transfer+distill", "distill")]
    found += [
        compare(one, difference(test[one], test[other], other)) for one, other in pairs if {one, other} <= set(test)
    ]
    return holm(found)


def _test(by_seed: dict[int, TrialResult]) -> dict[int, float]:
    return {seed: result.last["test"] for seed, result in by_seed.items()}


def _plus_minus(mean: float, sd: float | None) -> str:
    return f"{100 * mean:.2f}" + ("" if sd is None else f" ± {100 * sd:.2f}")
