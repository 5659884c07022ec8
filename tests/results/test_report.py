"""The report: paired statistics against a plain computation, and verdicts that can go either way."""

from __future__ import annotations

import pytest
from scipy import stats

from mergenet_core.records.job import ArmCost, Candidate, Trial, TrialResult
from mergenet_core.results.report import build_report, markdown


def trials(**arms: list[float]) -> list[Trial]:
    made = []
    for arm, values in arms.items():
        name = arm.replace("_", "+")
        for seed, value in enumerate(values):
            result = TrialResult(
                steps=10,
                final_loss=0.1,
                metric="accuracy",
                last={"test": value, "validation": 1 - seed / 10},
                best={"test": value + 0.01, "validation": value, "step": 5},
                cost=ArmCost(step_seconds=0.1, train_seconds=1.0),
                parameters=7,
            )
            made.append(Trial(id=f"{name}-{seed}", kind="arm", arm=name, seed=seed, state="succeeded", result=result))
    return made


def test_the_interval_is_the_paired_t_interval() -> None:
    transfer, control = [0.81, 0.79, 0.85, 0.80], [0.70, 0.72, 0.71, 0.69]
    report = build_report("j", "n", trials(transfer=transfer, control=control))
    found = report.arm("transfer")
    assert found is not None
    assert found.difference is not None
    gaps = [a - b for a, b in zip(transfer, control, strict=True)]
    low, high = stats.t.interval(0.95, 3, loc=sum(gaps) / 4, scale=stats.sem(gaps))
    assert found.difference.low == pytest.approx(low, abs=1e-12)
    assert found.difference.high == pytest.approx(high, abs=1e-12)
    assert report.verdict == "gain"
    assert "no sham arm" in report.sentence


@pytest.mark.parametrize(
    ("transfer", "verdict"),
    [
        ([0.5, 0.5, 0.52], "harm"),
        ([0.69, 0.72, 0.71], "no gain shown"),
        ([0.9, 0.91, 0.92], "gain"),
        ([0.9], "one seed"),
    ],
)
def test_the_verdict_follows_the_interval(transfer: list[float], verdict: str) -> None:
    assert build_report("j", "n", trials(transfer=transfer, control=[0.7, 0.71, 0.72])).verdict == verdict


def test_the_step_time_of_two_seeds_is_the_middle_of_both() -> None:
    slow = [
        trial.model_copy(
            update={"result": trial.result.model_copy(update={"cost": ArmCost(step_seconds=0.3, train_seconds=1.0)})}
        )
        if trial.seed == 1 and trial.result is not None
        else trial
        for trial in trials(transfer=[0.9, 0.9], control=[0.7, 0.7])
    ]
    assert [arm.step_seconds for arm in build_report("j", "n", slow).arms] == pytest.approx([0.2, 0.2])


def test_a_sham_that_does_as_well_is_reported() -> None:
    report = build_report(
        "j", "n", trials(transfer=[0.9, 0.91, 0.92], control=[0.7, 0.71, 0.72], sham=[0.9, 0.92, 0.91])
    )
    assert report.verdict == "gain"
    assert "not the source's knowledge" in report.sentence


def by_auto(transfer: list[float], control: list[float], sham: list[float], taken: int) -> str:
    """The sentence of a job whose `auto` takes the transfer at the first seeds, and the control at the others."""
    done = []
    for trial in trials(transfer=transfer, control=control, sham=sham):
        assert trial.result is not None
        ahead = (trial.arm == "transfer") == (trial.seed < taken)
        trial.result.last["validation"] = 0.9 if ahead else 0.5
        candidate = Candidate(method="project", include="all") if trial.arm == "transfer" else None
        done.append(trial.model_copy(update={"candidate": candidate}))
    return build_report("j", "n", done).sentence


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        (4, "points ahead of its sham, so the source's knowledge matters"),
        (3, "at the 3 seeds where a transfer was taken it is"),
        (1, "its sham was compared at one seed"),
        (0, "no transfer was taken."),
    ],
)
def test_a_sham_is_compared_with_the_transfers_that_were_taken(taken: int, expected: str) -> None:
    control = [0.70, 0.71, 0.72, 0.71]
    assert expected in by_auto([0.9, 0.91, 0.92, 0.9], control, [0.5, 0.51, 0.52, 0.5], taken)


def test_the_artifact_is_chosen_on_validation_not_on_test() -> None:
    report = build_report("j", "n", trials(transfer=[0.80, 0.99], control=[0.7, 0.7]))
    assert report.chosen == "transfer-0"


def test_the_table_has_a_row_an_arm() -> None:
    report = build_report("j", "n", trials(control=[0.7, 0.71], transfer_distill=[0.9, 0.92]))
    table = markdown(report)
    assert "| transfer+distill | 91.00 ± 1.41 |" in table
    assert report.chosen == "transfer+distill-0"
