"""The typed client against a real server: errors by name, lost answers, broken streams, broken downloads."""

from __future__ import annotations

import hashlib
import itertools
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from mergenet_core.errors import (
    CheckpointInvalid,
    Forbidden,
    NotFound,
    PathRefused,
    SpecInvalid,
    StateConflict,
    Unauthenticated,
    Unavailable,
)
from mergenet_core.records.events import Event
from mergenet_core.spec.parse import parse
from mergenet_core.store.jobs import Store
from service.client.client import Client
from service.client.download import fetch
from service.schemas import ArtifactFile
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
    """Hands every byte on, but cuts the n-th connections short after so many bytes of the answer."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, behind: str, cuts: dict[int, int]) -> None:
        self.behind = (behind.rpartition("//")[2].split(":")[0], int(behind.rpartition(":")[2]))
        self.cuts = cuts
        self.count = itertools.count(1)
        super().__init__(("127.0.0.1", 0), _Hand)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Hand(socketserver.BaseRequestHandler):
    server: Proxy

    def handle(self) -> None:
        left = self.server.cuts.get(next(self.server.count), 1 << 60)
        with socket.create_connection(self.server.behind) as behind:
            threading.Thread(target=self._up, args=(behind,), daemon=True).start()
            while left > 0 and (part := behind.recv(min(left, 65536))):
                left -= len(part)
                self.request.sendall(part)
            self.request.shutdown(socket.SHUT_RDWR)

    def _up(self, behind: socket.socket) -> None:
        try:
            while part := self.request.recv(65536):
                behind.sendall(part)
        except OSError:
            pass


@pytest.fixture
def cut(server: str, redis_server: RedisServer) -> Iterator[Callable[[dict[int, int]], Client]]:
    """A client behind a proxy that cuts its n-th connection after so many bytes."""
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


def test_a_job_from_data_from_text_and_from_a_spec(client: Client) -> None:
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
    assert client.plan(made[0].id)["estimate"]["steps"] == 8


def test_errors_come_back_under_their_own_names(client: Client, server: str) -> None:
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
    with pytest.raises(Unavailable, match="does not answer"), Client("http://127.0.0.1:9", KEY) as nobody:
        nobody.jobs()


def test_steering(client: Client) -> None:
    job = client.submit(job_document())
    assert client.pause(job.id).state == "paused"
    assert client.resume(job.id).state == "queued"
    assert client.cancel(job.id).state == "cancelled"
    client.delete(job.id)
    assert client.jobs().items == []


def test_a_lost_answer_makes_no_second_job(cut: Callable[[dict[int, int]], Client], client: Client) -> None:
    job = cut({1: 0, 2: 30}).submit(job_document())  # two answers lost: one whole, one in its middle
    assert [one.id for one in client.jobs().items] == [job.id]


def test_a_broken_stream_goes_on_and_tells_everything_once(
    cut: Callable[[dict[int, int]], Client], client: Client, server: str, store: Store
) -> None:
    job_id = finished(client, server, store)
    everything = [event.id for event in client.events(job_id).items]
    told = [event.id for event in cut({1: 900, 2: 1500, 3: 0}).follow(job_id) if isinstance(event, Event)]
    assert told == everything


def test_a_download_is_whole_resumed_and_checked(
    cut: Callable[[dict[int, int]], Client], client: Client, server: str, store: Store, tmp_path: Path
) -> None:
    job_id = finished(client, server, store)
    files = cut({2: 3000, 3: 2500}).download(job_id, tmp_path / "out")
    assert {file.relative_to(tmp_path / "out").as_posix() for file in files} == {
        "model/model.safetensors",
        "report.json",
        "job.json",
        "manifest.json",
    }
    assert (tmp_path / "out" / "model" / "model.safetensors").read_bytes() == finishing.WEIGHTS
    assert not list((tmp_path / "out").rglob("*.part"))
    assert client.report(job_id).chosen == "transfer-0"


def test_what_is_there_is_not_fetched_again_and_what_is_half_there_goes_on(
    client: Client, server: str, store: Store, tmp_path: Path
) -> None:
    job_id = finished(client, server, store)
    file = next(one for one in client.artifacts(job_id).items if one.role == "model")
    final = fetch(client._http, file, tmp_path)
    final.rename(final.with_name("model.safetensors.part"))
    half = final.with_name("model.safetensors.part")
    half.write_bytes(finishing.WEIGHTS[:4000])
    sent: list[str | None] = []
    client._http.event_hooks = {"request": [lambda request: sent.append(request.headers.get("range"))]}
    fetch(client._http, file, tmp_path)
    fetch(client._http, file, tmp_path)
    assert sent == ["bytes=4000-"]
    half.write_bytes(b"?" * 4000)  # a wrong half is found out by the hash, and fetched from the beginning
    final.unlink()
    assert fetch(client._http, file, tmp_path).read_bytes() == finishing.WEIGHTS


def test_a_wrong_hash_never_gets_the_files_name(client: Client, server: str, store: Store, tmp_path: Path) -> None:
    job_id = finished(client, server, store)
    path = settings_of(server).job_folder(job_id).artifact / "model" / "model.safetensors"
    flipped = bytearray(finishing.WEIGHTS)
    flipped[100] ^= 1
    path.write_bytes(flipped)  # the size is right: only the hash can tell
    with pytest.raises(CheckpointInvalid, match="another hash than the manifest's"):
        client.download(job_id, tmp_path)
    assert not (tmp_path / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("path", ["../out", "/etc/x", "a/../../b", "a\\b", ""])
def test_a_manifest_cannot_lead_out_of_the_folder(client: Client, tmp_path: Path, path: str) -> None:
    digest = hashlib.sha256(b"").hexdigest()
    with pytest.raises(CheckpointInvalid, match="leads out of the folder"):
        fetch(client._http, ArtifactFile(path=path, bytes=0, sha256=digest, role="model", href="/"), tmp_path)
