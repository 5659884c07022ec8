"""What training over several processes costs: exchanges, memory, time, and whether the estimate is right.

    python benchmarks/sharding.py [--parts exchange,held,peak,steps,limited] [--only ddp,fsdp2,zero3]

Starts two processes for each figure, on this machine's CPU, over gloo; needs the example's fetched models and data.
What was measured is kept in docs/evidence/sharding.json part by part, and sharding.md is written from all of it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from sharding_page import page
from transformers import BertConfig, BertModel

from mergenet_core.planning.make_plan import make_plan
from mergenet_core.spec.parse import parse
from mergenet_core.storage.paths import Roots
from mergenet_core.training.export import environment

ROOT = Path(__file__).parent.parent
EVIDENCE = ROOT / "docs" / "evidence"
PARTS = ("exchange", "held", "peak", "steps", "limited")
STRATEGIES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
RANKS = (8, 64, None)
PATIENCE_SECONDS = 900
LIMIT_BYTES = 2_200_000_000
BASE = {"model_type": "bert", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
SMALL = {"model_type": "bert", "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
MODELS = {
    "bert 4×384, 18 M": {"hidden_size": 384, "num_hidden_layers": 4, "num_attention_heads": 6},
    "bert 8×512, 42 M": {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8},
    "bert 12×768, 109 M": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--only", default=None, help="strategies, comma-separated")
    wanted = parser.parse_args()
    only = wanted.only.split(",") if wanted.only else None
    kept = EVIDENCE / "sharding.json"
    with tempfile.TemporaryDirectory() as place:
        world = World(Path(place))
        if kept.exists():
            known = json.loads(kept.read_text())
            for name, one in known.get("peak", {}).items():
                known["peak"][name] = beside_estimate(world, name, one["measured_bytes"])
            write(known)
        for part in filter(None, wanted.parts.split(",")):
            begun = time.monotonic()
            for name, found in {
                "exchange": exchange, "held": held, "peak": peak, "steps": steps, "limited": limited,
            }[part](world, only):  # fmt: skip
                known = json.loads(kept.read_text()) if kept.exists() else {}
                known.setdefault(part, {})[name] = found
                known["versions"] = environment() | {"processes": "2", "threads": "1 a process", "backend": "gloo"}
                write(known)
                print(part, name, json.dumps(found), flush=True)
            print(f"{part}: {time.monotonic() - begun:.0f} s", flush=True)


def write(known: dict[str, Any]) -> None:
    (EVIDENCE / "sharding.json").write_text(json.dumps(known, indent=1) + "\n")
    (EVIDENCE / "sharding.md").write_text(page(known))


class World:
    """Models, data and working folders of the measurements."""

    def __init__(self, place: Path) -> None:
        self.place, self.count, self.most_bytes = place, 0, 0
        self.roots = Roots((ROOT / "models", place / "models"), (ROOT / "data", place / "data"))
        (place / "data").mkdir()
        words = [word for word in (ROOT / "models/all-minilm-l6/vocab.txt").read_text().split() if word.isalpha()]
        draw = random.Random(0)
        for split, count in (("train", 160), ("test", 128)):
            rows = ({"text": " ".join(draw.choices(words, k=80)), "label": str(row % 2)} for row in range(count))
            (place / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def saved(self) -> str:
        """The folder of a saved 109M-parameter BERT with the example's tokenizer."""
        folder = self.place / "models" / "base"
        if not folder.exists():
            config = BertConfig(**{key: value for key, value in BASE.items() if key != "model_type"})
            BertModel(config).save_pretrained(folder)
            for file in (ROOT / "models/all-minilm-l6").glob("*okenizer*"):
                (folder / file.name).write_bytes(file.read_bytes())
            for name in ("vocab.txt", "special_tokens_map.json"):
                if (ROOT / "models/all-minilm-l6" / name).exists():
                    (folder / name).write_bytes((ROOT / "models/all-minilm-l6" / name).read_bytes())
        return "base"

    def job(self, target: dict[str, Any], strategy: str, devices: int = 2, **train: Any) -> dict[str, Any]:
        return {
            "name": "sharding",
            "source": {"model": {"path": "all-minilm-l6"}},
            "target": {
                "model": target,
                "task": "text-classification",
                "data": {"train": "train.jsonl", "test": "test.jsonl", "max_length": 32, "validation_limit": 32},
            },
            "transfer": {"method": "anchored"},
            "train": {"steps": 3, "batch_size": 8, "eval_every": 2, "checkpoint_every": 100} | train,
            "resources": {"strategy": strategy, "devices": devices, "device": "cpu"},
        }

    def run(self, part: str, size: int = 2, limit_bytes: int | None = None, **told: Any) -> list[dict[str, Any]]:
        """What each of so many processes saw; nothing where one went over the limit."""
        self.count += 1
        work = self.place / str(self.count)
        work.mkdir()
        folders = {"models": [str(path) for path in self.roots.models], "data": [str(path) for path in self.roots.data]}
        (work / "told.json").write_text(json.dumps(told | folders | {"part": part, "folder": str(work / "job")}))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        shared |= {"PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "2"}
        processes = []
        for rank in range(size):
            own = {"WORLD_SIZE": str(size), "RANK": str(rank), "LOCAL_RANK": str(rank)}
            log = (work / f"{rank}.log").open("w")
            command = [sys.executable, str(ROOT / "benchmarks" / "sharding_member.py"), str(work)]
            environment = os.environ | shared | own
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
        try:
            if limit_bytes is not None:
                self.most_bytes = most_held(processes, limit_bytes)
                if self.most_bytes > limit_bytes:
                    return []
            codes = [process.wait(timeout=PATIENCE_SECONDS) for process in processes]
        finally:
            for process in processes:
                process.kill()
        if any(codes):
            raise SystemExit("\n".join((work / f"{rank}.log").read_text()[-3000:] for rank in range(size)))
        return [json.loads((work / f"{rank}.json").read_text()) for rank in range(size)]


def exchange(world: World, only: list[str] | None) -> Any:
    for strategy in only or ("fsdp2", "zero3"):
        for method in ("lpka", "anchored"):
            for rank in RANKS:
                found = world.run("exchange", strategy=strategy, method=method, rank=rank)
                yield f"{strategy} {method} r={found[0]['rank']}", found[0]


def held(world: World, only: list[str] | None) -> Any:
    for strategy in only or ("ddp", "fsdp2", "zero3"):
        document = world.job({"path": world.saved()}, strategy)
        small = world.job({"config": SMALL | {"intermediate_size": 512}}, strategy)
        found = world.run("held", document=document, small=small)
        yield strategy, max(found, key=lambda one: one["loading_bytes"])


def peak(world: World, only: list[str] | None) -> Any:
    for name in MODELS:
        for strategy in only or ("ddp", "fsdp2", "zero2"):
            found = world.run("peak", document=grown(world, name, strategy))
            yield f"{name}, {strategy}", beside_estimate(world, f"{name}, {strategy}", found[0]["memory_bytes"])


def grown(world: World, name: str, strategy: str) -> dict[str, Any]:
    sizes = MODELS[name]
    config = {"model_type": "bert", "intermediate_size": 4 * sizes["hidden_size"]} | sizes
    return world.job({"config": config}, strategy)


def beside_estimate(world: World, name: str, measured: int) -> dict[str, Any]:
    """A measured peak with the estimate as it is now, which costs nothing."""
    model, strategy = name.rsplit(", ", 1)
    plan = make_plan(parse(grown(world, model, strategy)), world.roots, world.place, [])
    needed = plan.estimate.under(strategy)
    assert needed is not None
    told = {"estimated_bytes": needed.memory_bytes, "measured_bytes": measured}
    return told | {"off": needed.memory_bytes / measured - 1}


def steps(world: World, only: list[str] | None) -> Any:
    example = {"config": SMALL | {"intermediate_size": 512}}
    for strategy in only or ("single", *STRATEGIES):
        size = 1 if strategy == "single" else 2
        document = world.job(example, strategy, size, batch_size=32)
        document["target"]["data"]["max_length"] = 48
        told = {"document": document, "cycle": 8, "rounds": 24, "methods": ["anchored", "lpka"]}
        yield f"example's pair, {strategy}", world.run("steps", size, **told)[0]
    for strategy in [name for name in only or STRATEGIES if name != "single"]:
        for method in ("anchored", "lpka"):
            yield f"109 M, {strategy}, {method}", large_steps(world, strategy, method)


def large_steps(world: World, strategy: str, method: str) -> Any:
    document = world.job({"config": BASE | {"intermediate_size": 3072}}, strategy, batch_size=16)
    document["target"]["data"]["max_length"] = 64
    return world.run("steps", 2, document=document, cycle=2, rounds=12, methods=[method])[0]


def limited(world: World, only: list[str] | None) -> Any:
    for strategy, size in (("single", 1), ("fsdp2", 2)):
        document = world.job({"path": world.saved()}, strategy, size)
        found = world.run("limited", size, limit_bytes=LIMIT_BYTES, document=document)
        about = {"most_bytes": world.most_bytes, "limit_bytes": LIMIT_BYTES, "processes": size}
        yield strategy, (found[0] if found else {}) | about


def most_held(processes: list[subprocess.Popen[bytes]], limit_bytes: int) -> int:
    """The most anonymous memory that one of them is seen with until they end; beyond the limit all are killed."""
    most, deadline = 0, time.monotonic() + PATIENCE_SECONDS
    while any(process.poll() is None for process in processes):
        most = max([most, *(anonymous_bytes(process.pid) for process in processes)])
        if most > limit_bytes or time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(0.002)
    return most


def anonymous_bytes(pid: int) -> int:
    """What a process holds that no file stands behind; 0 when it has ended."""
    with contextlib.suppress(OSError, IndexError):
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) * 1024
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
