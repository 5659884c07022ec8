"""Method `fit` gives the same weights and the same curve under every strategy: two processes against one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from mergenet_core.storage.paths import Roots
from tests.distributed.gang import farthest, run_alone, run_together
from tests.distributed.odd import STRATEGIES
from tests.training.tiny import MLP, image_job, run

STEPS = 8
ODD = MLP | {"hidden_sizes": [11, 7]}


def fitting(name: str, folder: Path, strategy: str, devices: int) -> dict[str, Any]:
    """A fit with its stage loss; the folder has the trained source already."""
    job = image_job(
        ODD,
        transfer={"method": "fit", "fit": {"inputs": 200}},
        target__data__unlabelled_from_train=True,
        source__train__steps=60,
        train={"steps": STEPS, "batch_size": 8, "micro_batches": 2, "learning_rate": 1e-3},
        resources={"strategy": strategy, "devices": devices},
    )
    (folder / name).mkdir(parents=True)
    (folder / name / "source").symlink_to(folder / "trained" / "source", target_is_directory=True)
    return {
        "name": name,
        "document": json.loads(job.model_dump_json()),
        "trial": "transfer-0",
        "folder": str(folder / name),
    }


@pytest.mark.slow
def test_every_strategy_fits_the_weights_and_trains_on_the_curve_of_one_process(roots: Roots, tmp_path: Path) -> None:
    job = image_job(ODD, source__train__steps=60)
    run(job, "source", tmp_path / "trained", roots)
    alone = run_alone([fitting("alone", tmp_path, "single", 1)], roots)["alone"]
    together = run_together(2, [fitting(name, tmp_path, name, 2) for name in STRATEGIES], roots, tmp_path / "gang")
    fits = {
        name: load_file(tmp_path / name / "trials/transfer-0/fit/model.safetensors") for name in ("alone", *STRATEGIES)
    }
    for name in STRATEGIES:
        assert len(together[name]) == STEPS
        assert farthest(together[name], alone) <= 1e-5, name
        for key, W in fits[name].items():
            assert float((W - fits["alone"][key]).abs().max()) <= 1e-5 * float(W.abs().max() + 1), (name, key)
