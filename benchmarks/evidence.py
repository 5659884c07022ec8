"""Run settings as jobs of the service and write their results to docs/evidence/.

    python benchmarks/evidence.py [SETTING ...] [--workers 1] [--pages]

A setting is a file in benchmarks/settings, or one of the examples at five seeds. An interrupted job continues from its
checkpoints; of a finished one only the page is written again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import matplotlib
from auto_null import unpaired_lead
from measuring import EVIDENCE, ROOT
from stack import running_service

from mergenet_core.records.events import Event, Progress
from mergenet_core.records.job import TERMINAL, Candidate, Trial, TrialResult
from mergenet_core.records.validation import best_on_validation, validation_metric
from mergenet_core.results.comparisons import Difference, difference, points
from mergenet_core.results.report import Report, build_report, markdown
from mergenet_core.results.selection import picked
from mergenet_core.spec.job import JobSpec
from mergenet_core.spec.parse import parse
from service.client import Client, JobView

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
EXAMPLES = (
    "fashion-unlabelled",
    "fashion-cifar",
    "mobilenet-to-fashion",
    "easy-vqa",
    "stamps-retrieval",
    "bbc-to-wordnet",
    "wordnet-to-bbc",
    "bbc-trajectory",
    "self-transfer",
)
SEEDS = [0, 1, 2, 3, 4]
ARMS = {
    "fashion-unlabelled": [
        "transfer", "control", "sham", "sham-untrained", "distill", "transfer+distill", "distill-sham",
    ],
}  # fmt: skip
"""Examples that are run with more arms."""
SETTINGS = {path.stem: path for path in sorted((HERE / "settings").glob("*.yaml"))} | {
    name: ROOT / "examples" / f"{name}.yaml" for name in EXAMPLES
}

INTRODUCTION = """\
Written by `benchmarks/evidence.py` from jobs of the service. Test scores of the last step's weights (accuracy unless a
page says otherwise): the control's mean, then each arm's paired gain over the control of the same seed, in points, with
its 95 % t interval. A setting's page has the values of every seed, the validation-selected values, versions and a plot;
its JSON file has the hashes of the data. The last column is what `transfer.method: auto` delivers: at each seed, of the
transfers tried, the best on validation, or the control's model if it is not significantly ahead of it there; it follows
from the stored validation outcomes by today's rule ([how often it takes a useless candidate](auto_null.md)). A star
marks settings that were run before outcomes were stored: there the rule is the one before, an unpaired test of the
stored validation scores, which takes fewer of the gains."""
NOTES = """\
`sham` is the same transfer from a source with shuffled weights: its gain comes from the scale of the weights alone.
`copy` takes the top-norm units of each source weight, and does not carry their order to the next weight. A `distill`
trial computes its teacher's outputs once, before the first step, so its steps cost as much as the control's; the time
before is part of its training time. Two trials ran at a time on two cores, so the step times on these pages cannot be
compared between arms; `benchmarks/step_cost.py` compares the methods within one process. All arms have the same number
of steps, but not the same compute if a teacher had to be fine-tuned first.

Other measurements: [what was tried](LOG.md); [what a pack's rank costs](packs.md), with two seeds and so no claim;
[what an adapter costs](adapter_cost.md) and [whether it learns](adapter_rates.md);
[whether a fit is worth its time](equal_compute.md); and what several processes cost in exchanges, memory and time,
[sharding.md](sharding.md), by `benchmarks/sharding.py`."""


def main() -> None:
    """Run the chosen settings, one after the other."""
    names = list(SETTINGS)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", default=names, help=f"of {', '.join(names)}; default: all")
    parser.add_argument("--workers", type=int, default=1, help="trials at a time")
    parser.add_argument("--pages", action="store_true", help="train nothing: write pages from the stored trials again")
    options = parser.parse_args()
    if options.pages:
        for name in options.settings:
            write(name, json.loads((EVIDENCE / f"{name}.json").read_text()))
        (EVIDENCE / "README.md").write_text(index_page())
        return
    with (
        running_service(HERE / "home", workers=options.workers, folder=ROOT) as profile,
        Client(profile.url, profile.api_key) as client,
    ):
        for name in options.settings:
            job = run(client, document(name))
            results = {trial.id: trial.result for trial in job.trials if trial.result is not None}
            numbers = {
                "report": {"name": job.name, "estimated_bytes": job.memory_bytes},
                "trials": {trial_id: result.model_dump(mode="json") for trial_id, result in results.items()},
                "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
            }
            write(name, numbers)
            (EVIDENCE / "README.md").write_text(index_page())


def document(name: str) -> JobSpec:
    """The setting's job; an example gets the five seeds that a claim needs."""
    job = parse(SETTINGS[name].read_text())
    if name not in EXAMPLES:
        return job
    return job.model_copy(update={"seeds": SEEDS, "arms": ARMS.get(name, job.arms)})


def run(client: Client, spec: JobSpec) -> JobView:
    """Submit a job, or find the earlier one with the same document, and wait for its end."""
    digest = hashlib.sha256(json.dumps(spec.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
    job = client.submit(spec, idempotency_key=digest)
    print(f"{job.name}: job {job.id}", flush=True)
    if job.state not in TERMINAL:
        for event in client.follow(job.id):
            if isinstance(event, Event) and event.type in ("trial.state", "job.state"):
                print(f"  {event.ts:%H:%M:%S} {event.message}", flush=True)
            elif isinstance(event, Progress) and event.step % 100 == 0:
                print(f"  {event.trial} {event.step}/{event.steps}", flush=True)
    job = client.get(job.id)
    if job.state != "succeeded":
        raise SystemExit(f"{job.name} is {job.state}: {job.reason}")
    return job


def write(name: str, numbers: dict[str, Any]) -> None:
    """The setting's numbers, its page and its plot; the report follows from the trials."""
    EVIDENCE.mkdir(parents=True, exist_ok=True)
    report = report_of(numbers)
    written = {
        "report": report.model_dump(mode="json", exclude={"job"}),
        **{k: numbers[k] for k in ("trials", "machine")},
    }
    (EVIDENCE / f"{name}.json").write_text(json.dumps(written, indent=1) + "\n")
    (EVIDENCE / f"{name}.md").write_text(setting_page(name, numbers))
    plot(report, EVIDENCE / f"{name}.png")


def report_of(numbers: dict[str, Any]) -> Report:
    """The report of a setting's stored trials."""
    known = numbers["report"]
    return build_report("", known["name"], stored_trials(numbers["trials"]), known.get("estimated_bytes"))


def stored_trials(results: dict[str, Any]) -> list[Trial]:
    """Trials with their stored results; their ids name arm, seed and, with method `auto`, the candidate."""
    trials = []
    for trial_id, result in results.items():
        if trial_id == "source":
            trials.append(Trial(id="source", kind="source", result=TrialResult.model_validate(result)))
        named = re.fullmatch(r"(.+?)-(\d+)(?:-([a-z]+)(?:-(.+))?)?", trial_id)
        if named is None:
            continue
        arm, seed, method, include = named.groups()
        candidate = Candidate(method=method, include=include or "all") if method else None
        measured = TrialResult.model_validate(result)
        trials.append(Trial(id=trial_id, kind="arm", arm=arm, seed=int(seed), candidate=candidate, result=measured))
    return trials


def setting_page(name: str, numbers: dict[str, Any]) -> str:
    """The setting's page, written from its stored trials."""
    report, text = report_of(numbers), SETTINGS[name].read_text()
    results = {trial_id: TrialResult.model_validate(result) for trial_id, result in numbers["trials"].items()}
    first = next(result for trial_id, result in results.items() if not trial_id.startswith("source"))
    about = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("#")]
    lines = [
        f"# {name}",
        "",
        *about,
        "",
        f"`{SETTINGS[name].relative_to(ROOT)}`, {report.steps} steps an arm and seed.",
        "",
    ]
    lines += [markdown(report), "", f"![gain over control]({name}.png)", ""]
    lines += ["## Every seed", "", f"Test {report.metric} of the last step's weights.", "", *_seeds(report), ""]
    teachers = [result.teacher["test"] for result in results.values() if result.teacher]
    if teachers and "source" not in results:
        lines += [f"The distillation's teachers reach {100 * sum(teachers) / len(teachers):.2f} on the test split.", ""]
    if "source" in results:
        lines += [f"The source reaches {100 * results['source'].last['test']:.2f} on the test split.", ""]
    versions = ", ".join(f"{library} {version}" for library, version in sorted(first.versions.items()))
    lines += [f"Versions: {versions}. Adapter parameters: "]
    lines[-1] += f"{max(result.adapter_parameters for result in results.values()):,}; target: {first.parameters:,}."
    return "\n".join(lines) + "\n"


def index_page() -> str:
    """One page for all settings: the gain of each arm over the control of the same seed."""
    arms = ["transfer", "sham", "copy", "distill", "transfer+distill"]
    lines = ["# Evidence", "", INTRODUCTION, ""]
    lines += ["| setting | seeds | control | " + " | ".join(arms) + " | auto |", "|---" * (len(arms) + 4) + "|"]
    for path in sorted(EVIDENCE / f"{name}.json" for name in SETTINGS):
        if not path.exists():
            continue
        numbers = json.loads(path.read_text())
        report = Report.model_validate({"job": "", **numbers["report"]})
        control = report.arm("control")
        assert control is not None
        cells = [f"[{report.name}]({path.stem}.md)", str(len(control.seeds)), f"{100 * control.mean:.2f}"]
        first = next(arm for arm in report.arms if arm.arm.startswith("transfer") and not arm.picked)
        for name in arms:
            arm = first if name == "transfer" else report.arm(name)
            cells.append("–" if arm is None or arm.difference is None else points(arm.difference))
        cells.append(points(by_auto(numbers["trials"])) + ("" if has_outcomes(numbers["trials"]) else "*"))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", NOTES]) + "\n"


def by_auto(results: dict[str, Any]) -> Difference:
    """The gain over the control of what `auto` would deliver from a setting's trials."""
    trials = stored_trials(results)
    chosen = picked(trials) if has_outcomes(results) else picked_unpaired(trials)
    delivered, control = (
        {trial.seed: trial.result.last["test"] for trial in ones if trial.result is not None}
        for ones in (chosen.values(), [trial for trial in trials if trial.arm == "control"])
    )
    return difference(delivered, control, "control")


def has_outcomes(results: dict[str, Any]) -> bool:
    """Whether a setting's trials were stored with their outcomes on each validation example."""
    return all(result.get("outcomes") for result in results.values())


def picked_unpaired(trials: list[Trial]) -> dict[int, Trial]:
    """What the rule before outcomes were stored takes at each seed."""
    chosen = {trial.seed: trial for trial in trials if trial.arm == "control"}
    for seed, control in chosen.items():
        tried = [trial for trial in trials if trial.arm == "transfer" and trial.seed == seed]
        best = best_on_validation(tried)
        assert control.result is not None
        reached, of_control = validation_metric(best), validation_metric(control)
        needed = unpaired_lead(of_control, reached, int(control.result.data["validation"]["examples"]), len(tried))
        if reached - of_control > needed:
            chosen[seed] = best
    return chosen


def plot(report: Report, path: Path) -> None:
    """Plot the paired gain over control, one row for each arm: every seed, the mean and its 95 % interval."""
    arms = [arm for arm in report.arms if arm.difference is not None]
    figure, axes = plt.subplots(figsize=(7, 0.8 + 0.55 * len(arms)))
    for row, arm in enumerate(reversed(arms)):
        gain = arm.difference
        assert gain is not None
        axes.plot([100 * value for value in gain.values], [row] * len(gain.values), "o", color="0.7", markersize=4)
        low, high = (gain.mean if end is None else end for end in (gain.low, gain.high))
        axes.plot([100 * low, 100 * high], [row, row], "-", color="C0", linewidth=2)
        axes.plot(100 * gain.mean, row, "D", color="C0")
    axes.axvline(0, color="0.3", linewidth=1)
    axes.set_yticks(range(len(arms)), [arm.arm for arm in reversed(arms)])
    axes.set_xlabel(f"test {report.metric}, points over the control of the same seed")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _seeds(report: Report) -> list[str]:
    seeds = report.arms[0].seeds
    lines = ["| arm | " + " | ".join(f"seed {seed}" for seed in seeds) + " |", "|---" * (len(seeds) + 1) + "|"]
    return lines + [
        f"| {arm.arm} | " + " | ".join(f"{100 * value:.2f}" for value in arm.last) + " |" for arm in report.arms
    ]


if __name__ == "__main__":
    main()
