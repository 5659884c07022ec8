"""A trial resumes bit for bit with the same processes and strategy, and on the same curve with any others."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from mergenet_core.storage.paths import Roots
from tests.distributed.gang import farthest, run_together
from tests.distributed.odd import STRATEGIES, trial

Curves = dict[str, dict[int, float]]
STOP, STEPS = 5, 10
SETTINGS = {"steps": STEPS, "eval_every": 4, "checkpoint_every": 100}
ELSEWHERE = {
    1: [("fsdp2", "single"), ("ddp", "single"), ("zero3", "zero3"), ("zero2", "zero2"), ("zero3", "single")],
    2: [("fsdp2", "ddp"), ("ddp", "zero3"), ("zero1", "fsdp2")],
    4: [("fsdp2", "fsdp2"), ("zero3", "zero3"), ("zero2", "zero2"), ("ddp", "ddp")],
}
"""Number of processes after the resumption → strategies before it, in two processes, and after it."""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def whole(roots: Roots, work: Path) -> Curves:
    """Every strategy's uninterrupted curve; also makes the checkpoint of a run that stopped half-way."""
    trials = [trial(name, work / "whole", name, 2, "anchored", **SETTINGS) for name in STRATEGIES]
    trials += [
        trial(name, work / "stopped", name, 2, "anchored", requests={STOP: "stop"}, **SETTINGS) | {"name": f"{name}-"}
        for name in STRATEGIES
    ]
    return run_together(2, trials, roots, work / "gang-2")


@pytest.fixture(scope="module")
def resumed(whole: object, roots: Roots, work: Path) -> Callable[[int], Curves]:
    """The curves of everything that is resumed in a number of processes."""

    @cache
    def curves(size: int) -> Curves:
        same = [(name, name) for name in STRATEGIES] if size == 2 else []
        trials = []
        for before, after in same + ELSEWHERE[size]:
            name = f"{before}-{after}"
            shutil.copytree(work / "stopped" / before, work / f"{name}-{size}" / name)
            trials.append(trial(name, work / f"{name}-{size}", after, size, "anchored", attempt=2, **SETTINGS))
        return run_together(size, trials, roots, work / f"again-{size}")

    return curves


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_processes_resume_bit_for_bit(whole, resumed, strategy):
    assert max(whole[f"{strategy}-"]) == STOP
    again = resumed(2)[f"{strategy}-{strategy}"]
    assert again == {step: loss for step, loss in whole[strategy].items() if step > STOP}


@pytest.mark.parametrize(
    ("before", "after", "size"),
    [
        pytest.param(*move, size, marks=[pytest.mark.slow] if size == 4 else [])
        for size, moves in ELSEWHERE.items()
        for move in moves
    ],
)
def test_other_processes_resume_on_the_same_curve(whole, resumed, before, after, size):
    again = resumed(size)[f"{before}-{after}"]
    assert min(again) == STOP + 1
    assert farthest(again, whole[before]) <= 1e-6
