"""Models from a folder, the hub or a config, loaded without running any code of theirs.

Only safetensors, only architectures of transformers and the built-in ones, no NaN; anything else is refused by name.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from mergenet_core.architectures.check_config import check_config
from mergenet_core.architectures.check_settings import check_keys
from mergenet_core.architectures.registry import is_label_head
from mergenet_core.architectures.two_tower_config import tower_configs, with_defaults
from mergenet_core.errors import ModelRefused, PathRefused
from mergenet_core.model_files.read_model import inspect_model
from mergenet_core.models.saved_tensors import refuse_not_finite
from mergenet_core.models.transformers_types import ModelConfig, auto_class, config_of_type, saved_config
from mergenet_core.spec.job import ModelSpec
from mergenet_core.spec.json_values import JsonObject
from mergenet_core.spec.task_info import TASKS, TaskName
from mergenet_core.storage.paths import Roots

HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model"]
LAYER_SWAPPING_KEYS = ("quantization_config", "attn_implementation", "_attn_implementation")
"""Config keys that replace a model's layers, or fetch kernels from the hub."""
SHARED_LABELS = {task.fixed_labels for task in TASKS.values()} - {None}
"""Label spaces of heads that mean the same in every model: over a vocabulary, over a span's ends."""
_DEVIATION = 0.02


def folder_of(spec: ModelSpec, roots: Roots, field: str) -> Path | None:
    """The folder that holds a model, or the file that is its pack; None for a model from a config.

    Raises: `PathRefused` outside the roots, or where the hub is closed.
    """
    if spec.path is not None:
        return roots.model(spec.path, f"{field}.path")
    if spec.pack is not None:
        return roots.pack(spec.pack, f"{field}.pack")
    if spec.hub is None:
        return None
    if not roots.hub:
        raise PathRefused(
            f"{field}.hub: {spec.hub!r} needs the hub, which is closed here; copy the model and give path"
        )
    return Path(snapshot_download(spec.hub, revision=spec.revision, allow_patterns=HUB_FILES))


def load_target(
    spec: ModelSpec,
    task: TaskName,
    labels: tuple[str, ...],
    roots: Roots,
    *,
    seed: int,
    overrides: Mapping[str, int | None] | None = None,
    field: str = "target.model",
) -> nn.Module:
    """The model to be trained, in float32, with a head for `labels`; the same seed gives the same weights.

    `overrides` are config values that follow from the data (vocabulary size, image size). A pretrained head is kept
    where it names the same labels, else it is initialised anew. Raises: `ModelRefused`.
    """
    folder = folder_of(spec, roots, field)
    if folder is not None:
        return load_trained(folder, task, labels, seed=seed)
    return build(spec.config or {}, task, labels, seed=seed, overrides=overrides or {}, where=f"{field}.config")


def build(
    config: JsonObject,
    task: TaskName,
    labels: tuple[str, ...],
    *,
    seed: int,
    overrides: Mapping[str, int | None],
    where: str = "config",
) -> nn.Module:
    """A model from scratch. Raises: `ModelRefused` for keys, sizes and types that the architecture does not have."""
    check_config(dict(config), task, where=where)
    if config.get("num_labels", len(labels)) != len(labels):
        raise ModelRefused(f"{where}: num_labels {config['num_labels']} but the data has {len(labels)} labels; omit it")
    _check_settings(config, where)
    for key, tower in tower_configs(config).items():
        _check_settings(tower, f"{where}.{key}")
    settings = _with_data_settings(config, overrides)
    try:
        made = config_of_type(str(config["model_type"]), **settings, **_label_names(labels))
        torch.manual_seed(seed)
        model: nn.Module = auto_class(task).from_config(made, dtype=torch.float32)
    except (
        StrictDataclassError,
        TypeError,
        ValueError,
        RuntimeError,
        ZeroDivisionError,
        KeyError,
        AssertionError,
    ) as error:
        reason = " ".join(str(error).split())
        raise ModelRefused(f"{where}: {config['model_type']} cannot be built from these values: {reason}") from error
    return model


def _check_settings(config: JsonObject, where: str) -> None:
    """Refuse settings that the model type does not have or that the service sets. Raises: `ModelRefused`."""
    _refuse_swapped_layers(config, where)
    check_keys(config, _known_settings(str(config["model_type"])), where=where)


def _with_data_settings(config: JsonObject, overrides: Mapping[str, int | None]) -> dict[str, object]:
    """The settings, and those that follow from the data, each in the config of the model or tower that has it."""
    towers = tower_configs(config) or {"text_config": dict(config), "vision_config": dict(config)}
    implied = {
        key: {name: value for name, value in overrides.items() if name in _known_settings(str(tower["model_type"]))}
        for key, tower in towers.items()
    }
    filled = with_defaults(config, implied["text_config"], implied["vision_config"])
    return {key: value for key, value in filled.items() if key not in ("model_type", "num_labels")}


def load_trained(folder: Path, task: TaskName, labels: tuple[str, ...], *, seed: int) -> nn.Module:
    """A saved model with a head for `labels`: its own where it names the same ones, else a new one by `seed`.

    Raises: `ModelRefused` for pickled weights, code of its own, an unknown type, or NaN in a weight.
    """
    config = trained_config(folder, task, labels)
    torch.manual_seed(seed)
    model: nn.Module
    model, loaded = auto_class(task).from_pretrained(
        folder,
        config=config,
        dtype=torch.float32,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    prefix = body_prefix(model)
    _refuse_other_sizes(loaded["mismatched_keys"], prefix, folder.name)
    refuse_not_finite(model.state_dict().items(), folder.name)
    new = set(loaded["missing_keys"])
    if is_for_other_labels(folder, labels):
        new |= {name for name in model.state_dict() if is_head(name, prefix)}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in new:
                weight.copy_(initial_weight(name, tuple(weight.shape), config, seed))
    model.train()
    return model


def trained_config(folder: Path, task: TaskName, labels: tuple[str, ...]) -> ModelConfig:
    """A saved model's config with a head for `labels`. Raises: `ModelRefused`."""
    info = inspect_model(folder, task)
    _refuse_swapped_layers(info.config, folder.name)
    try:
        return saved_config(folder, return_dict=True, **_label_names(labels))
    except (StrictDataclassError, TypeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ModelRefused(
            f"{folder.name}: config.json does not describe a {info.config['model_type']}: {reason}"
        ) from error


def initial_weight(name: str, shape: tuple[int, ...], config: object, seed: int) -> Tensor:
    """The initial values of a weight that no file has; they follow from its name and the seed alone.

    N(0, σ²) with the config's `initializer_range`, ones for a norm's gain, zeros for a bias.
    """
    if len(shape) <= 1:
        return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    deviation = getattr(config, "initializer_range", None) or _DEVIATION
    return torch.randn(shape, generator=generator) * float(deviation)


def is_for_other_labels(folder: Path, labels: tuple[str, ...]) -> bool:
    """Whether a saved head has to be initialised anew for `labels`."""
    return labels not in SHARED_LABELS and inspect_model(folder).labels != labels


def _label_names(labels: tuple[str, ...]) -> dict[str, object]:
    """Config values that name the labels; none for a task without labels."""
    names = dict(enumerate(labels))
    return {"id2label": names, "label2id": {name: row for row, name in names.items()}} if names else {}


def body_prefix(model: nn.Module) -> str:
    """The prefix that distinguishes the weights of a model's body from its head's; empty where it has no head."""
    prefix = str(model.base_model_prefix)
    return prefix if any(name.startswith(f"{prefix}.") for name in model.state_dict()) else ""


def names_in_files(name: str, prefix: str) -> list[str]:
    """The names that a weight can have in a file: the model's, the bare model's, the one in a model with a head."""
    return [name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}"]


def names_not_in_files(model: nn.Module, folder: Path) -> list[str]:
    """The model's weights that none of the folder's files has, under any name of theirs."""
    saved, prefix = inspect_model(folder).shapes, body_prefix(model)
    names: dict[int, list[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(weight), []).append(name)
    return [
        tied[0]
        for tied in names.values()
        if not any(stored in saved for name in tied for stored in names_in_files(name, prefix))
    ]


def is_head(name: str, prefix: str) -> bool:
    """Whether a weight belongs to the head, which depends on the label space."""
    return is_label_head(name) or (prefix != "" and not name.startswith(f"{prefix}."))


def _refuse_other_sizes(
    mismatched: Iterable[tuple[str, Iterable[int], Iterable[int]]], prefix: str, where: str
) -> None:
    """Refuse weights of another size that are not of the head: they would silently be initialised anew."""
    for name, saved, wanted in mismatched:
        if not is_head(name, prefix):
            raise ModelRefused(
                f"{where}: {name} is {_sides(saved)} in the weights, {_sides(wanted)} by config.json; "
                "give the config that the weights were saved with"
            )


def _sides(shape: Iterable[int]) -> str:
    return "×".join(map(str, shape))


def _refuse_swapped_layers(config: JsonObject, where: str) -> None:
    found = [key for key in LAYER_SWAPPING_KEYS if config.get(key) is not None]
    if found:
        raise ModelRefused(
            f"{where}: {found[0]} replaces the layers that a transfer works on; remove it from the config"
        )


def _known_settings(model_type: str) -> set[str]:
    return set(config_of_type(model_type).to_dict()) | {"architectures", "torch_dtype", "transformers_version"}
