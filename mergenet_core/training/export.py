"""The result of a trial on disk: the plain target in the Hugging Face layout, and nothing of the adapter in it."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedConfig

from mergenet_core import __version__
from mergenet_core.models.processors import Processor
from mergenet_core.pairing.result import Pairing
from mergenet_core.records.provenance import Provenance
from mergenet_core.spec.job import TransferSpec
from mergenet_core.storage.published_folder import publishing
from mergenet_core.training.checkpoint import written_here
from mergenet_core.training.distributed.sharded_safetensors import save_together
from mergenet_core.training.distributed.shared_folder import publishing_together
from mergenet_core.training.engines.engine import Engine
from mergenet_core.training.engines.tensors import held
from mergenet_core.training.fit.stages import Fitted, boundary_tensors
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


def export_model(engine: Engine, processor: Processor, folder: Path, *, attempt: int, about: Provenance) -> None:
    """Publish the model as it is, in single precision, with its tokenizer or image processor.

    Every process writes the entries that it holds, so that none needs more memory than in training.
    Raises: `StorageFull`.
    """
    with publishing_together(
        engine.world, folder, kind="artifact", step=about["step"], attempt=attempt, roles=ROLES, about=about
    ) as draft:
        save_together(draft / "model.safetensors", written_here(engine, held(engine)), engine.world)
        if engine.world.main:
            config: PreTrainedConfig = engine.module.config
            config.architectures = [type(engine.module).__name__]
            config.save_pretrained(draft)
            processor.save_pretrained(draft)


def export_adapter(transfer: Transfer, spec: TransferSpec, folder: Path, *, attempt: int, about: Provenance) -> None:
    """Publish the adapter next to the model: its tensors, its settings, and which weights it paired.

    Raises: `StorageFull`.
    """
    tensors = {name: tensor.cpu().clone() for name, tensor in transfer.adapter_tensors().items()}
    described = {
        "method": transfer.pairing.method,
        "transfer": spec.model_dump(mode="json", exclude={"distill"}),
        "parameters": transfer.parameters_count,
        "transferred_parameters": transfer.transferred_parameters,
        "tensors": {name: list(tensor.shape) for name, tensor in tensors.items()},
    }
    _publish_adapter(tensors, described, transfer.pairing, folder, attempt=attempt, about=about)


def export_fit(fitted: Fitted, spec: TransferSpec, folder: Path, *, attempt: int, about: Provenance) -> None:
    """Publish what a fit was made with next to the model: the maps at its boundaries, and its settings.

    Raises: `StorageFull`.
    """
    tensors = boundary_tensors(fitted.boundaries)
    described = {
        "method": "fit",
        "transfer": spec.model_dump(mode="json", exclude={"distill"}),
        "transferred_parameters": fitted.pairing.transferable_parameters,
        "boundaries": [{"target": one.target, "source": one.source} for one in fitted.boundaries],
        "tensors": {name: list(tensor.shape) for name, tensor in tensors.items()},
    }
    _publish_adapter(tensors, described, fitted.pairing, folder, attempt=attempt, about=about)


def _publish_adapter(
    tensors: Mapping[str, Tensor],
    described: Mapping[str, object],
    pairing: Pairing,
    folder: Path,
    *,
    attempt: int,
    about: Provenance,
) -> None:
    with publishing(folder, kind="artifact", step=about["step"], attempt=attempt, roles=ROLES, about=about) as draft:
        save_file(dict(tensors), draft / "adapter.safetensors")
        (draft / "adapter.json").write_text(json.dumps(described, indent=1))
        (draft / "pairing.json").write_text(pairing.model_dump_json(indent=1))


def environment() -> dict[str, str]:
    """Versions of Python and of the packages that affect a result."""
    packages = ("torch", "transformers", "accelerate", "datasets", "safetensors", "tokenizers")
    found = {"mergenet": __version__, "python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
