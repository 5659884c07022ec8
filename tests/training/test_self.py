"""Self-transfer: the source is the target itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergenet_core.errors import SpecInvalid
from mergenet_core.planning.make_plan import make_plan
from mergenet_core.planning.trials import trials
from mergenet_core.spec.job import JobSpec
from mergenet_core.storage.paths import Roots
from mergenet_core.training.trial import Interrupted
from tests.training.tiny import BERT, Recorder, run, text_job

MODEL = {"config": {"model_type": "bert", "max_position_embeddings": 32, **BERT}, "tokenizer": "source"}
LEARNED = {"method": "lpka", "cycle": 2, "stop_at": 1.0, "width": 8, "heads": 2, "gated": False}


def own(**changes: object) -> JobSpec:
    return text_job(
        **{"source": {"mode": "self", "model": MODEL}, "target__model": MODEL, "transfer": LEARNED, **changes}
    )


@pytest.mark.parametrize("method", ["lpka", "lpka-raw"])
def test_a_target_that_is_its_own_source_trains_another_curve(method: str, tmp_path: Path, roots: Roots) -> None:
    job = own(transfer__method=method)
    plan = make_plan(job, roots, tmp_path, [])
    assert plan.pairing is not None
    assert [trial.kind for trial in trials(job)] == ["arm", "arm", "finalize"]
    losses = {}
    for arm in ("transfer", "sham", "control"):
        run(job, f"{arm}-0", tmp_path, roots, recorder := Recorder())
        losses[arm] = recorder.losses
    assert len({curve[6] for curve in losses.values()}) == 3


def test_a_run_that_was_stopped_resumes_bit_for_bit(tmp_path: Path, roots: Roots) -> None:
    whole = run(own(), "transfer-0", tmp_path / "whole", roots)
    with pytest.raises(Interrupted):
        run(own(), "transfer-0", tmp_path / "parts", roots, Recorder({3: "stop"}))
    assert run(own(), "transfer-0", tmp_path / "parts", roots, attempt=2).final_loss == whole.final_loss


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"transfer__method": "anchored"}, "mode self has one model; take lpka"),
        ({"source__model": {"path": "source"}}, r"give source\.model the values of target\.model"),
        ({"arms": ["transfer", "control", "distill"]}, "leave them out with mode self"),
        ({"source__rank": 4}, "leave data, train and rank out"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(SpecInvalid, match=sentence):
        own(**changes)
