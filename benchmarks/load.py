"""The service under load: a thousand queued jobs, fifty readers of event streams, and what a request takes meanwhile.

    python benchmarks/load.py [--jobs 1000] [--readers 50] [--requests 400]

No worker runs, so every job stays queued: what is measured is the API, its store and its streams. Prints medians and
tails for list and status, whether every job and every event arrived, and the processes' memory before and after.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import psutil
from stack import running_service
from transformers import BertConfig, BertModel

from service.client import Client

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "dog"]


def main() -> None:
    """Fill the queue, open the streams, measure, count, and say what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--readers", type=int, default=50)
    parser.add_argument("--requests", type=int, default=400)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        document = prepare(folder)
        with running_service(folder / "home", workers=0, folder=folder) as client:
            measure(client, document, wanted.jobs, wanted.readers, wanted.requests)


def measure(client: Client, document: dict[str, Any], jobs: int, readers: int, requests: int) -> None:
    """Everything within one service's life."""
    server = psutil.Process()
    before = memory(server)
    begun = time.perf_counter()
    ids = [client.submit(document | {"labels": {"number": str(number)}}).id for number in range(jobs)]
    print(f"submitted {jobs} jobs, {1000 * (time.perf_counter() - begun) / jobs:.1f} ms each")
    idle = timings(client, ids, requests)
    seen = asyncio.run(under_readers(client, ids[:readers], lambda: timings(client, ids, requests)))
    for name, (median, _) in idle.items():
        busy_median, busy_tail = seen["times"][name]
        busy = f"with {readers} readers median {busy_median:.1f} ms, 95th percentile {busy_tail:.1f} ms"
        print(f"{name}: median {median:.1f} ms alone; {busy}")
    listed = set()
    cursor = None
    while True:
        page = client.jobs(limit=200, after=cursor)
        listed |= {job.id for job in page.items}
        cursor = page.next
        if cursor is None:
            break
    print(f"listed {len(listed & set(ids))} of {jobs} jobs; events at the readers: {seen['events']} of {2 * readers}")
    after = memory(server)
    for name, megabytes in after.items():
        print(f"{name}: {before.get(name, 0):.0f} MB before, {megabytes:.0f} MB after")
    assert listed >= set(ids), "a job was lost"
    assert seen["events"] == 2 * readers, "an event was lost"


def timings(client: Client, ids: list[str], requests: int) -> dict[str, tuple[float, float]]:
    """Median and 95th percentile in milliseconds of the two requests that watchers make most."""
    found = {}
    for name, ask in (
        ("list", lambda number: client.jobs(limit=50)),
        ("status", lambda number: client.get(ids[number])),
    ):
        times = []
        for number in range(requests):
            begun = time.perf_counter()
            ask(number % len(ids))
            times.append(1000 * (time.perf_counter() - begun))
        found[name] = (statistics.median(times), statistics.quantiles(times, n=20)[-1])
    return found


async def under_readers(client: Client, ids: list[str], work: Callable[[], Any]) -> dict[str, Any]:
    """Do the work while a stream is open on each job; each reader has to see the queueing and the cancelling."""
    connected = asyncio.Event()
    counts = [0] * len(ids)

    async def read(number: int, http: httpx2.AsyncClient) -> None:
        async with http.stream("GET", f"/jobs/{ids[number]}/events/stream", timeout=None) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data:") and json.loads(line[5:]).get("type") == "job.state":
                    counts[number] += 1
                    if all(counts):
                        connected.set()

    async with httpx2.AsyncClient(
        base_url=client.url,
        headers=client._http.headers,
        limits=httpx2.Limits(max_connections=len(ids) + 1),
    ) as http:
        tasks = [asyncio.create_task(read(number, http)) for number in range(len(ids))]
        await asyncio.wait_for(connected.wait(), 30)
        times = await asyncio.to_thread(work)
        for job_id in ids:
            await asyncio.to_thread(client.cancel, job_id)
        await asyncio.wait_for(asyncio.gather(*tasks), 60)
    return {"times": times, "events": sum(counts)}


def memory(parent: psutil.Process) -> dict[str, float]:
    """Resident megabytes of the API and of Redis."""
    found = {}
    for child in parent.children(recursive=True):
        words = " ".join(child.cmdline())
        for name, mark in (("Redis", "redis-server"), ("API", "-m service --fd")):
            if mark in words:
                found[name] = child.memory_info().rss / 1e6
    return found


def prepare(folder: Path) -> dict[str, Any]:
    """A real, tiny model and real, tiny data; the document of a job with them."""
    source = folder / "models" / "source"
    config = BertConfig(vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    BertModel(config).save_pretrained(source)
    (source / "vocab.txt").write_text("\n".join(WORDS))
    (folder / "data").mkdir()
    rows = "".join(json.dumps({"text": word, "label": word}) + "\n" for word in ("cat", "dog") * 20)
    for split in ("train", "test"):
        (folder / "data" / f"{split}.jsonl").write_text(rows)
    target = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return {
        "name": "load",
        "source": {"model": {"path": "source"}},
        "target": {
            "model": {"config": target | {"intermediate_size": 32}},
            "task": "text-classification",
            "data": {"train": "train.jsonl", "test": "test.jsonl"},
        },
        "train": {"steps": 10},
    }


if __name__ == "__main__":
    main()
