"""The Python client against a real server: results, errors, lost responses, broken streams, broken downloads."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import socket
import socketserver
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
import yaml

import service.client
from mergenet_core.spec.parse import parse
from mergenet_core.store.jobs import Store
from service.client import (
    ArtifactFile,
    ArtifactList,
    CheckpointInvalid,
    CheckpointList,
    Client,
    Event,
    EventPage,
    Forbidden,
    JobPage,
    JobView,
    NotFound,
    PathRefused,
    Plan,
    Report,
    SpecInvalid,
    StateConflict,
    Unauthenticated,
    Unavailable,
    Validation,
    download,
)
from service.client.download import fetch
from service.schemas import Leftover
from tests.conftest import RedisServer
from tests.service import finishing
from tests.service.conftest import KEY, job_document, settings_of


@pytest.fixture
def client(server: str, redis_server: RedisServer) -> Iterator[Client]:
    with Client(server, KEY) as client:
        yield client


def finished(client: Client, server: str, store: Store) -> str:
    job = client.submit(job_document())
    finishing.finish(store, job.id, settings_of(server).job_folder(job.id))
    return job.id


@pytest.fixture
def store(redis_server: RedisServer) -> Store:
    return Store(redis_server.client())


class Proxy(socketserver.ThreadingTCPServer):
    """Forwards every byte, but closes connection n after `cuts[n]` bytes of its responses, and removes that cut."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, behind: str, cuts: dict[int, int]) -> None:
        self.behind = (behind.rpartition("//")[2].split(":")[0], int(behind.rpartition(":")[2]))
        self.cuts = cuts
        self.count = itertools.count(1)
        super().__init__(("127.0.0.1", 0), _Forward)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Forward(socketserver.BaseRequestHandler):
    server: Proxy

    def handle(self) -> None:
        number = next(self.server.count)
        left = self.server.cuts.get(number, 1 << 60)
        with socket.create_connection(self.server.behind) as behind:
            threading.Thread(target=self._up, args=(behind,), daemon=True).start()
            while left > 0 and (part := behind.recv(min(left, 65536))):
                left -= len(part)
                self.request.sendall(part)
            if left == 0:
                del self.server.cuts[number]
            self.request.shutdown(socket.SHUT_RDWR)

    def _up(self, behind: socket.socket) -> None:
        try:
            while part := self.request.recv(65536):
                behind.sendall(part)
        except OSError:
            pass


@pytest.fixture
def cut(server: str, redis_server: RedisServer) -> Iterator[Callable[[dict[int, int]], Client]]:
    """Makes a client behind a proxy that closes its n-th connection after so many bytes of the response."""
    made: list[Client | Proxy] = []

    def make(cuts: dict[int, int]) -> Client:
        proxy = Proxy(server, cuts)
        client = Client(proxy.url, KEY)
        made.extend([client, proxy])
        return client

    yield make
    for one in made:
        if isinstance(one, Proxy):
            one.shutdown()
            one.server_close()
        else:
            one.close()


def test_a_job_is_submitted_as_a_mapping_a_spec_or_text(client: Client) -> None:
    made = [
        client.submit(job_document()),
        client.submit(parse(job_document())),
        client.submit(yaml.safe_dump(job_document())),
    ]
    assert {job.state for job in made} == {"queued"}
    assert client.validate(job_document()).plan.pairing is not None
    page = client.jobs(label="team=vision", limit=1)
    assert page.next == page.items[0].id == made[2].id
    assert client.jobs(after=page.next).items[0].id == made[1].id
    assert client.plan(made[0].id).estimate.steps == 8


def examples() -> dict[str, str]:
    """The Python examples that users copy."""
    pages = {name: re.search(r"```python\n(.*?)```", Path(name).read_text(), re.DOTALL) for name in PAGES}
    docstring = re.search(r"Example::\n\n(.*?)\n\n\S", service.client.__doc__ or "", re.DOTALL)
    found = {**pages, "service.client": docstring}
    return {name: textwrap.dedent(example[1]) for name, example in found.items() if example is not None}


PAGES = ("README.md", "docs/api.md")


@pytest.mark.parametrize("name", [*PAGES, "service.client"])
def test_the_examples_of_the_documentation_run(
    name: str, server: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = examples()[name]
    assert "from service.client import Client" in example
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MERGENET_URL", server)
    monkeypatch.setenv("MERGENET_API_KEY", KEY)
    Path("job.yaml").write_text(yaml.safe_dump(job_document()))

    def finish_the_job() -> None:
        while not (jobs := store.page()[0]):
            submitted.wait(0.02)
        finishing.finish(store, jobs[0].id, settings_of(server).job_folder(jobs[0].id))

    submitted = threading.Event()
    worker = threading.Thread(target=finish_the_job)
    worker.start()
    exec(example.replace("http://127.0.0.1:8000", server).replace("mn_...", KEY), {})
    worker.join()
    assert (tmp_path / "result" / "model" / "model.safetensors").read_bytes() == finishing.WEIGHTS


def test_every_result_has_its_type(client: Client, server: str, store: Store) -> None:
    assert all(hasattr(service.client, name) for name in service.client.__all__)
    assert isinstance(client.validate(job_document()), Validation)
    job_id = finished(client, server, store)
    results = {
        JobView: client.get(job_id),
        JobPage: client.jobs(),
        Plan: client.plan(job_id),
        Report: client.report(job_id),
        EventPage: client.events(job_id),
        ArtifactList: client.artifacts(job_id),
        CheckpointList: client.checkpoints(job_id),
    }
    assert [type(result) for result in results.values()] == list(results)
    assert client.plan(job_id).trials[0].id == "transfer-0"
    assert client.metrics(job_id) == client.workers() == client.devices() == []
    with pytest.raises(NotFound, match="transfer-0 has no log of attempt 1"):
        client.logs(job_id, trial="transfer-0")


def test_the_service_s_errors_are_raised_under_their_own_classes(client: Client, server: str) -> None:
    with pytest.raises(NotFound, match="there is no job nothing"):
        client.get("nothing")
    with pytest.raises(SpecInvalid) as caught:
        client.submit(job_document() | {"trian": {}})
    assert caught.value.errors[0].pointer == "/trian"
    outside = job_document()
    outside["source"]["model"]["path"] = "../data"
    with pytest.raises(PathRefused, match="outside the model roots"):
        client.submit(outside)
    job = client.submit(job_document())
    with pytest.raises(StateConflict):
        client.delete(job.id)
    with pytest.raises(Unauthenticated), Client(server, "not-a-key") as stranger:
        stranger.jobs()
    reader = client.create_key("reader", ("read",)).key
    with pytest.raises(Forbidden, match="this needs submit"), Client(server, reader) as other:
        other.submit(job_document())


def test_a_service_that_does_not_answer_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.client.client.TRIES", 2)
    with pytest.raises(Unavailable, match="does not answer"), Client("http://127.0.0.1:9", KEY) as client:
        client.jobs()


def test_a_job_is_paused_resumed_cancelled_and_deleted(client: Client) -> None:
    job = client.submit(job_document())
    assert client.pause(job.id).state == "paused"
    assert client.resume(job.id).state == "queued"
    assert client.cancel(job.id).state == "cancelled"
    client.delete(job.id)
    assert client.jobs().items == []


def test_folders_of_no_job_are_listed_and_removed_on_request(client: Client, server: str) -> None:
    jobs = settings_of(server).home / "jobs"
    kept = client.submit(job_document()).id
    for name in ("01J00000000000000000000000", "01J00000000000000000000001", "notes"):
        (jobs / name).mkdir()
        (jobs / name / "file").write_bytes(bytes(1000))
    for name in ("01J00000000000000000000000", "notes", kept):  # the other may be a submission under way
        os.utime(jobs / name, (0, 0))
    assert [(one.job, one.bytes) for one in client.gc()] == [("01J00000000000000000000000", 1000)]
    assert client.gc(delete=True) == [Leftover(job="01J00000000000000000000000", bytes=1000)]
    assert client.gc() == []
    assert {"01J00000000000000000000001", "notes", kept} <= {folder.name for folder in jobs.iterdir()}


def test_a_lost_response_makes_no_second_job(cut: Callable[[dict[int, int]], Client], client: Client) -> None:
    cuts = {1: 1, 2: 30}
    job = cut(cuts).submit(job_document())
    assert cuts == {}
    assert [one.id for one in client.jobs().items] == [job.id]


def test_a_request_that_succeeded_is_no_error_when_its_response_was_lost(
    cut: Callable[[dict[int, int]], Client], client: Client
) -> None:
    job = client.submit(job_document())
    client.pause(job.id)
    assert cut({1: 1}).resume(job.id).state == "queued"
    client.cancel(job.id)
    cut({1: 1}).delete(job.id)
    assert client.jobs().items == []
    client.create_key("ci", ("read",))
    cut({1: 1}).revoke_key("ci")
    assert client.api_keys() == []
    for refused in (lambda: client.delete(job.id), lambda: client.revoke_key("ci")):
        with pytest.raises(NotFound):
            refused()


def test_a_broken_stream_is_resumed_without_losing_or_repeating_events(
    cut: Callable[[dict[int, int]], Client], client: Client, server: str, store: Store
) -> None:
    job_id = finished(client, server, store)
    everything = [event.id for event in client.events(job_id).items]
    cuts = {1: 900, 2: 1500, 3: 0}
    received = [event.id for event in cut(cuts).follow(job_id) if isinstance(event, Event)]
    assert (received, cuts) == (everything, {})


def test_a_broken_download_is_resumed_and_complete(
    cut: Callable[[dict[int, int]], Client], client: Client, server: str, store: Store, tmp_path: Path
) -> None:
    job_id = finished(client, server, store)
    cuts = {1: 4000, 2: 2500}  # in the middle of the model, twice
    files = cut(cuts).download(job_id, tmp_path / "out")
    assert cuts == {}
    assert {file.relative_to(tmp_path / "out").as_posix() for file in files} == {
        "model/model.safetensors",
        "report.json",
        "job.json",
        "manifest.json",
    }
    assert (tmp_path / "out" / "model" / "model.safetensors").read_bytes() == finishing.WEIGHTS
    assert not list((tmp_path / "out").rglob("*.part"))
    assert client.report(job_id).chosen == "transfer-0"


@pytest.fixture
def http(server: str) -> Iterator[httpx2.Client]:
    """A connection of the test's own, for what the client uses internally."""
    with httpx2.Client(base_url=server, headers={"X-API-Key": KEY}) as http:
        yield http


def test_a_complete_file_is_kept_and_a_partial_one_is_completed(
    client: Client, http: httpx2.Client, server: str, store: Store, tmp_path: Path
) -> None:
    job_id = finished(client, server, store)
    file = next(one for one in client.artifacts(job_id).items if one.role == "model")
    final = tmp_path / "model" / "model.safetensors"
    final.parent.mkdir()
    final.with_name("model.safetensors.part").write_bytes(finishing.WEIGHTS[:4000])
    ranges: list[str | None] = []
    http.event_hooks = {"request": [lambda request: ranges.append(request.headers.get("range"))]}
    assert fetch(http, file, tmp_path) == fetch(http, file, tmp_path) == final
    assert ranges == ["bytes=4000-"]
    assert final.read_bytes() == finishing.WEIGHTS


def test_a_broken_connection_and_a_wrong_hash_are_counted_apart(
    cut: Callable[[dict[int, int]], Client], client: Client, server: str, store: Store, tmp_path: Path
) -> None:
    job_id = finished(client, server, store)
    part = tmp_path / "model" / "model.safetensors.part"
    part.parent.mkdir()
    part.write_bytes(b"?" * 4000)  # completing it gives a wrong hash, once
    cuts = {1: 4000}  # in the middle of the model
    files = cut(cuts).download(job_id, tmp_path)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == finishing.WEIGHTS
    assert (len(files), cuts) == (4, {})


def test_a_file_with_a_wrong_hash_is_not_kept(client: Client, server: str, store: Store, tmp_path: Path) -> None:
    job_id = finished(client, server, store)
    path = settings_of(server).job_folder(job_id).artifact / "model" / "model.safetensors"
    flipped = bytearray(finishing.WEIGHTS)
    flipped[100] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(CheckpointInvalid, match=r"on the server's disk differs from the manifest"):
        client.download(job_id, tmp_path)
    path.write_bytes(finishing.WEIGHTS)
    other = next(file for file in client.artifacts(job_id).items if file.path.endswith("model.safetensors"))
    with pytest.raises(CheckpointInvalid, match="arrived 2 times, each time with another SHA-256"):
        fetch(client._http, other.model_copy(update={"sha256": "0" * 64}), tmp_path)
    assert list((tmp_path / "model").iterdir()) == []


def test_a_connection_that_always_breaks_is_given_up(
    cut: Callable[[dict[int, int]], Client],
    client: Client,
    server: str,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(download, "CONNECTIONS_MAX", 2)
    job_id = finished(client, server, store)
    with pytest.raises(Unavailable, match=r"the connection broke 2 times, the last time with: .*it will resume"):
        cut({1: 4000, 2: 100}).download(job_id, tmp_path)


@pytest.mark.parametrize("path", ["../out", "/etc/x", "a/../../b", "a\\b", ""])
def test_a_manifest_cannot_lead_out_of_the_folder(http: httpx2.Client, tmp_path: Path, path: str) -> None:
    digest = hashlib.sha256(b"").hexdigest()
    with pytest.raises(CheckpointInvalid, match="leads out of the folder"):
        fetch(http, ArtifactFile(path=path, bytes=0, sha256=digest, role="model", href="/"), tmp_path)
    assert list(tmp_path.iterdir()) == []
