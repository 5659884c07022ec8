"""Distillation through unlabelled inputs gives the same curve under every strategy: two processes against one."""

from pathlib import Path
from typing import Any

import pytest

from mergenet_core.storage.paths import Roots
from tests.distributed.gang import farthest, run_alone, run_together
from tests.distributed.odd import STRATEGIES, trial
from tests.training.tiny import TOPICS, text_rows, write_bert, write_lines

Curves = dict[str, dict[int, float]]
STEPS = 8
FAST = ("ddp", "fsdp2")
SLOW = tuple(name for name in STRATEGIES if name not in FAST)


def distilling(name: str, folder: Path, strategy: str, devices: int, unlabelled: bool = True) -> dict[str, Any]:
    """The arm `distill` from a source with a head, with the loss on both batches."""
    made = trial(name, folder, strategy, devices, "project", "distill", steps=STEPS)
    document = made["document"]
    document["arms"] = ["transfer", "control", "distill"]
    document["source"]["model"]["path"] = "labelled"
    document["transfer"]["distill"] = {"weight": 0.6, "temperature": 1.0, "pool_batch_size": 12}
    document["target"]["data"]["unlabelled"] = "pool.jsonl"
    if not unlabelled:
        document["transfer"]["distill"] = {"weight": 0.6, "temperature": 1.0}
        document["target"]["data"]["unlabelled"] = None
    return made


@pytest.fixture(scope="module")
def alone(roots: Roots, tmp_path_factory: pytest.TempPathFactory) -> Curves:
    # large initial weights, so that the teacher's outputs differ from text to text
    write_bert(roots.models[0] / "labelled", tuple(sorted(TOPICS)), initializer_range=0.5)
    write_lines(roots.data[0] / "pool.jsonl", [{"text": row["text"]} for row in text_rows(30, 99)])
    work = tmp_path_factory.mktemp("alone")
    trials = [distilling("pool", work, "single", 1), distilling("labelled", work, "single", 1, unlabelled=False)]
    return run_alone(trials, roots)


@pytest.fixture(scope="module")
def together(alone: Curves, roots: Roots, tmp_path_factory: pytest.TempPathFactory) -> Curves:
    work = tmp_path_factory.mktemp("together")
    return run_together(2, [distilling(name, work, name, 2) for name in FAST], roots, work / "gang")


@pytest.fixture(scope="module")
def rest(alone: Curves, roots: Roots, tmp_path_factory: pytest.TempPathFactory) -> Curves:
    work = tmp_path_factory.mktemp("rest")
    return run_together(2, [distilling(name, work, name, 2) for name in SLOW], roots, work / "gang")


@pytest.mark.parametrize("strategy", FAST)
def test_two_processes_distil_on_the_curve_of_one(alone: Curves, together: Curves, strategy: str) -> None:
    assert len(together[strategy]) == STEPS
    assert farthest(together[strategy], alone["pool"]) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("strategy", SLOW)
def test_every_strategy_distils_on_the_curve_of_one_process(alone: Curves, rest: Curves, strategy: str) -> None:
    assert len(rest[strategy]) == STEPS
    assert farthest(rest[strategy], alone["pool"]) <= 1e-6


def test_the_pool_changes_the_curve(alone: Curves) -> None:
    assert farthest(alone["pool"], alone["labelled"]) > 1e-3
