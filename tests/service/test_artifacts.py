"""The files of a result over HTTP: ranges, conditions, hashes; only files of the manifest are served."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from mergenet_core.store.jobs import Store
from service.server.settings import ServiceSettings
from tests.service import finishing

FILE = "model/model.safetensors"
SHA = hashlib.sha256(finishing.WEIGHTS).hexdigest()
SIZE = len(finishing.WEIGHTS)


@pytest.fixture
def job_id(post: Callable[..., str], store: Store, settings: ServiceSettings) -> str:
    job_id = post()
    finishing.finish(store, job_id, settings.job_folder(job_id))
    return job_id


def test_there_is_no_artifact_before_the_job_has_succeeded(client: TestClient, post: Callable[..., str]) -> None:
    job_id = post()
    for path in ("", f"/{FILE}"):
        problem = client.get(f"/jobs/{job_id}/artifacts{path}")
        assert problem.status_code == 404
        assert "there is no artifact yet: the job is queued" in problem.json()["detail"]


def test_every_file_is_listed_and_served_with_its_hash(client: TestClient, job_id: str) -> None:
    files = client.get(f"/jobs/{job_id}/artifacts").json()["items"]
    assert {file["path"] for file in files} == {FILE, "report.json", "job.json", "manifest.json"}
    assert next(file["role"] for file in files if file["path"] == FILE) == "model"
    for file in files:
        answer = client.get(file["href"])
        assert answer.status_code == 200
        assert hashlib.sha256(answer.content).hexdigest() == file["sha256"]
        assert answer.headers["etag"] == f'"{file["sha256"]}"'
        assert int(answer.headers["content-length"]) == file["bytes"]
        digest = base64.b64encode(hashlib.sha256(answer.content).digest()).decode()
        assert answer.headers["repr-digest"] == f"sha-256=:{digest}:"


def test_head_gives_the_same_headers_without_the_body(client: TestClient, job_id: str) -> None:
    answer = client.head(f"/jobs/{job_id}/artifacts/{FILE}")
    assert (answer.status_code, answer.content) == (200, b"")
    assert (answer.headers["content-length"], answer.headers["etag"]) == (str(SIZE), f'"{SHA}"')
    assert answer.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize(
    ("asked", "status", "begin", "end"),
    [
        ("bytes=0-9", 206, 0, 10),
        ("bytes=100-", 206, 100, SIZE),
        ("bytes=-7", 206, SIZE - 7, SIZE),
        (f"bytes=5-{SIZE * 2}", 206, 5, SIZE),
    ],
)
def test_a_range(client: TestClient, job_id: str, asked: str, status: int, begin: int, end: int) -> None:
    answer = client.get(f"/jobs/{job_id}/artifacts/{FILE}", headers={"Range": asked})
    assert (answer.status_code, answer.content) == (status, finishing.WEIGHTS[begin:end])
    assert answer.headers["content-range"] == f"bytes {begin}-{end - 1}/{SIZE}"


def test_a_range_that_is_invalid_or_beyond_the_end(client: TestClient, job_id: str) -> None:
    for beyond in (f"bytes={SIZE}-", f"bytes={SIZE + 5}-{SIZE + 9}", "bytes=-0"):
        answer = client.get(f"/jobs/{job_id}/artifacts/{FILE}", headers={"Range": beyond})
        assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{SIZE}"), beyond
        assert answer.json()["type"] == "urn:mergenet:problem:range-not-satisfiable"
    for wrong in ("bytes=a-b", "lines=1-2", "bytes=9-3", "bytes=-", "bytes=", "bytes=1-2,x"):
        answer = client.get(f"/jobs/{job_id}/artifacts/{FILE}", headers={"Range": wrong})
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json"), wrong


def test_if_range_gives_the_whole_file_when_the_hash_differs(client: TestClient, job_id: str) -> None:
    path = f"/jobs/{job_id}/artifacts/{FILE}"
    same = client.get(path, headers={"Range": "bytes=9-", "If-Range": f'"{SHA}"'})
    other = client.get(path, headers={"Range": "bytes=9-", "If-Range": f'"{"0" * 64}"'})
    assert (same.status_code, other.status_code, len(other.content)) == (206, 200, SIZE)


def test_if_none_match_with_the_same_hash_gets_304(client: TestClient, job_id: str) -> None:
    path = f"/jobs/{job_id}/artifacts/{FILE}"
    for tag, status in ((f'"{SHA}"', 304), (f'"x", W/"{SHA}"', 304), ("*", 304), ('"x"', 200)):
        answer = client.get(path, headers={"If-None-Match": tag})
        assert answer.status_code == status
        assert answer.headers["etag"] == f'"{SHA}"'


@pytest.mark.parametrize(
    "path", ["nothing", "..%2F..%2Fjob.json", "../../job.json", "model", "%2Fetc%2Fpasswd", "secret.txt", "model%00"]
)
def test_only_files_of_the_manifest_are_served(
    client: TestClient, job_id: str, settings: ServiceSettings, path: str
) -> None:
    (settings.job_folder(job_id).artifact / "secret.txt").write_text("not in the manifest")
    assert client.get(f"/jobs/{job_id}/artifacts/{path}").status_code == 404


def test_a_file_that_differs_from_the_manifest_is_not_served(
    client: TestClient, job_id: str, settings: ServiceSettings
) -> None:
    def torn(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-1])

    def linked(path: Path) -> None:
        path.rename(path.with_suffix(".moved"))
        (settings.home / "elsewhere").write_bytes(finishing.WEIGHTS)
        path.symlink_to(settings.home / "elsewhere")

    def gone(path: Path) -> None:
        path.unlink()

    def flipped(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[1000] ^= 1
        path.write_bytes(content)

    assert client.get(f"/jobs/{job_id}/artifacts/{FILE}").status_code == 200
    for harm in (flipped, torn, linked, gone):
        harm(settings.job_folder(job_id).artifact / FILE)
        answer = client.get(f"/jobs/{job_id}/artifacts/{FILE}")
        assert answer.status_code == 500, harm.__name__
        assert answer.json()["type"] == "urn:mergenet:problem:checkpoint-invalid"
