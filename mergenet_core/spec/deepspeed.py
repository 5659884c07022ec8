"""The configuration of DeepSpeed: what the service sets from the job, and what a user may add."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from mergenet_core.errors import SpecInvalid
from mergenet_core.spec.job import ResourcesSpec, TrainSpec
from mergenet_core.spec.json_values import JsonObject

OWNED = {
    "train_batch_size": "train.batch_size",
    "train_micro_batch_size_per_gpu": "train.batch_size and train.micro_batches",
    "gradient_accumulation_steps": "train.micro_batches",
    "gradient_clipping": "train.clip_norm",
    "optimizer": "train.optimizer",
    "scheduler": "train.schedule",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "amp": "train.precision",
    "data_types": "train.precision",
    "checkpoint": "nothing: checkpoints are the service's",
    "zero_allow_untested_optimizer": "nothing: the service chooses the optimizer",
    "zero_force_ds_cpu_optimizer": "nothing: the service chooses the optimizer",
    "zero_optimization.stage": "resources.strategy",
    "zero_optimization.offload_optimizer": "resources.offload",
    "zero_optimization.offload_param": "resources.offload",
}
"""Keys that users may not set, and the settings of the job that they follow from."""

BUCKET = 20_000_000
"""How many numbers are reduced or gathered at a time."""
LIVE = 50_000_000
"""How many numbers ZeRO-3 keeps gathered between the forward and the backward pass."""
SIZES = {
    "reduce_bucket_size": BUCKET,
    "allgather_bucket_size": BUCKET,
    "stage3_prefetch_bucket_size": BUCKET,
    "stage3_max_live_parameters": LIVE,
    "stage3_max_reuse_distance": LIVE,
}
"""DeepSpeed's own defaults, up to 10⁹, need gigabytes, and ZeRO-3 would never split a model of that size."""


def check_user_config(config: JsonObject | None) -> None:
    """Refuse keys that the service owns. Raises: `SpecInvalid` naming the job's own setting."""
    for key in _flattened(config or {}):
        owner = next((owned for owned in OWNED if key == owned or key.startswith(f"{owned}.")), None)
        if owner is not None:
            raise SpecInvalid(f"resources.deepspeed.{key} is set by {OWNED[owner]}; remove it there")


def zero_config(resources: ResourcesSpec, train: TrainSpec, processes: int, device: str) -> dict[str, JsonValue]:
    """The configuration of a trial: the service's own settings, with the user's merged in."""
    zero: dict[str, JsonValue] = {"stage": int(resources.strategy.removeprefix("zero"))}
    if device == "cpu":
        zero["overlap_comm"] = False
    if resources.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if resources.offload == "parameters":
        zero["offload_param"] = {"device": "cpu"}
    ours: dict[str, JsonValue] = {
        "train_micro_batch_size_per_gpu": train.batch_size // (processes * train.micro_batches),
        "gradient_accumulation_steps": train.micro_batches,
        "gradient_clipping": train.clip_norm or 0.0,
        "bf16": {"enabled": train.precision == "bf16"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
    }
    return _merged(ours, _merged(resources.deepspeed or {}, {"zero_optimization": {**SIZES}}))


def _merged(ours: JsonObject, theirs: JsonObject) -> dict[str, JsonValue]:
    result = dict(theirs)
    for key, value in ours.items():
        nested = theirs.get(key)
        result[key] = _merged(value, nested) if isinstance(value, dict) and isinstance(nested, Mapping) else value
    return result


def _flattened(config: JsonObject, prefix: str = "") -> list[str]:
    found = []
    for key, value in config.items():
        found.append(f"{prefix}{key}")
        if isinstance(value, Mapping):
            found += _flattened(value, f"{prefix}{key}.")
    return found
