"""The report: paired statistics against a plain computation, and verdicts that can go either way."""

from __future__ import annotations

import pytest
from scipy import stats

from mergenet_core.records.job import ArmCost, Candidate, Trial, TrialResult
from mergenet_core.records.outcomes import pack_outcomes
from mergenet_core.results.report import Report, build_report, markdown


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


CONTROL = [0.70, 0.71, 0.72]
GAIN, LITTLE = [0.90, 0.91, 0.92], [0.70, 0.73, 0.72]


@pytest.mark.parametrize(
    ("transfer", "sham", "verdict", "words"),
    [
        (GAIN, CONTROL, "gain", "against sham it is at +20.00 [+20.00, +20.00]: the source's knowledge matters."),
        (
            GAIN,
            [0.91, 0.90, 0.92],
            "no gain over the sham shown",
            "no difference is shown at 3 seeds: it is not shown",
        ),
        (GAIN, [0.95, 0.97, 0.96], "no gain over the sham shown", ", which is worse: it is not shown"),
        (GAIN, None, "no sham", "; no sham ran, so it is open whether the source's knowledge matters."),
        (LITTLE, CONTROL, "no gain shown", "points against its control over 3 paired seeds (95 % interval), so no"),
        ([0.50, 0.50, 0.52], CONTROL, "harm", "paired seeds (95 % interval), which is worse; against sham"),
        ([0.9], [0.8], "one seed", "+20.00 points against its control at one seed; against sham it is at +10.00; one"),
    ],
)
def test_the_verdict_follows_control_and_sham(transfer, sham, verdict, words) -> None:
    arms = {"transfer": transfer, "control": CONTROL} | ({"sham": sham} if sham is not None else {})
    report = build_report("j", "n", trials(**arms))
    assert report.verdict == verdict
    assert words in report.sentence


def test_a_gain_has_to_survive_the_correction_for_all_comparisons() -> None:
    transfer, sham = [0.71, 0.755, 0.76, 0.73], [0.6, 0.61, 0.6, 0.61]
    control = [0.70, 0.71, 0.72, 0.71]
    alone = build_report("j", "n", trials(transfer=transfer, control=control, sham=sham))
    assert alone.verdict == "gain"
    idle = {name: [value + 0.001 * (-1) ** seed for seed, value in enumerate(control)] for name in ("copy", "distill")}
    several = build_report("j", "n", trials(transfer=transfer, control=control, sham=sham, **idle))
    first = several.comparisons[0]
    assert first.difference == alone.comparisons[0].difference, "the effect and its interval stay"
    assert [(one.arm, one.difference.to) for one in several.comparisons] == [
        ("transfer", "control"), ("copy", "control"), ("distill", "control"), ("transfer", "sham"),
    ]  # fmt: skip
    assert first.p is not None
    assert first.p_holm == pytest.approx(3 * first.p)
    assert several.verdict == "no gain shown"
    assert "with Holm's correction for 4 comparisons" in several.sentence


@pytest.mark.parametrize(
    ("sham", "verdict", "words"),
    [
        (None, "no sham", "; no distill-sham ran, so it is open whether the source's knowledge matters."),
        (CONTROL, "gain", "against distill-sham it is at +20.00 [+20.00, +20.00]: the source's knowledge matters."),
        ([0.91, 0.90, 0.92], "no gain over the sham shown", "no difference is shown at 3 seeds: it is not shown"),
    ],
)
def test_the_sham_of_an_arm_with_distillation_is_that_of_the_distillation(sham, verdict, words) -> None:
    arms = {"control": CONTROL, "sham": CONTROL, "distill": [0.8, 0.81, 0.8], "transfer_distill": GAIN}
    arms |= {} if sham is None else {"distill-sham": sham}
    report = build_report("j", "n", trials(**arms))
    assert report.verdict == verdict
    assert words in report.sentence
    compared = [(one.arm, one.difference.to) for one in report.comparisons]
    held = [] if sham is None else [("distill", "distill-sham"), ("transfer+distill", "distill-sham")]
    assert compared == [
        ("distill", "control"), ("transfer+distill", "control"), *held, ("transfer+distill", "distill"),
    ]  # fmt: skip


def test_a_distillation_is_held_against_its_sham_where_the_verdict_is_on_the_transfer() -> None:
    arms = {"transfer": GAIN, "control": CONTROL, "sham": CONTROL, "distill": GAIN, "distill-sham": [0.2, 0.25, 0.2]}
    report = build_report("j", "n", trials(**arms))
    assert report.verdict == "gain"
    assert "distill-sham" not in report.sentence
    assert "| distill against distill-sham | +69.33 " in markdown(report)


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


def by_auto(transfer: list[float], control: list[float], sham: list[float], taken: int) -> Report:
    """The report of a job whose `auto` takes the transfer at the first seeds, and the control at the others."""
    done = []
    for trial in trials(transfer=transfer, control=control, sham=sham):
        assert trial.result is not None
        ahead = (trial.arm == "transfer") == (trial.seed < taken)
        trial.result.last["validation"] = 0.9 if ahead else 0.5
        outcomes = pack_outcomes([1.0] * (90 if ahead else 50) + [0.0] * (10 if ahead else 50))
        candidate = Candidate(method="project", include="all") if trial.arm == "transfer" else None
        result = trial.result.model_copy(update={"outcomes": outcomes})
        done.append(trial.model_copy(update={"candidate": candidate, "result": result}))
    return build_report("j", "n", done)


@pytest.mark.parametrize("taken", [4, 3, 1, 0])
def test_a_sham_is_compared_with_transfers_and_never_with_the_control_s_model(taken: int) -> None:
    control = [0.70, 0.71, 0.72, 0.71]
    report = by_auto([0.9, 0.91, 0.92, 0.9], control, [0.5, 0.51, 0.52, 0.5], taken)
    delivered, sham = report.comparisons
    assert (delivered.arm, sham.arm) == ("transfer", "best transfer tried")
    assert delivered.difference.values == pytest.approx([0.2, 0.2, 0.2, 0.19][:taken] + [0.0] * (4 - taken))
    assert sham.difference.values == pytest.approx([0.4] * 4), "the transfers themselves, taken or not"
    assert report.verdict == ("gain" if taken == 4 else "no gain shown")


def test_the_artifact_is_chosen_on_validation_not_on_test() -> None:
    report = build_report("j", "n", trials(transfer=[0.80, 0.99], control=[0.7, 0.7]))
    assert report.chosen == "transfer-0"


def with_validation(done: list[Trial], **values: float) -> list[Trial]:
    """The trials with other validation metrics, by id with an underscore."""
    changed = []
    for trial in done:
        assert trial.result is not None
        value = values.get(trial.id.replace("-", "_"), trial.result.last["validation"])
        result = trial.result.model_copy(update={"last": {**trial.result.last, "validation": value}})
        changed.append(trial.model_copy(update={"result": result}))
    return changed


def test_a_transfer_that_harms_is_not_delivered_unless_the_job_asks_for_it() -> None:
    done = with_validation(trials(transfer=[0.50, 0.50, 0.52], control=CONTROL), control_2=1.5)
    report = build_report("j", "n", done)
    assert (report.verdict, report.chosen, report.transferred) == ("harm", "control-2", False)
    assert report.reason == "the transfer is shown to harm"
    assert "\nDelivered: the control's model, control-2; the transfer is shown to harm.\n" in markdown(report)
    asked = build_report("j", "n", done, deliver="transfer")
    assert (asked.verdict, asked.chosen, asked.transferred, asked.reason) == ("harm", "transfer-0", True, "")
    assert "\nDelivered: the model of transfer-0.\n" in markdown(asked)


@pytest.mark.parametrize(("of_control", "chosen"), [(0.91, "control-1"), (0.90, "transfer-1")])
def test_a_transfer_behind_the_control_on_validation_at_its_best_seed_is_not_delivered(of_control, chosen) -> None:
    done = with_validation(
        trials(transfer=LITTLE, control=CONTROL), transfer_0=0.8, control_0=0.7, transfer_1=0.9, control_1=of_control,
        transfer_2=0.8, control_2=0.7,
    )  # fmt: skip
    report = build_report("j", "n", done)
    assert report.chosen == chosen
    if chosen == "control-1":
        assert report.reason.endswith("behind it on validation at its best seed, 1: 90.00 against 91.00")


def test_baselines_are_rows_and_no_comparisons() -> None:
    done = trials(control=CONTROL, transfer=GAIN, sham=CONTROL)
    plain = build_report("j", "n", done)
    values = {"control": {"tf-idf": [0.95, 0.93, 0.97]}, "transfer": {"probe": [0.8, 0.8, 0.8]}}
    with_baselines = []
    for one in done:
        assert one.result is not None
        found = {name: by_seed[one.seed] for name, by_seed in values.get(str(one.arm), {}).items()}
        result = one.result.model_copy(update={"baselines": found})
        with_baselines.append(one.model_copy(update={"result": result}))
    report = build_report("j", "n", with_baselines)
    assert report.comparisons == plain.comparisons
    assert (report.verdict, report.sentence) == (plain.verdict, plain.sentence)
    words, probe = report.baselines
    assert (words.name, words.mean, probe.sd) == ("tf-idf", pytest.approx(0.95), pytest.approx(0.0, abs=1e-12))
    assert words.difference.values == pytest.approx([0.25, 0.22, 0.25])
    table = markdown(report)
    assert "| *logistic regression on TF-IDF of the words that the target reads* | 95.00 ± 2.00 | – | +24.00 [" in table
    assert (
        "Ahead of transfer (91.00): logistic regression on TF-IDF of the words that the target reads, at 95.00."
        in table
    )
    assert Report.model_validate_json(report.model_dump_json()) == report


def with_cost(trial: Trial, **seconds: float) -> Trial:
    assert trial.result is not None
    cost = ArmCost(step_seconds=0.1, **seconds)
    return trial.model_copy(update={"result": trial.result.model_copy(update={"cost": cost})})


def test_the_total_has_all_that_was_trained_for_an_arm_and_the_control_s_steps_in_that_time() -> None:
    done = trials(control=[0.7, 0.7], transfer=[0.9, 0.9], distill=[0.8, 0.8], sham_untrained=[0.7, 0.7])
    done = [one.model_copy(update={"arm": str(one.arm).replace("sham+", "sham-")}) for one in done]
    done = [with_cost(one, train_seconds=2.0, extra_seconds=3.0 * (one.arm == "distill")) for one in done]
    (source,) = trials(source=[0.9])
    source = with_cost(source.model_copy(update={"kind": "source", "arm": None}), train_seconds=10.0)
    report = build_report("j", "n", [source, *done])
    totals = {arm.arm: (arm.seconds, arm.total_seconds) for arm in report.arms}
    assert totals == {
        "control": (2.0, 2.0), "transfer": (2.0, 12.0), "distill": (5.0, 15.0), "sham-untrained": (2.0, 2.0),
    }  # fmt: skip
    assert report.equal_steps == 60  # 12 s at 10 steps in 2 s
    table = markdown(report)
    assert "| 100 | 2.0 | 12.0 |" in table
    assert "in the 12.0 s of transfer with the source's training the control takes 60 steps, where it took 10." in table


def test_a_source_that_learns_with_the_target_costs_its_own_steps() -> None:
    done = [
        with_cost(one, train_seconds=2.0, source_seconds=1.5 if one.arm == "transfer" else 0.0)
        for one in trials(control=[0.7], transfer=[0.9])
    ]
    report = build_report("j", "n", done)
    assert [arm.total_seconds for arm in report.arms] == [2.0, 3.5]
    assert report.equal_steps == 18


def test_the_table_has_a_row_an_arm() -> None:
    report = build_report("j", "n", trials(control=[0.7, 0.71], transfer_distill=[0.9, 0.92]))
    table = markdown(report)
    assert "| transfer+distill | 91.00 ± 1.41 |" in table
    assert report.chosen == "transfer+distill-0"
