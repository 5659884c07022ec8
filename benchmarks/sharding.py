"""What training over several processes costs: exchanges, memory, time, and whether the estimate is right.

    python benchmarks/sharding.py [--measure exchange,held,peak,steps,limited] [--strategies ddp,fsdp2,zero3]

Starts two processes for each figure, on this machine's CPU, over gloo; needs the example's fetched models and data.
Each measurement is added to docs/evidence/sharding.json, and sharding.md is written from all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from measuring import EVIDENCE, ROOT, anonymous_bytes, write_evidence
from sharding_page import page
from transformers import BertConfig, BertModel

from mergenet_core.planning.make_plan import make_plan
from mergenet_core.spec.parse import parse
from mergenet_core.storage.paths import Roots
from mergenet_core.training.export import environment

STRATEGIES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
RANKS = (8, 64, None)
TIMEOUT_SECONDS = 900
LIMIT_BYTES = 2_200_000_000
Figures = Iterator[tuple[str, dict[str, Any]]]
"""The figures of a measurement by name, as they are taken."""
BASE = {"model_type": "bert", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
SMALL = {"model_type": "bert", "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
MODELS = {
    "bert 4×384, 18 M": {"hidden_size": 384, "num_hidden_layers": 4, "num_attention_heads": 6},
    "bert 8×512, 42 M": {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8},
    "bert 12×768, 109 M": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
}


def main() -> None:
    """Take the chosen measurements and write the page after each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--measure", default=",".join(MEASUREMENTS), help="comma-separated; empty: strategies write the page"
    )
    parser.add_argument("--strategies", default=None, help="comma-separated; default: those of each measurement")
    options = parser.parse_args()
    strategies = options.strategies.split(",") if options.strategies else None
    log = EVIDENCE / "sharding.json"
    known: dict[str, Any] = json.loads(log.read_text()) if log.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(Path(folder))
        for name, figure in known.get("peak", {}).items():
            known["peak"][name] = with_estimate(setup, name, figure["measured_bytes"])
        for measurement in filter(None, options.measure.split(",")):
            start = time.monotonic()
            for name, figure in MEASUREMENTS[measurement](setup, strategies):
                known.setdefault(measurement, {})[name] = figure
                known["versions"] = environment() | {"processes": "2", "threads": "1 per process", "backend": "gloo"}
                write_evidence("sharding", known, page(known))
                print(measurement, name, json.dumps(figure), flush=True)
            print(f"{measurement}: {time.monotonic() - start:.0f} s", flush=True)
    write_evidence("sharding", known, page(known))


class Setup:
    """Models, data and working folders of the measurements."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs, self.most_bytes = folder, 0, 0
        self.roots = Roots((ROOT / "models", folder / "models"), (ROOT / "data", folder / "data"))
        (folder / "data").mkdir()
        words = [word for word in (ROOT / "models/all-minilm-l6/vocab.txt").read_text().split() if word.isalpha()]
        draw = random.Random(0)
        for split, count in (("train", 160), ("test", 128)):
            rows = ({"text": " ".join(draw.choices(words, k=80)), "label": str(row % 2)} for row in range(count))
            (folder / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def saved(self) -> str:
        """The folder of a saved 109M-parameter BERT with the example's tokenizer."""
        folder = self.folder / "models" / "base"
        if not folder.exists():
            config = BertConfig(**{key: value for key, value in BASE.items() if key != "model_type"})
            BertModel(config).save_pretrained(folder)
            for file in (ROOT / "models/all-minilm-l6").glob("*okenizer*"):
                (folder / file.name).write_bytes(file.read_bytes())
            for name in ("vocab.txt", "special_tokens_map.json"):
                if (ROOT / "models/all-minilm-l6" / name).exists():
                    (folder / name).write_bytes((ROOT / "models/all-minilm-l6" / name).read_bytes())
        return "base"

    def document(self, target: dict[str, Any], strategy: str, devices: int = 2, **train: Any) -> dict[str, Any]:
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

    def run(self, measurement: str, size: int = 2, limit_bytes: int | None = None, **task: Any) -> list[dict[str, Any]]:
        """The figures of `size` processes; an empty list if one exceeded the limit."""
        self.runs += 1
        work = self.folder / str(self.runs)
        work.mkdir()
        folders = {"models": [str(path) for path in self.roots.models], "data": [str(path) for path in self.roots.data]}
        task |= folders | {"measurement": measurement, "folder": str(work / "job")}
        (work / "task.json").write_text(json.dumps(task))
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
                self.most_bytes = largest_memory(processes, limit_bytes)
                if self.most_bytes > limit_bytes:
                    return []
            codes = [process.wait(timeout=TIMEOUT_SECONDS) for process in processes]
        finally:
            for process in processes:
                process.kill()
        if any(codes):
            raise SystemExit("\n".join((work / f"{rank}.log").read_text()[-3000:] for rank in range(size)))
        return [json.loads((work / f"{rank}.json").read_text()) for rank in range(size)]


def exchange(setup: Setup, strategies: list[str] | None) -> Figures:
    for strategy in strategies or ("fsdp2", "zero3"):
        for method in ("lpka", "anchored"):
            for rank in RANKS:
                found = setup.run("exchange", strategy=strategy, method=method, rank=rank)
                yield f"{strategy} {method} r={found[0]['rank']}", found[0]


def held(setup: Setup, strategies: list[str] | None) -> Figures:
    for strategy in strategies or ("ddp", "fsdp2", "zero3"):
        document = setup.document({"path": setup.saved()}, strategy)
        small = setup.document({"config": SMALL | {"intermediate_size": 512}}, strategy)
        found = setup.run("held", document=document, small=small)
        yield strategy, max(found, key=lambda figure: figure["loading_bytes"])


def peak(setup: Setup, strategies: list[str] | None) -> Figures:
    for name in MODELS:
        for strategy in strategies or ("ddp", "fsdp2", "zero2"):
            found = setup.run("peak", document=document_of(setup, name, strategy))
            yield f"{name}, {strategy}", with_estimate(setup, f"{name}, {strategy}", found[0]["memory_bytes"])


def document_of(setup: Setup, name: str, strategy: str) -> dict[str, Any]:
    sizes = MODELS[name]
    config = {"model_type": "bert", "intermediate_size": 4 * sizes["hidden_size"]} | sizes
    return setup.document({"config": config}, strategy)


def with_estimate(setup: Setup, name: str, measured: int) -> dict[str, Any]:
    """A measured peak and the current estimate."""
    model, strategy = name.rsplit(", ", 1)
    plan = make_plan(parse(document_of(setup, model, strategy)), setup.roots, setup.folder, [])
    needed = plan.estimate.under(strategy)
    assert needed is not None
    figure = {"estimated_bytes": needed.memory_bytes, "measured_bytes": measured}
    return figure | {"relative_error": needed.memory_bytes / measured - 1}


def steps(setup: Setup, strategies: list[str] | None) -> Figures:
    example = {"config": SMALL | {"intermediate_size": 512}}
    for strategy in strategies or ("single", *STRATEGIES):
        size = 1 if strategy == "single" else 2
        document = setup.document(example, strategy, size, batch_size=32)
        document["target"]["data"]["max_length"] = 48
        task = {"document": document, "cycle": 8, "rounds": 24, "methods": ["anchored", "lpka"]}
        yield f"example's pair, {strategy}", setup.run("steps", size, **task)[0]
    for strategy in [name for name in strategies or STRATEGIES if name != "single"]:
        for method in ("anchored", "lpka"):
            yield f"109 M, {strategy}, {method}", large_steps(setup, strategy, method)


def large_steps(setup: Setup, strategy: str, method: str) -> dict[str, Any]:
    document = setup.document({"config": BASE | {"intermediate_size": 3072}}, strategy, batch_size=16)
    document["target"]["data"]["max_length"] = 64
    return setup.run("steps", 2, document=document, cycle=2, rounds=12, methods=[method])[0]


def limited(setup: Setup, strategies: list[str] | None) -> Figures:
    for strategy, size in (("single", 1), ("fsdp2", 2)):
        document = setup.document({"path": setup.saved()}, strategy, size)
        found = setup.run("limited", size, limit_bytes=LIMIT_BYTES, document=document)
        about = {"most_bytes": setup.most_bytes, "limit_bytes": LIMIT_BYTES, "processes": size}
        yield strategy, (found[0] if found else {}) | about


def largest_memory(processes: list[subprocess.Popen[bytes]], limit_bytes: int) -> int:
    """The largest anonymous memory of any process until all have ended; above the limit all are killed."""
    most, deadline = 0, time.monotonic() + TIMEOUT_SECONDS
    while any(process.poll() is None for process in processes):
        most = max([most, *(anonymous_bytes(process.pid) for process in processes)])
        if most > limit_bytes or time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(0.002)
    return most


MEASUREMENTS = {"exchange": exchange, "held": held, "peak": peak, "steps": steps, "limited": limited}


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
