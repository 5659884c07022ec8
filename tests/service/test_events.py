"""Events, metrics and logs: as pages, as a stream that can be resumed, as files."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

from mergenet_core.records.events import Metric, Progress
from mergenet_core.records.record import now
from mergenet_core.store import events
from mergenet_core.store.api_keys import create_key
from mergenet_core.store.jobs import Store
from service.server.event_stream import PAGE
from service.server.settings import ServiceSettings
from tests.conftest import RedisServer
from tests.service import finishing
from tests.service.conftest import KEY, job_document, settings_of, start_server

Post = Callable[..., str]


@pytest.fixture
def http(server: str, redis_server: RedisServer) -> Iterator[httpx2.Client]:
    """A connection to a real server over an empty Redis."""
    with httpx2.Client(base_url=server, headers={"Authorization": f"Bearer {KEY}"}, timeout=20) as client:
        yield client


def listen(http: httpx2.Client, job_id: str, last: str | None = None) -> Iterator[httpx2.ServerSentEvent]:
    headers = {"Last-Event-ID": last} if last else {}
    with http.sse(f"/jobs/{job_id}/events/stream", headers=headers) as source:
        assert source.response.status_code == 200
        yield from source


def test_events_come_in_pages_oldest_first(
    client: TestClient, post: Post, store: Store, settings: ServiceSettings
) -> None:
    job_id = post()
    finishing.finish(store, job_id, settings.job_folder(job_id))
    everything = client.get(f"/jobs/{job_id}/events").json()["items"]
    assert everything[0]["message"] == "queued: waits for a free worker"
    assert everything[-1]["data"]["state"] == "succeeded"
    first = client.get(f"/jobs/{job_id}/events", params={"limit": 3}).json()
    rest = client.get(f"/jobs/{job_id}/events", params={"after": first["next"]}).json()
    assert first["items"] + rest["items"] == everything
    assert client.get(f"/jobs/{job_id}/events", params={"after": rest["next"]}).json() == {
        "items": [],
        "next": rest["next"],
    }


def test_the_stream_sends_every_event_and_ends_with_the_job(http: httpx2.Client, store: Store, server: str) -> None:
    job_id = http.post("/jobs", json=job_document()).json()["id"]
    seen: list[httpx2.ServerSentEvent] = []
    reader = threading.Thread(target=lambda: seen.extend(listen(http, job_id)))
    reader.start()
    finishing.start(store, job_id, "transfer-0")
    events.set_progress(store.redis, job_id, Progress(trial="transfer-0", attempt=1, step=1, steps=4, at=now()))
    deadline = time.monotonic() + 10
    while not any(event.event == "progress" for event in seen):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    finishing.commit(store, job_id, "transfer-0")
    finishing.start(store, job_id, "control-0")
    finishing.commit(store, job_id, "control-0")
    finishing.start(store, job_id, "finalize")
    finishing.commit(store, job_id, "finalize", artifact="artifact")
    reader.join(10)
    assert not reader.is_alive()
    received = [event for event in seen if event.event != "progress"]
    kept = events.events(store.redis, job_id)
    assert [event.id for event in received] == [event.id for event in kept]
    assert [event.event for event in received] == [event.type for event in kept]
    assert received[-1].json()["data"]["state"] == "succeeded"  # type: ignore[index]
    (progress,) = [event for event in seen if event.event == "progress"]  # sent once, because it did not change
    assert progress.json()["step"] == 1  # type: ignore[index]


def test_a_reader_resumes_after_its_last_event(http: httpx2.Client, store: Store, server: str) -> None:
    job_id = http.post("/jobs", json=job_document()).json()["id"]
    finishing.finish(store, job_id, settings_of(server).job_folder(job_id))
    everything = [event.id for event in listen(http, job_id)]
    assert len(everything) > 8
    assert [event.id for event in listen(http, job_id, last=everything[4])] == everything[5:]
    assert list(listen(http, job_id, last=everything[-1])) == []


def test_a_long_history_is_sent_completely(http: httpx2.Client, store: Store) -> None:
    job_id = http.post("/jobs", json=job_document()).json()["id"]
    for number in range(2 * PAGE):
        events.add_event(store.redis, job_id, "note", f"number {number}")
    http.post(f"/jobs/{job_id}/cancel")
    received = list(listen(http, job_id))
    assert len(received) == 1 + 2 * PAGE + 4  # queued, the notes, three trials and the job cancelled
    assert received[-1].json()["data"]["state"] == "cancelled"  # type: ignore[index]


def test_a_failed_job_ends_the_stream_and_a_resumed_one_has_its_whole_history(
    http: httpx2.Client, store: Store
) -> None:
    job_id = http.post("/jobs", json=job_document() | {"resources": {"attempts": 1}}).json()["id"]
    finishing.start(store, job_id, "transfer-0")
    assert finishing.fail(store, job_id, "transfer-0", retryable=True).state == "failed"
    first = list(listen(http, job_id))
    assert first[-1].json()["data"]["state"] == "failed"  # type: ignore[index]
    assert http.post(f"/jobs/{job_id}/resume").json()["state"] == "queued"
    stream = listen(http, job_id)
    again = [next(stream) for _ in range(len(first) + 1)]  # it does not stop at the old end
    assert again[-1].json()["data"]["state"] == "queued"  # type: ignore[index]


def test_a_stream_of_an_unknown_job_or_after_an_invalid_event_id_is_a_problem(http: httpx2.Client) -> None:
    answer = http.get("/jobs/nothing/events/stream")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    job_id = http.post("/jobs", json=job_document()).json()["id"]
    answer = http.get(f"/jobs/{job_id}/events/stream", headers={"Last-Event-ID": "yesterday"})
    assert answer.status_code == 422


def test_a_reader_that_disconnects_frees_its_redis_connection(http: httpx2.Client, store: Store) -> None:
    job_id = http.post("/jobs", json=job_document()).json()["id"]

    def blocked() -> int:
        return int(store.redis.info("clients")["blocked_clients"])

    with http.sse(f"/jobs/{job_id}/events/stream") as source:
        events = iter(source)
        next(events)
        wait(lambda: blocked() == 1)
    quiet = 0
    deadline = time.monotonic() + 10
    while quiet < 30:  # a stream that is still served would block again every second
        assert time.monotonic() < deadline
        quiet = quiet + 1 if blocked() == 0 else 0
        time.sleep(0.05)


def test_streams_are_bounded_for_each_key_and_in_all(settings: ServiceSettings, store: Store) -> None:
    limits = {"max_streams": 3, "max_streams_per_key": 2}
    environment = {f"MERGENET_{name.upper()}": str(value) for name, value in limits.items()}
    key = create_key(store.redis, "reader", ("read", "submit"))
    process, url = start_server(settings, environment)
    try:
        with httpx2.Client(base_url=url, headers={"X-API-Key": KEY}, timeout=10) as http, ExitStack() as streams:
            path = f"/jobs/{http.post('/jobs', json=job_document()).json()['id']}/events/stream"

            read = []  # an iterator that is dropped ends its stream

            def open_stream(headers: dict[str, str]) -> None:
                read.append(iter(streams.enter_context(http.sse(path, headers=headers))))
                next(read[-1])

            for _ in range(2):
                open_stream({})
            refused = http.get(path)
            assert (refused.status_code, refused.json()["type"]) == (429, "urn:mergenet:problem:too-many-requests")
            assert "the key 'operator' has 2 event streams open" in refused.json()["detail"]
            open_stream({"X-API-Key": key})
            assert "3 event streams are open" in http.get(path, headers={"X-API-Key": key}).json()["detail"]
            streams.close()
            wait(lambda: _opens(http, path))
    finally:
        process.terminate()
        assert process.wait(10) in (0, -signal.SIGTERM)


@pytest.mark.slow
def test_a_reader_that_never_reads_is_cut_off(settings: ServiceSettings, store: Store) -> None:
    limits = {"MERGENET_MAX_STREAMS_PER_KEY": "1", "MERGENET_UNREAD_SECONDS": "2"}
    process, url = start_server(settings, limits)
    try:
        with httpx2.Client(base_url=url, headers={"X-API-Key": KEY}, timeout=10) as http:
            job_id = http.post("/jobs", json=job_document()).json()["id"]
            with store.redis.pipeline() as pipe:
                for number in range(events.EVENTS_KEPT):  # more than all buffers on the way hold
                    events.add_event(pipe, job_id, "note", "x" * 500, data={"number": number})
                pipe.execute()
            path, address = f"/jobs/{job_id}/events/stream", httpx2.URL(url)
            with socket.socket() as reader:
                reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                reader.connect((address.host, address.port))
                reader.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\n\r\n".encode())
                wait(lambda: not _opens(http, path))
                wait(lambda: _opens(http, path), 30)
    finally:
        process.terminate()
        assert process.wait(10) in (0, -signal.SIGTERM)


def _opens(http: httpx2.Client, path: str) -> bool:
    with http.stream("GET", path) as answer:
        return answer.status_code == 200


def test_a_reader_that_leaves_is_no_error(settings: ServiceSettings, store: Store, tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    process, url = start_server(settings, log=log)
    try:
        with httpx2.Client(base_url=url, headers={"X-API-Key": KEY}, timeout=10) as http:
            job_id = http.post("/jobs", json=job_document()).json()["id"]
            for _ in range(5):
                with http.sse(f"/jobs/{job_id}/events/stream") as source:
                    next(iter(source))
            wait(lambda: int(store.redis.info("clients")["blocked_clients"]) == 0)
    finally:
        process.terminate()
        process.wait(10)
    assert "Traceback" not in log.read_text()
    assert "ERROR" not in log.read_text()


def wait(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def add_metrics(store: Store, job_id: str) -> None:
    for name, split in (("loss", "train"), ("accuracy", "validation")):
        metrics = [
            Metric(step=step, ts=now(), name=name, value=step / 100, split=split, trial="transfer-0", attempt=1)  # type: ignore[arg-type]
            for step in range(1, 101)
        ]
        events.add_metrics(store.redis, job_id, metrics)


@pytest.mark.parametrize(
    ("query", "count", "steps"),
    [
        ({}, 200, (1, 100)),
        ({"name": "loss"}, 100, (1, 100)),
        ({"name": "loss", "step_from": 10, "step_to": 19}, 10, (10, 19)),
        ({"name": "loss", "resolution": 10}, 11, (1, 100)),  # every tenth and the last
        ({"trial": "control-0"}, 0, None),
    ],
)
def test_metrics_by_name_trial_steps_and_resolution(
    client: TestClient, post: Post, store: Store, query: dict[str, Any], count: int, steps: tuple[int, int] | None
) -> None:
    job_id = post()
    add_metrics(store, job_id)
    found = client.get(f"/jobs/{job_id}/metrics", params=query).json()["items"]
    assert len(found) == count
    if steps is not None:
        assert (min(one["step"] for one in found), max(one["step"] for one in found)) == steps


def test_logs_by_tail_by_range_and_by_attempt(
    client: TestClient, post: Post, store: Store, settings: ServiceSettings
) -> None:
    job_id = post()
    missing = client.get(f"/jobs/{job_id}/logs")
    assert (missing.status_code, "there is no log yet" in missing.json()["detail"]) == (404, True)
    finishing.start(store, job_id, "transfer-0")
    path = settings.job_folder(job_id).log("transfer-0", 1)
    path.parent.mkdir(parents=True)
    path.write_text("".join(f"line {n}\n" for n in range(1000)))
    tail = client.get(f"/jobs/{job_id}/logs", params={"tail": 9})
    assert (tail.text, tail.headers["content-type"]) == ("line 999\n", "text/plain; charset=utf-8")
    assert tail.headers["x-log-bytes"] == str(path.stat().st_size)
    part = client.get(f"/jobs/{job_id}/logs", headers={"Range": "bytes=0-6"})
    assert (part.status_code, part.text) == (206, "line 0\n")
    assert client.get(f"/jobs/{job_id}/logs", params={"trial": "transfer-0", "attempt": 1}).text == path.read_text()
    newer = client.get(f"/jobs/{job_id}/logs", params={"trial": "transfer-0", "attempt": 2})
    assert (newer.status_code, "its newest attempt is 1" in newer.json()["detail"]) == (404, True)
