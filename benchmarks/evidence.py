"""Runs settings as jobs of the service and writes what they showed to docs/evidence/.

    python benchmarks/evidence.py [SETTING ...] [--workers 1]

A setting is a file in benchmarks/settings, or one of the examples at five seeds. Resumable: a job that was interrupted
goes on from its checkpoints, one that is done is only written out again.
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
from stack import running_service

from mergenet_core.records.events import Event, Progress
from mergenet_core.records.job import TERMINAL, Trial, TrialResult
from mergenet_core.results.report import ArmReport, Difference, Report, build_report, difference, markdown, picked
from mergenet_core.spec.job import JobSpec
from mergenet_core.spec.parse import parse
from service.client import Client, JobView

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
ROOT = HERE.parent
EXAMPLES = (
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
SETTINGS = {path.stem: path for path in sorted((HERE / "settings").glob("*.yaml"))} | {
    name: ROOT / "examples" / f"{name}.yaml" for name in EXAMPLES
}
EVIDENCE = ROOT / "docs" / "evidence"


INTRODUCTION = """\
Written by `benchmarks/evidence.py` from jobs of the service. Test accuracy of the last step's weights: the control's
mean, then each arm's paired gain over the control of the same seed, in points, with its 95 % t interval. A page has the
values of every seed, the validation-selected ones, versions and a plot, the JSON beside it the hashes of the data. The
last column is what `transfer.method: auto` delivers: at each seed, of the transfers tried, the best on validation, or
the control's model where none is ahead of it by more than a standard error."""
NOTES = """\
`sham` is the same transfer from a source with shuffled weights: what it gains, the weights' scale alone gains. `copy`
takes the top-norm units of each source weight without carrying their places to the next. A `distill` trial computes its
teacher's outputs once, before the first step, so its steps cost what the control's do; what came first is in its
training time. Two trials ran at a time on two cores: the step times of these pages do not compare between arms,
`benchmarks/step_cost.py` compares the methods within one process. Steps are equal in all arms; compute is not, where a
teacher had to be fine-tuned first.

Beside the settings: [what was tried](LOG.md), [what a pack's rank costs](packs.md), two seeds and so no claim,
[what an adapter costs](adapter_cost.md), and what several processes cost, in exchanges, memory and time:
[sharding.md](sharding.md), by `benchmarks/sharding.py`."""


def main() -> None:
    """Run what was asked for, one setting after the other."""
    known = list(SETTINGS)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", default=known, help=f"of {', '.join(known)}; default: all")
    parser.add_argument("--workers", type=int, default=1, help="trials at a time")
    wanted = parser.parse_args()
    with running_service(HERE / "home", workers=wanted.workers, folder=ROOT) as client:
        for name in wanted.settings:
            text = SETTINGS[name].read_text()
            job = run(client, document(name))
            write(name, text, job, build_report(job.id, job.name, job.trials, job.memory_bytes))
            index()


def document(name: str) -> JobSpec:
    """The setting's job; that of an example at the seeds of a claim."""
    job = parse(SETTINGS[name].read_text())
    return job.model_copy(update={"seeds": SEEDS}) if name in EXAMPLES else job


def run(client: Client, asked: JobSpec) -> JobView:
    """Submit a setting, or find the job that was made of the very same one, and wait for its end."""
    digest = hashlib.sha256(json.dumps(asked.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
    job = client.submit(asked, idempotency_key=digest)
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


def write(name: str, text: str, job: JobView, report: Report) -> None:
    """The setting's page, its numbers and its plot."""
    EVIDENCE.mkdir(parents=True, exist_ok=True)
    results = {trial.id: trial.result for trial in job.trials if trial.result is not None}
    first = next(result for trial_id, result in results.items() if not trial_id.startswith("source"))
    numbers = {
        "report": report.model_dump(mode="json", exclude={"job"}),
        "trials": {trial_id: result.model_dump(mode="json") for trial_id, result in results.items()},
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
    }
    (EVIDENCE / f"{name}.json").write_text(json.dumps(numbers, indent=1) + "\n")
    plot(report, EVIDENCE / f"{name}.png")
    about = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("#")]
    lines = [
        f"# {name}",
        "",
        *about,
        "",
        f"`{SETTINGS[name].relative_to(ROOT)}`, {report.steps} steps an arm and seed.",
        "",
    ]
    lines += [markdown(report), "", f"![gain over control]({name}.png)", "", *_between(report)]
    lines += ["## Every seed", "", "Test accuracy of the last step's weights.", "", *_seeds(report), ""]
    teachers = [result.teacher["test"] for result in results.values() if result.teacher]
    if teachers and "source" not in results:
        lines += [f"The distillation's teachers reach {100 * sum(teachers) / len(teachers):.2f} on the test split.", ""]
    if "source" in results:
        lines += [f"The source reaches {100 * results['source'].last['test']:.2f} on the test split.", ""]
    versions = ", ".join(f"{library} {version}" for library, version in sorted(first.versions.items()))
    lines += [f"Versions: {versions}. Adapter parameters: "]
    lines[-1] += f"{max(result.adapter_parameters for result in results.values()):,}; target: {first.parameters:,}."
    (EVIDENCE / f"{name}.md").write_text("\n".join(lines) + "\n")


def index() -> None:
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
        cells.append(points(by_auto(numbers["trials"])))
        lines.append("| " + " | ".join(cells) + " |")
    (EVIDENCE / "README.md").write_text("\n".join([*lines, "", NOTES]) + "\n")


def by_auto(results: dict[str, Any]) -> Difference:
    """What `auto` would deliver of a setting's trials, over the control; trials are named by arm and seed."""
    trials = [
        Trial(id=trial_id, kind="arm", arm=named[1], seed=int(named[2]), result=TrialResult.model_validate(result))
        for trial_id, result in results.items()
        if (named := re.match(r"(control|transfer)-(\d+)", trial_id))
    ]
    taken, control = (
        {trial.seed: trial.result.last["test"] for trial in some if trial.result is not None}
        for some in (picked(trials).values(), [trial for trial in trials if trial.arm == "control"])
    )
    return difference(taken, control, "control")


def plot(report: Report, path: Path) -> None:
    """Paired gain over control, an arm a row: every seed, the mean and its 95 % interval."""
    arms = [arm for arm in report.arms if arm.difference is not None]
    figure, axes = plt.subplots(figsize=(7, 0.8 + 0.55 * len(arms)))
    for row, arm in enumerate(reversed(arms)):
        gained = arm.difference
        assert gained is not None
        axes.plot([100 * value for value in gained.values], [row] * len(gained.values), "o", color="0.7", markersize=4)
        low, high = (gained.mean if end is None else end for end in (gained.low, gained.high))
        axes.plot([100 * low, 100 * high], [row, row], "-", color="C0", linewidth=2)
        axes.plot(100 * gained.mean, row, "D", color="C0")
    axes.axvline(0, color="0.3", linewidth=1)
    axes.set_yticks(range(len(arms)), [arm.arm for arm in reversed(arms)])
    axes.set_xlabel(f"test {report.metric}, points over the control of the same seed")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _between(report: Report) -> list[str]:
    """What the control cannot tell: the transfer against its sham, and what it adds to distillation."""
    lines = []
    for name, other in (("transfer", "sham"), ("transfer+distill", "distill")):
        arm, against = report.arm(name), report.arm(other)
        if arm is not None and against is not None:
            gained = difference(_by_seed(arm), _by_seed(against), other)
            lines += [f"{name} against {other}: {points(gained)} points.", ""]
    return lines


def _seeds(report: Report) -> list[str]:
    seeds = report.arms[0].seeds
    lines = ["| arm | " + " | ".join(f"seed {seed}" for seed in seeds) + " |", "|---" * (len(seeds) + 1) + "|"]
    return lines + [
        f"| {arm.arm} | " + " | ".join(f"{100 * value:.2f}" for value in arm.last) + " |" for arm in report.arms
    ]


def _by_seed(arm: ArmReport) -> dict[int, float]:
    return dict(zip(arm.seeds, arm.last, strict=True))


def points(gained: Difference) -> str:
    """A gain in points with its interval."""
    mean = f"{100 * gained.mean:+.2f}"
    if gained.low is None or gained.high is None:
        return mean
    return f"{mean} [{100 * gained.low:+.2f}, {100 * gained.high:+.2f}]"


if __name__ == "__main__":
    main()
