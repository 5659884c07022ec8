"""One process of two: counts what one transfer exchanges for one weight (started by `test_traffic.py`)."""

import json
import os
import sys
from pathlib import Path

import torch

from mergenet_core.models.describe import model_info
from mergenet_core.models.loading import build
from mergenet_core.pairing.pair import pair
from mergenet_core.spec.job import ResourcesSpec, TrainSpec, TransferSpec
from mergenet_core.training.distributed.world import open_world
from mergenet_core.training.engines.engine import named_shards
from mergenet_core.training.engines.strategies import open_engine
from mergenet_core.transfer.cycle import Transfer, TransferSource
from mergenet_core.transfer.shards.exchange import TRAFFIC

SHAPE = (352, 256)
RANK = 8
WEIGHT = "layers.0.weight"


def main(work: Path) -> None:
    torch.set_num_threads(1)
    found = {}
    for strategy in ("fsdp2", "zero3"):
        for method, named in (("lpka", {"pairs": [{"source": WEIGHT, "target": WEIGHT}]}), ("anchored", {})):
            spec = TransferSpec.model_validate({"method": method, "rank": RANK, "include": "no-head"} | named)
            found[f"{strategy} {method}"] = count(strategy, spec)
    (work / f"{os.environ['RANK']}.json").write_text(json.dumps(found))


def count(strategy: str, spec: TransferSpec) -> int:
    train = TrainSpec(steps=10, batch_size=4)
    resources = ResourcesSpec.model_validate({"devices": 2, "strategy": strategy, "device": "cpu"})
    source, target = (
        build(
            {"model_type": "mergenet-mlp", "image_size": 16, "num_channels": 1, "hidden_sizes": [units]},
            "image-classification",
            ("a", "b"),
            seed=0,
            overrides={},
        )
        for units in (SHAPE[0] // 2, SHAPE[0])
    )
    pairing = pair(model_info(source), model_info(target), spec)
    assert [one.target for one in pairing.pairs if one.rank is not None] == [WEIGHT]
    engine = open_engine(target, train, open_world(resources, "fp32"))
    weights = {name: W.detach() for name, W in source.state_dict().items()}
    transfer = Transfer(TransferSource(weights), named_shards(engine), pairing, spec, steps=10, seed=0)
    transfer.start()
    TRAFFIC.numbers = 0
    engine.train(True)
    transfer.before(0)
    engine.begin()
    logits = engine(pixel_values=torch.rand(2, 1, 16, 16))["logits"]
    engine.backward(torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1])), last=True)
    transfer.after_backward(0)
    engine.step(1e-3)
    transfer.after_step(0)
    return TRAFFIC.numbers


if __name__ == "__main__":
    main(Path(sys.argv[1]))
