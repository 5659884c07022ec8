"""Every task is distilled on the same curve under every strategy, on labelled and unlabelled inputs together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mergenet_core.storage.paths import Roots
from tests.distributed.gang import farthest, run_alone, run_together
from tests.distributed.odd import STRATEGIES
from tests.training.distilling import CASES, distilling_job, write_world
from tests.training.tiny import run

Curves = dict[str, dict[int, float]]
STEPS = 6
TOLERANCE = 1e-6
WHOLE = "image-text-retrieval"
"""The task whose batches are never divided, so that it runs on one device."""
PAIRS = [(task, strategy) for task in CASES for strategy in STRATEGIES]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Roots:
    torch.set_num_threads(1)
    return write_world(tmp_path_factory.mktemp("distilling"))


@pytest.fixture(scope="module")
def sources(world: Roots, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for name, case in CASES.items():
        folders[name] = tmp_path_factory.mktemp("source")
        run(distilling_job(case, pool=False), "source", folders[name], world)
    return folders


def entry(task: str, strategy: str, sources: dict[str, Path], work: Path) -> dict[str, Any]:
    """The arm `distill` of a task under a strategy; on one device where its batches are not divided."""
    devices = 1 if strategy == "single" or task == WHOLE else 2
    micro_batches = 1 if task == WHOLE else 2
    train = {"steps": STEPS, "batch_size": 8, "micro_batches": micro_batches, "learning_rate": 1e-3, "clip_norm": 0.5}
    job = distilling_job(
        CASES[task], pool=True, train=train, resources={"strategy": strategy, "devices": devices, "device": "cpu"}
    )
    name = f"{task}-{strategy}"
    folder = work / name
    folder.mkdir(parents=True)
    (folder / "source").symlink_to(sources[task] / "source")
    return {
        "name": name,
        "document": json.loads(job.model_dump_json()),
        "trial": "distill-0",
        "folder": str(folder),
    }


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("curves")


@pytest.fixture(scope="module")
def curves(world: Roots, sources: dict[str, Path], work: Path) -> Curves:
    alone = run_alone([entry(task, "single", sources, work) for task in CASES], world)
    two, one = (
        [entry(*pair, sources, work) for pair in PAIRS if (pair[0] == WHOLE) is whole] for whole in (False, True)
    )
    return alone | run_together(2, two, world, work / "two") | run_together(1, one, world, work / "one")


@pytest.mark.parametrize(("task", "strategy"), PAIRS)
def test_every_strategy_distils_on_the_curve_of_one_process(curves: Curves, task: str, strategy: str) -> None:
    found = curves[f"{task}-{strategy}"]
    assert len(found) == STEPS
    assert farthest(found, curves[f"{task}-single"]) <= TOLERANCE


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_temperature_is_saved_without_an_axis(curves: Curves, work: Path, strategy: str, world: Roots) -> None:
    """CLIP's, which FSDP2 and DeepSpeed take with one axis only; the model is opened as it was trained."""
    entries = {
        name: load_file(work / f"{WHOLE}-{name}" / "trials" / "distill-0" / "model" / "model.safetensors")
        for name in ("single", strategy)
    }
    assert entries[strategy]["logit_scale"].shape == ()
    assert {name: W.shape for name, W in entries[strategy].items()} == {
        name: W.shape for name, W in entries["single"].items()
    }
    torch.testing.assert_close(entries[strategy], entries["single"], atol=1e-4, rtol=1e-3)
