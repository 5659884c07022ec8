"""The service under load: a thousand queued jobs, fifty readers of event streams, and the time of a request meanwhile.

    python benchmarks/load.py [--jobs 1000] [--readers 50] [--requests 400]

No worker runs, so every job stays queued: this measures the API, its store and its streams. Prints medians and 95th
percentiles for list and status, whether every job and event arrived, and the processes' memory before and after.
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
from service.client.profile import Profile

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "dog"]


def main() -> None:
    """Fill the queue, open the streams, measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--readers", type=int, default=50)
    parser.add_argument("--requests", type=int, default=400)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        document = prepare(folder)
        with running_service(folder / "home", workers=0, folder=folder) as profile:
            measure(profile, document, options.jobs, options.readers, options.requests)


def measure(profile: Profile, document: dict[str, Any], jobs: int, readers: int, requests: int) -> None:
    """Take all measurements of one running service."""
    server = psutil.Process()
    before = memory(server)
    client = Client(profile.url, profile.api_key)
    start = time.perf_counter()
    ids = [client.submit(document | {"labels": {"number": str(number)}}).id for number in range(jobs)]
    print(f"submitted {jobs} jobs, {1000 * (time.perf_counter() - start) / jobs:.1f} ms each")
    idle = timings(client, ids, requests)
    observed = asyncio.run(under_readers(profile, ids[:readers], lambda: timings(client, ids, requests)))
    for name, (median, _) in idle.items():
        busy_median, busy_tail = observed["times"][name]
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
    print(
        f"listed {len(listed & set(ids))} of {jobs} jobs; events at the readers: {observed['events']} of {2 * readers}"
    )
    after = memory(server)
    for name, megabytes in after.items():
        print(f"{name}: {before.get(name, 0):.0f} MB before, {megabytes:.0f} MB after")
    assert listed >= set(ids), "a job was lost"
    assert observed["events"] == 2 * readers, "an event was lost"


def timings(client: Client, ids: list[str], requests: int) -> dict[str, tuple[float, float]]:
    """Median and 95th percentile, in milliseconds, of the two most frequent requests."""
    results = {}
    for name, request in (
        ("list", lambda number: client.jobs(limit=50)),
        ("status", lambda number: client.get(ids[number])),
    ):
        times = []
        for number in range(requests):
            start = time.perf_counter()
            request(number % len(ids))
            times.append(1000 * (time.perf_counter() - start))
        results[name] = (statistics.median(times), statistics.quantiles(times, n=20)[-1])
    return results


async def under_readers(profile: Profile, ids: list[str], work: Callable[[], Any]) -> dict[str, Any]:
    """Do the work while a stream is open on each job; each reader has to receive the queued and the cancelled event."""
    connected = asyncio.Event()
    counts = [0] * len(ids)

    async def read(number: int, http: httpx2.AsyncClient) -> None:
        async with http.stream("GET", f"/jobs/{ids[number]}/events/stream", timeout=None) as response:
            async for line in response.aiter_lines():
                if line.startswith("data:") and json.loads(line[5:]).get("type") == "job.state":
                    counts[number] += 1
                    if all(counts):
                        connected.set()

    async with httpx2.AsyncClient(
        base_url=profile.url,
        headers={"Authorization": f"Bearer {profile.api_key}"},
        limits=httpx2.Limits(max_connections=len(ids) + 1),
    ) as http:
        tasks = [asyncio.create_task(read(number, http)) for number in range(len(ids))]
        await asyncio.wait_for(connected.wait(), 30)
        times = await asyncio.to_thread(work)
        for job_id in ids:
            (await http.post(f"/jobs/{job_id}/cancel")).raise_for_status()
        await asyncio.wait_for(asyncio.gather(*tasks), 60)
    return {"times": times, "events": sum(counts)}


def memory(parent: psutil.Process) -> dict[str, float]:
    """Resident megabytes of the API and of Redis."""
    megabytes = {}
    for child in parent.children(recursive=True):
        command = " ".join(child.cmdline())
        for name, mark in (("Redis", "redis-server"), ("API", "-m service --fd")):
            if mark in command:
                megabytes[name] = child.memory_info().rss / 1e6
    return megabytes


def prepare(folder: Path) -> dict[str, Any]:
    """Write a tiny model and tiny data; returns the document of a job with them."""
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
