"""The result of a trial on disk: the plain target in the Hugging Face layout, and nothing of the adapter in it."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from mergenet_core import __version__
from mergenet_core.pairing.pair import Pairing
from mergenet_core.records.provenance import Provenance
from mergenet_core.spec.job import TransferSpec
from mergenet_core.storage.published_folder import publishing
from mergenet_core.training.checkpoint import parts, publishing_together
from mergenet_core.training.distributed.engines import Engine
from mergenet_core.training.distributed.sharded_safetensors import save_together
from mergenet_core.transfer.cycle import Transfer

ROLES = {
    "adapter.safetensors": "adapter",
    "adapter.json": "adapter",
    "pairing.json": "adapter",
    "report.json": "report",
    "README.md": "card",
    "job.json": "spec",
    "config.json": "model",
    ".safetensors": "model",
    "model.safetensors.index.json": "model",
    "preprocessor_config.json": "tokenizer",
    "tokenizer.json": "tokenizer",
    "tokenizer_config.json": "tokenizer",
    "vocab.txt": "tokenizer",
}


def export_model(engine: Engine, processor: Any, folder: Path, *, attempt: int, about: Provenance) -> None:
    """Publish the model as it is, in single precision, with its tokenizer or image processor. Raises: `StorageFull`.

    Every process writes what it holds into the files, so no process needs more memory than in training.
    """
    with publishing_together(
        engine.world, folder, kind="artifact", step=int(about["step"]), attempt=attempt, roles=ROLES, about=about
    ) as draft:
        save_together(draft / "model.safetensors", parts(engine, engine.held()), engine.world)
        if engine.world.main:
            config: Any = engine.module.config
            config.architectures = [type(engine.module).__name__]
            config.save_pretrained(draft)
            processor.save_pretrained(draft)


def export_adapter(
    transfer: Transfer, pairing: Pairing, spec: TransferSpec, folder: Path, *, attempt: int, about: Provenance
) -> None:
    """Publish the adapter beside the model: its tensors, how it was set, and which weights it paired."""
    tensors = {name: tensor.cpu().clone() for name, tensor in transfer.adapter_tensors().items()}
    described = {
        "method": pairing.method,
        "transfer": spec.model_dump(mode="json", exclude={"distill"}),
        "parameters": transfer.parameters_count,
        "transferred_parameters": transfer.transferred_parameters,
        "tensors": {name: list(tensor.shape) for name, tensor in tensors.items()},
    }
    with publishing(
        folder, kind="artifact", step=int(about["step"]), attempt=attempt, roles=ROLES, about=about
    ) as draft:
        save_file(tensors, draft / "adapter.safetensors")
        (draft / "adapter.json").write_text(json.dumps(described, indent=1))
        (draft / "pairing.json").write_text(pairing.model_dump_json(indent=1))


def environment() -> dict[str, str]:
    """Versions of what decides a result."""
    packages = ("torch", "transformers", "accelerate", "datasets", "safetensors", "tokenizers")
    found = {"mergenet": __version__, "python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
