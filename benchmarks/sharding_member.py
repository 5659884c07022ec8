"""One of the processes that `sharding.py` starts: takes a measurement and writes its figures."""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import alternating_step_seconds, anonymous_bytes
from torch import nn

from mergenet_core.models.describe import model_info
from mergenet_core.models.loading import build
from mergenet_core.pairing.pair import pair
from mergenet_core.records.job import Trial
from mergenet_core.spec.job import ResourcesSpec, TrainSpec, TransferSpec
from mergenet_core.spec.parse import parse
from mergenet_core.storage.paths import JobFolder, Roots
from mergenet_core.training.arms import prepare_training
from mergenet_core.training.context import open_trial
from mergenet_core.training.distributed.world import open_world
from mergenet_core.training.engines.engine import named_shards
from mergenet_core.training.engines.strategies import open_engine
from mergenet_core.training.loop import Training
from mergenet_core.training.peak import peak_bytes, reset_peak
from mergenet_core.training.trial import AttemptContext, run_trial
from mergenet_core.transfer.cycle import Transfer, TransferSource
from mergenet_core.transfer.shards.exchange import TRAFFIC
from mergenet_core.transfer.shards.zero3 import Zero3Shard

PIXELS, UNITS, SOURCE_UNITS = 1024, 2816, 1408


class LossRecorder:
    """A trial's reporter that keeps the losses, and its control that requests nothing."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def event(self, type: str, message: str, *, level: str = "info", **data: object) -> None: ...
    def metric(self, step: int, split: str, values: Any) -> None: ...
    def checkpoint(self, checkpoint: Any) -> None: ...
    def begin_step(self) -> None: ...
    def requested(self) -> None:
        return None

    def progress(self, step: int, steps: int, *, loss: float, metric: Any, eta_seconds: Any) -> None:
        self.losses.append(loss)


def exchange(task: dict[str, Any]) -> dict[str, Any]:
    """Numbers that one transfer of a 2816 × 1024 weight exchanges, counted in a step of a real engine."""
    spec = TrainSpec(steps=100, batch_size=4)
    world = open_world(ResourcesSpec(devices=2, strategy=task["strategy"], device="cpu"), "fp32")
    models = {}
    for name, units in (("source", SOURCE_UNITS), ("target", UNITS)):
        config = {"model_type": "mergenet-mlp", "image_size": 32, "num_channels": 1, "hidden_sizes": [units]}
        models[name] = build(config, "image-classification", ("a", "b"), seed=0, overrides={})
    weight = "layers.0.weight"
    named = {"pairs": [{"source": weight, "target": weight}]} if task["method"] == "lpka" else {"include": "no-head"}
    settings = TransferSpec.model_validate({"method": task["method"], "rank": task["rank"], "stop_at": 1.0} | named)
    pairing = pair(model_info(models["source"]), model_info(models["target"]), settings)
    matrices = [matrix for matrix in pairing.pairs if matrix.rank is not None]
    engine = open_engine(models["target"], spec, world)
    source = {name: W.detach() for name, W in models["source"].state_dict().items()}
    transfer = Transfer(TransferSource(source), named_shards(engine), pairing, settings, steps=100, seed=0)
    transfer.start()
    TRAFFIC.numbers = TRAFFIC.calls = 0
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(world.world_rank))
    engine.train(True)
    transfer.before(0)
    engine.begin()
    loss = nn.functional.cross_entropy(engine(pixel_values=images)["logits"], torch.tensor([0, 1]))
    engine.backward(loss, last=True)
    transfer.after_backward(0)
    engine.clip()
    engine.step(1e-3)
    transfer.after_step(0)
    assert [matrix.target for matrix in matrices] == [weight]
    m, n, rank = UNITS, PIXELS, matrices[0].rank or 0
    return {
        "rank": rank,
        "numbers": TRAFFIC.numbers,
        "calls": TRAFFIC.calls,
        "c": TRAFFIC.numbers / (rank * (m + n)),
        "share": TRAFFIC.numbers / (m * n),
    }


def held(task: dict[str, Any]) -> dict[str, Any]:
    """Bytes of parameters that the process holds, and its largest increase of memory while it loaded them."""
    job = parse(task["document"])
    trial = Trial(id="control-0", kind="arm", arm="control", seed=0)
    # a small model first: memory of imports, tokenizer, examples and process group is not the model's
    prepare_training(open_trial(parse(task["small"]), trial, JobFolder(Path(task["folder"])), task["roots"]))
    gc.collect()
    before = anonymous_bytes()
    samples, stop = [before], threading.Event()

    def watch() -> None:
        while not stop.wait(0.001):
            samples.append(anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    training = prepare_training(open_trial(job, trial, JobFolder(Path(task["folder"])), task["roots"]))
    stop.set()
    watcher.join()
    shards = training.engine.shards
    parameters = {name: shard for name, shard in shards.items() if isinstance(shard.parameter, nn.Parameter)}
    kept = sum(
        _bytes(shard.parameter.ds_tensor) if isinstance(shard, Zero3Shard) else _bytes(shard.local().flat)
        for shard in parameters.values()
    )
    masters = sum(_bytes(shard.local().flat) for shard in parameters.values() if isinstance(shard, Zero3Shard))
    full = 4 * training.parameters
    world = training.engine.world
    share = full / world.size
    return {
        "parameters": training.parameters,
        "full_bytes": full,
        "held_bytes": kept,
        "held": kept / share,
        "master_bytes": masters,
        "loading_bytes": max(samples) - before,
        "loading": (max(samples) - before) / share,
        "loading_over_held": (max(samples) - before) / kept,
    }


def peak(task: dict[str, Any]) -> dict[str, Any]:
    """The largest memory of a whole trial's process."""
    job, recorder = parse(task["document"]), LossRecorder()
    trial = Trial(id="transfer-0", kind="arm", arm="transfer", seed=0)
    reset_peak()
    folder = JobFolder(Path(task["folder"]))
    result = run_trial(job, trial, folder, task["roots"], AttemptContext(1, recorder, recorder))
    return {"own_bytes": peak_bytes(torch.device("cpu")), "memory_bytes": result.memory_bytes}


def steps(task: dict[str, Any]) -> dict[str, Any]:
    """Step times of a control and of arms with transfers, alternating in one process."""
    cycle, rounds = task["cycle"], task["rounds"]
    arms: dict[str, Training] = {}
    for name in ("control", *task["methods"]):
        document = json.loads(json.dumps(task["document"]))
        document["train"]["steps"] = 4 * (rounds + cycle)
        document["transfer"] = {"method": "anchored" if name == "control" else name, "cycle": cycle}
        arm = "control" if name == "control" else "transfer"
        trial = Trial(id=f"{arm}-0", kind="arm", arm=arm, seed=0)
        arms[name] = prepare_training(
            open_trial(parse(document), trial, JobFolder(Path(task["folder"])), task["roots"])
        )
    for training in arms.values():
        training.start()
        for _ in range(cycle):  # the optimizer makes its state in its first step
            training.advance()
    seconds = alternating_step_seconds(arms, rounds)
    control = seconds.pop("control")
    figures: dict[str, Any] = {"control_seconds": statistics.fmean(control)}
    for name, own in seconds.items():
        starts = range(0, rounds, cycle)
        ratios = [sum(own[at : at + cycle]) / sum(control[at : at + cycle]) for at in starts]
        if cycle != 8:  # cycle 2: weighted to eight steps with one transfer
            ratios = [(own[at] + 7 * own[at + 1]) / (4 * (control[at] + control[at + 1])) for at in starts]
        figures[name] = {"ratio": statistics.fmean(ratios), "least": min(ratios), "most": max(ratios)}
    return figures


def limited(task: dict[str, Any]) -> dict[str, Any]:
    """A trial whose process `sharding.py` kills when its memory is above the limit."""
    job, recorder = parse(task["document"]), LossRecorder()
    trial = Trial(id="control-0", kind="arm", arm="control", seed=0)
    folder = JobFolder(Path(task["folder"]))
    run_trial(job, trial, folder, task["roots"], AttemptContext(1, recorder, recorder))
    exported = folder.trial("control-0") / "model" / "model.safetensors"
    return {"steps": len(recorder.losses), "exported_bytes": exported.stat().st_size}


MEASUREMENTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "exchange": exchange,
    "held": held,
    "peak": peak,
    "steps": steps,
    "limited": limited,
}


def _bytes(X: torch.Tensor) -> int:
    return X.numel() * X.element_size()


def main(work: Path) -> None:
    torch.set_num_threads(1)
    task = json.loads((work / "task.json").read_text())
    task["roots"] = Roots(tuple(map(Path, task["models"])), tuple(map(Path, task["data"])))
    figures = MEASUREMENTS[task["measurement"]](task)
    (work / f"{os.environ['RANK']}.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
