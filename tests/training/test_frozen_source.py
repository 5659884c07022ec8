"""The cost of a frozen source in training: no forward pass, and memory for the factors of its weights only."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from mergenet_core.storage.paths import Roots
from mergenet_core.training.loop import Training
from tests.training.tiny import prepared, run, text_job, write_bert

METHODS = ("project", "anchored", "lpka")


def job(method: str) -> Any:
    small = {"width": 4, "heads": 1, "layers": 1} if method == "lpka" else {}
    transfer = {"method": method, "cycle": 2, "stop_at": 1.0, "rank": 2} | small
    return text_job(source__model__path="large", transfer=transfer)


@pytest.fixture(scope="module")
def roots(roots: Roots, tmp_path_factory: pytest.TempPathFactory) -> Roots:
    """With a source that is much larger than an adapter."""
    folder = tmp_path_factory.mktemp("models")
    write_bert(folder / "large", hidden_size=96, num_hidden_layers=4, intermediate_size=384)
    return Roots((folder,), roots.data)


def passes(arm: str, method: str, folder: Path, roots: Roots) -> list[str]:
    called: list[str] = []

    def called_by(module: nn.Module, _: Any) -> None:
        called.append(type(module).__name__)

    hook = register_module_forward_pre_hook(called_by)
    try:
        run(job(method), f"{arm}-0", folder, roots)
    finally:
        hook.remove()
    return called


@pytest.mark.parametrize("method", METHODS)
def test_the_source_runs_no_module(method: str, tmp_path: Path, roots: Roots) -> None:
    """The sham trains as the transfer does, and has no linear probe of the source behind its training."""
    control, sham = (passes(arm, method, tmp_path / arm, roots) for arm in ("control", "sham"))
    assert control.count("BertForSequenceClassification") > 6
    assert [name for name in sham if "Bert" in name] == [name for name in control if "Bert" in name]


def tensors() -> dict[int, int]:
    """The bytes of the storage of every tensor in memory, by address."""
    gc.collect()
    alive = [one.untyped_storage() for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    return {storage.data_ptr(): storage.nbytes() for storage in alive}


def trained(arm: str, method: str, folder: Path, roots: Roots) -> tuple[Training, int]:
    """An arm after two transfers, each followed by a step without one, and the bytes that it holds."""
    before = tensors()
    training = prepared(job(method), f"{arm}-0", folder, roots)
    training.start()
    for _ in range(4):
        training.advance()
    return training, sum(held for address, held in tensors().items() if address not in before)


@pytest.mark.parametrize("method", METHODS)
def test_only_the_factors_and_the_adapter_stay_in_memory(method: str, tmp_path: Path, roots: Roots) -> None:
    _, without = trained("control", method, tmp_path, roots)
    training, held = trained("transfer", method, tmp_path, roots)
    transfer = training.transfer
    assert transfer is not None
    factors = sum(X.nbytes for name, X in transfer.adapter_tensors().items() if name.startswith("source."))
    learned = 3 * 4 * transfer.parameters_count  # AdamW's two moments
    steps = 4 * len(transfer.adapter_tensors())
    source = sum(X.nbytes for X in load_file(roots.models[0] / "large" / "model.safetensors").values())
    maps = 12_000  # of the projection: 96 × 16 numbers for the stream, and which units are which
    most = factors + learned + steps + maps
    assert held - without <= most < source / 4
