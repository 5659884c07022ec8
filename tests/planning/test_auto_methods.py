"""The candidates that method `auto` tries, and which of them the validation split picks."""

from __future__ import annotations

import pytest

from mergenet_core.errors import PairingRefused
from mergenet_core.pairing.pair import pair
from mergenet_core.planning.auto_methods import candidates
from mergenet_core.planning.resolve_spec import resolve_spec
from mergenet_core.planning.trials import trials
from mergenet_core.records.job import ArmCost, Candidate, Job, Trial, TrialResult
from mergenet_core.records.outcomes import pack_outcomes
from mergenet_core.records.record import now
from mergenet_core.results.report import build_report, markdown
from mergenet_core.spec.job import JobSpec, TransferSpec
from mergenet_core.spec.parse import parse
from tests.pairing.test_pairing import bert, cnn, mlp

PROJECT, EMBEDDINGS = Candidate(method="project", include="all"), Candidate(method="project", include="embeddings")


@pytest.mark.parametrize(
    ("build", "include", "names"),
    [
        (bert, "all", ["project", "project-embeddings"]),
        (bert, "embeddings", ["project-embeddings"]),
        (mlp, "all", ["anchored", "project"]),
        (mlp, "no-head", ["anchored-no-head"]),
        (cnn, "all", ["project", "anchored"]),
    ],
)
def test_the_candidates_follow_from_the_kind_of_model(build, include, names):
    spec = TransferSpec(include=include)
    found = candidates(build(), build(), spec, may_fit=False)
    assert [candidate.name for candidate in found] == names


def test_a_candidate_that_is_refused_is_left_out():
    source, target = mlp((16, 16)), mlp((16, 16), labels=("ant", "bee"))
    with pytest.raises(PairingRefused):
        pair(mlp(image_size=6), target, TransferSpec())
    spec = TransferSpec(rank=10)
    found = candidates(source, target, spec, may_fit=False)
    assert [candidate.name for candidate in found] == ["anchored", "project"]


def test_a_fit_is_tried_where_there_are_unlabelled_inputs_also_if_no_axis_is_shared():
    names = [candidate.name for candidate in candidates(mlp(), mlp(), TransferSpec(), may_fit=True)]
    assert names == ["anchored", "project", "fit"]
    apart = candidates(mlp(image_size=6), mlp(), TransferSpec(), may_fit=True)
    assert [candidate.name for candidate in apart] == ["fit"]
    with pytest.raises(PairingRefused):
        candidates(mlp(image_size=6), mlp(), TransferSpec(), may_fit=False)


def job(spec: JobSpec, validation: dict[str, float]) -> Job:
    done = []
    for trial in trials(spec, (PROJECT, EMBEDDINGS)):
        if trial.kind == "arm" and trial.id in validation:
            metric = validation[trial.id]
            result = TrialResult(
                steps=10, final_loss=0.1, metric="accuracy", last={"test": metric - 0.1, "validation": metric},
                best={"test": metric - 0.1, "validation": metric}, cost=ArmCost(step_seconds=0.1, train_seconds=1.0),
                parameters=7, outcomes=pack_outcomes([1.0] * round(100 * metric) + [0.0] * round(100 * (1 - metric))),
            )  # fmt: skip
            trial = trial.model_copy(update={"state": "succeeded", "result": result})
        done.append(trial)
    return Job(
        id="j", name="n", owner="me", state="running", code="x", reason="x", trials=tuple(done), created_at=now(),
        updated_at=now(),
    )  # fmt: skip


VALIDATION = {
    "control-0": 0.60, "transfer-0-project": 0.70, "transfer-0-project-embeddings": 0.80, "sham-0": 0.60,
    "control-1": 0.75, "transfer-1-project": 0.79, "transfer-1-project-embeddings": 0.70, "sham-1": 0.61,
}  # fmt: skip


@pytest.fixture
def spec() -> JobSpec:
    return parse(
        {
            "name": "a job",
            "source": {"model": {"path": "source"}},
            "target": {
                "model": {"path": "target"},
                "task": "text-classification",
                "data": {"train": "train.jsonl", "test": "test.jsonl"},
            },
            "train": {"steps": 10},
            "arms": ["transfer", "control", "sham"],
            "seeds": [0, 1],
        }
    )


def test_a_trial_runs_its_own_candidate_and_the_sham_the_best(spec):
    record = job(spec, VALIDATION)
    resolved = {
        name: (found.transfer.method, found.transfer.include)
        for name in VALIDATION
        for found in [resolve_spec(record, spec, record.trial(name))]
    }
    assert resolved["transfer-0-project-embeddings"] == ("project", "embeddings")
    assert resolved["transfer-0-project"] == ("project", "all")
    assert resolved["sham-0"] == ("project", "embeddings")
    assert resolved["sham-1"] == ("project", "all"), "the best transfer, though it is not taken"
    assert resolved["control-0"] == ("auto", "all")
    assert resolve_spec(record, spec, record.trial("finalize")) is spec


def test_the_strategy_chosen_when_the_job_was_accepted_replaces_auto(spec):
    def strategy(chosen, given="auto"):
        document = spec.model_copy(update={"resources": spec.resources.model_copy(update={"strategy": given})})
        record = job(spec, VALIDATION).model_copy(update={"strategy": chosen})
        return resolve_spec(record, document, record.trial("control-0")).resources.strategy

    assert strategy("fsdp2") == "fsdp2"
    assert strategy("fsdp2", given="ddp") == "ddp"
    assert strategy(None) == "auto"


def test_the_report_takes_what_is_significantly_ahead_of_the_control(spec):
    report = build_report("j", "n", job(spec, VALIDATION).trials)
    taken = report.arm("transfer")
    assert taken.picked == ("transfer-0-project-embeddings", "control-1")
    assert taken.last == pytest.approx((0.70, 0.65))
    assert taken.difference.values == pytest.approx((0.20, 0.0))
    assert taken.seconds == 3.0, "all that was tried at a seed"
    assert report.chosen == "transfer-0-project-embeddings"
    assert report.transferred
    assert report.sentence.startswith("auto took project-embeddings at 1, no transfer at 1 of 2 seeds; ")
    assert [arm.arm for arm in report.arms] == [
        "transfer", "transfer by project", "transfer by project-embeddings", "control", "sham",
    ]  # fmt: skip
    assert "| transfer by project | 64.50" in markdown(report)


def test_a_source_that_harms_is_not_used(spec):
    worse = {name: value - 0.3 * name.startswith("transfer") for name, value in VALIDATION.items()}
    report = build_report("j", "n", job(spec, worse).trials)
    assert report.arm("transfer").difference.mean == 0
    assert report.verdict == "no gain shown"
    assert report.chosen == "control-1"
    assert not report.transferred


def test_a_method_by_name_has_one_trial_a_seed(spec):
    named = spec.model_copy(update={"transfer": TransferSpec(method="project")})
    assert [trial.id for trial in trials(named) if trial.arm == "transfer"] == ["transfer-0", "transfer-1"]
    assert all(trial.candidate is None for trial in trials(named))


def test_a_trial_of_a_named_method_has_no_candidate():
    assert Trial.model_validate({"id": "transfer-0", "kind": "arm", "arm": "transfer"}).candidate is None
