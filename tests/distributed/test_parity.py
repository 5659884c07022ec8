"""The same job gives the same curve under every strategy: two processes against one, on real models and data."""

import pytest

from mergenet_core.storage.paths import Roots
from tests.distributed.gang import farthest, run_alone, run_together
from tests.distributed.odd import METHODS, STRATEGIES, trial

Curves = dict[str, dict[int, float]]
LEARNED = [name for name in METHODS if name != "project"]
CASES = [(method, joint) for method in METHODS for joint in (False, True) if method in LEARNED or not joint]
SPREAD = ("fsdp2", "zero3")
OFFLOADED = ("zero1", "zero2", "zero3")
FAST = [(name, "anchored", False) for name in STRATEGIES] + [(name, "lpka-gradient", True) for name in SPREAD]
SLOW = [case for case in ((name, *case) for name in STRATEGIES for case in CASES) if case not in FAST]
TOLERANCE = 1e-6


def named(strategy: str, method: str, joint: bool) -> str:
    return f"{strategy}-{method}-{'joint' if joint else 'frozen'}"


@pytest.fixture(scope="module")
def alone(roots: Roots, tmp_path_factory: pytest.TempPathFactory) -> Curves:
    work = tmp_path_factory.mktemp("alone")
    trials = [trial(named("single", *case), work, "single", 1, case[0], joint=case[1]) for case in CASES]
    trials.append(trial("control", work, "single", 1, "project", "control"))
    return run_alone(trials, roots)


@pytest.fixture(scope="module")
def together(roots: Roots, tmp_path_factory: pytest.TempPathFactory) -> Curves:
    work = tmp_path_factory.mktemp("together")
    trials = [trial(named(*case), work, case[0], 2, case[1], joint=case[2]) for case in FAST]
    trials += [trial(f"broken-{method}", work, "fsdp2", 2, method, broken=True, steps=6) for method in LEARNED]
    trials += [trial(f"bf16-{name}", work, name, 2, "anchored", precision="bf16", steps=4) for name in STRATEGIES]
    trials += [trial(f"offloaded-{name}", work, name, 2, "anchored", offload="optimizer") for name in OFFLOADED]
    return run_together(2, trials, roots, work / "gang")


@pytest.fixture(scope="module")
def rest(roots: Roots, tmp_path_factory: pytest.TempPathFactory) -> Curves:
    work = tmp_path_factory.mktemp("rest")
    return run_together(
        2, [trial(named(*case), work, case[0], 2, case[1], joint=case[2]) for case in SLOW], roots, work
    )


@pytest.mark.parametrize(("strategy", "method", "joint"), FAST)
def test_two_processes_give_the_curve_of_one(alone, together, strategy, method, joint):
    curve = together[named(strategy, method, joint)]
    assert len(curve) == 20
    assert farthest(curve, alone[named("single", method, joint)]) <= TOLERANCE


@pytest.mark.parametrize("strategy", OFFLOADED)
def test_an_offloaded_optimizer_sees_and_clips_what_the_transfer_made_of_the_gradient(alone, together, strategy):
    curve = together[f"offloaded-{strategy}"]
    assert len(curve) == 20
    assert farthest(curve, alone[named("single", "anchored", False)]) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "method", "joint"), SLOW)
def test_every_method_and_mode_gives_the_curve_of_one(alone, rest, strategy, method, joint):
    curve = rest[named(strategy, method, joint)]
    assert len(curve) == 20
    assert farthest(curve, alone[named("single", method, joint)]) <= TOLERANCE


@pytest.mark.parametrize(("method", "joint"), CASES)
def test_every_method_changes_the_curve(alone, method, joint):
    assert farthest(alone[named("single", method, joint)], alone["control"]) > 20 * TOLERANCE


@pytest.mark.parametrize("method", LEARNED)
def test_an_exchange_without_its_reductions_changes_the_curve(alone, together, method):
    assert farthest(together[f"broken-{method}"], alone[named("single", method, False)]) > 5 * TOLERANCE


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_half_precision_trains_near_single_precision(alone, together, strategy):
    assert 0 < farthest(together[f"bf16-{strategy}"], alone[named("single", "anchored", False)]) < 0.05
