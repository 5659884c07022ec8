"""Method `fit` gives the same weights and the same curve under every strategy: two processes against one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from mergenet_core.spec.job import JobSpec
from mergenet_core.storage.paths import Roots
from tests.distributed.gang import farthest, run_alone, run_together
from tests.distributed.odd import STRATEGIES
from tests.training.tiny import CNN, MLP, image_job, run, text_job

STEPS = 8
WIDTHS: dict[str, dict[str, Any]] = {"mlp": MLP | {"hidden_sizes": [11, 7]}, "cnn": CNN | {"channels": [5, 7]}}


def fit_job(kind: str, **changes: Any) -> JobSpec:
    """A small fit with its stage loss, on 48 unlabelled inputs ."""
    changes |= {"transfer": {"method": "fit"}, "target__data__unlabelled_from_train": True}
    changes["train"] = {"steps": STEPS, "batch_size": 8, "micro_batches": 2, "learning_rate": 1e-3}
    if kind == "bert":
        no_dropout = {f"target__model__config__{name}_dropout_prob": 0.0 for name in ("hidden", "attention_probs")}
        return text_job(**no_dropout, **changes)
    return image_job(WIDTHS[kind], source__train__steps=60, **changes)


def fitting(name: str, kind: str, folder: Path, strategy: str, devices: int) -> dict[str, Any]:
    """A trial for `run_together`; the folder has the trained source already, if the job trains one."""
    job = fit_job(kind, resources={"strategy": strategy, "devices": devices})
    (folder / name).mkdir(parents=True)
    if job.source.trained_first:
        (folder / name / "source").symlink_to(folder / "trained" / "source", target_is_directory=True)
    document = json.loads(job.model_dump_json())
    return {"name": name, "document": document, "trial": "transfer-0", "folder": str(folder / name)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mlp", "cnn", "bert"])
def test_every_strategy_fits_the_weights_and_trains_on_the_curve_of_one_process(
    kind: str, roots: Roots, tmp_path: Path
) -> None:
    if kind != "bert":
        run(fit_job(kind), "source", tmp_path / "trained", roots)
    alone = run_alone([fitting("alone", kind, tmp_path, "single", 1)], roots)["alone"]
    trials = [fitting(name, kind, tmp_path, name, 2) for name in STRATEGIES]
    together = run_together(2, trials, roots, tmp_path / "gang")
    expected = weights(tmp_path / "alone")
    for name in STRATEGIES:
        assert len(together[name]) == STEPS
        if kind != "cnn":  # BatchNorm sees each process's part of a batch alone
            assert farthest(together[name], alone) <= 1e-5, name
        for key, W in weights(tmp_path / name).items():
            assert float((W - expected[key]).abs().max()) <= 1e-5 * float(W.abs().max() + 1), (name, key)


def weights(folder: Path) -> dict[str, Any]:
    """What the trial's fit wrote."""
    return load_file(folder / "trials/transfer-0/fit/model.safetensors")
