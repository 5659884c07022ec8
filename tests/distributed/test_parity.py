"""The same job gives the same curve under every strategy: two processes against one, on real models and data."""

import pytest

from mergenet_core.jobs.paths import Roots
from tests.distributed.gang import farthest, run_together
from tests.distributed.odd import METHODS, STRATEGIES, trial

LEARNED = [name for name in METHODS if name != "project"]
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def alone(roots: Roots, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, float]]:
    work = tmp_path_factory.mktemp("alone")
    trials = [trial(method, work, "single", 1, method) for method in METHODS]
    trials.append(trial("control", work, "single", 1, "project", "control"))
    return run_together(1, trials, roots, work / "gang")


@pytest.fixture(scope="module")
def together(roots: Roots, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, float]]:
    work = tmp_path_factory.mktemp("together")
    trials = [trial(f"{strategy}-{method}", work, strategy, 2, method) for strategy in STRATEGIES for method in METHODS]
    trials += [trial(f"broken-{method}", work, "fsdp2", 2, method, broken=True, steps=6) for method in LEARNED]
    trials += [trial(f"bf16-{name}", work, name, 2, "anchored", precision="bf16", steps=4) for name in STRATEGIES]
    return run_together(2, trials, roots, work / "gang")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_give_the_curve_of_one(alone, together, strategy, method):
    curve = together[f"{strategy}-{method}"]
    assert len(curve) == 20
    assert farthest(curve, alone[method]) <= TOLERANCE


@pytest.mark.parametrize("method", METHODS)
def test_every_method_changes_the_curve(alone, method):
    assert farthest(alone[method], alone["control"]) > 20 * TOLERANCE


@pytest.mark.parametrize("method", LEARNED)
def test_an_exchange_without_its_reductions_is_seen(alone, together, method):
    assert farthest(together[f"broken-{method}"], alone[method]) > 5 * TOLERANCE


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_half_precision_trains_near_single_precision(alone, together, strategy):
    assert 0 < farthest(together[f"bf16-{strategy}"], alone["anchored"]) < 0.05
