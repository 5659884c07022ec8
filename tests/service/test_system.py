"""The API process: its imports, its health checks, its errors when Redis is down or full, its metrics and log."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx2
import pytest
import redis.exceptions
from fastapi.testclient import TestClient
from jsonschema import Draft202012Validator
from prometheus_client.parser import text_string_to_metric_families

from mergenet_core.store.jobs import Store
from service.server.app import create_app
from service.server.problem_details import is_transient
from service.server.settings import ServiceSettings
from tests.conftest import RedisServer
from tests.service.conftest import KEY, job_document, roots, start_server


def test_the_service_is_imported_without_torch_or_workers() -> None:
    heavy = "torch|transformers|datasets|numpy|workers|mergenet_core.training|mergenet_core.transfer"
    code = "import sys, service.server.app, service.cli.commands; "
    code += f"print([m for m in sys.modules if m in {heavy.split('|')!r}])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["service.client", "service.cli.commands"])
def test_the_client_and_the_command_line_import_neither_the_planner_nor_server_packages(module: str) -> None:
    planner = ("mergenet_core.planning.make_plan", "mergenet_core.pairing.pair", "mergenet_core.architectures.families")
    heavy = (*planner, "fastapi", "redis", "rq", "uvicorn", "torch", "numpy")
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_process_that_has_just_started_answers_its_health_check(settings: ServiceSettings) -> None:
    process, url = start_server(settings)
    try:
        assert httpx2.get(f"{url}/healthz", timeout=10).json()["status"] == "ok"
    finally:
        process.terminate()
        process.wait(10)


def test_a_stop_ends_open_streams_and_the_process(settings: ServiceSettings) -> None:
    process, url = start_server(settings)
    with httpx2.Client(base_url=url, headers={"X-API-Key": KEY}, timeout=10) as http:
        job_id = http.post("/jobs", json=job_document()).json()["id"]
        with http.sse(f"/jobs/{job_id}/events/stream") as source:
            events = iter(source)
            next(events)
            process.terminate()
            assert process.wait(10) in (0, -signal.SIGTERM)


def test_the_reconciler_writes_nothing_after_the_application_has_ended(
    settings: ServiceSettings, redis_server: RedisServer
) -> None:
    with TestClient(create_app(settings.model_copy(update={"reconcile_seconds": 0.01}))):
        redis = redis_server.client()
        redis.client_pause(400, all=False)  # writes wait
        deadline = time.monotonic() + 5
        while not redis.info("clients")["blocked_clients"]:  # until the reconciler waits with its write
            assert time.monotonic() < deadline
    assert "reconciler" not in {thread.name for thread in threading.enumerate()}


def test_readiness_requires_a_redis_that_appends_to_disk(client: TestClient, redis_server: RedisServer) -> None:
    assert client.get("/readyz").json()["status"] == "ok"
    redis_server.client().config_set("appendonly", "no")
    try:
        answer = client.get("/readyz")
        assert answer.status_code == 503
        assert "start it with --appendonly yes" in answer.json()["detail"]
    finally:
        redis_server.client().config_set("appendonly", "yes")


@pytest.fixture
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis that a test may kill."""
    folder = Path(f"/tmp/mn-{tmp_path_factory.mktemp('r').parent.name}-{time.monotonic_ns()}")
    folder.mkdir()
    server = RedisServer(folder)
    yield server
    server.kill()


@pytest.fixture
def shaky(own_redis: RedisServer, tmp_path: Path) -> Iterator[TestClient]:
    """The API over that Redis."""
    with TestClient(create_app(roots(tmp_path, own_redis.url)), headers={"X-API-Key": KEY}) as client:
        yield client


def test_requests_get_503_while_redis_is_down_and_work_again_afterwards(
    shaky: TestClient, own_redis: RedisServer, document: dict[str, Any], tmp_path: Path
) -> None:
    kept = shaky.post("/jobs", json=document).json()
    own_redis.kill()
    for method, path in (("GET", "/jobs"), ("GET", f"/jobs/{kept['id']}"), ("GET", "/readyz"), ("GET", "/metrics")):
        answer = shaky.request(method, path)
        assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json"), path
        assert answer.headers["retry-after"] == "5"
    refused = shaky.post("/jobs", json=document)
    assert refused.status_code == 503
    assert shaky.get("/healthz").status_code == 200
    own_redis.start()
    assert shaky.get(f"/jobs/{kept['id']}").json() == kept
    assert [folder.name for folder in (tmp_path / "home" / "jobs").iterdir()] == [kept["id"]]


def test_a_job_for_which_redis_has_no_memory_leaves_nothing(
    shaky: TestClient, own_redis: RedisServer, document: dict[str, Any], tmp_path: Path
) -> None:
    own_redis.client().config_set("maxmemory", "1")
    answer = shaky.post("/jobs", json=document)
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:mergenet:problem:unavailable"), answer.text
    assert list(tmp_path.glob("home/jobs/*")) == []
    own_redis.client().config_set("maxmemory", "0")
    assert shaky.get("/jobs").json()["items"] == []
    assert shaky.post("/jobs", json=document).status_code == 202


def test_only_transient_errors_of_redis_count_as_unavailable() -> None:
    assert is_transient(redis.exceptions.ResponseError("MISCONF Errors writing to the AOF file"))
    assert not is_transient(redis.exceptions.ResponseError("WRONGTYPE Operation against a key"))


def test_a_job_whose_reply_from_redis_was_lost_is_kept_or_removed_completely(
    shaky: TestClient, own_redis: RedisServer, document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Store.create

    def written_but_reply_lost(*arguments: Any, **named: Any) -> Any:
        create(*arguments, **named)
        raise redis.exceptions.ConnectionError("the reply was lost")

    monkeypatch.setattr(Store, "create", written_but_reply_lost)
    answer = shaky.post("/jobs", json=document)
    assert answer.status_code == 202

    def never_written_and_redis_gone(*arguments: Any, **named: Any) -> Any:
        own_redis.kill()
        raise redis.exceptions.ConnectionError("gone")

    monkeypatch.setattr(Store, "create", never_written_and_redis_gone)
    assert shaky.post("/jobs", json=document).status_code == 503
    assert len(list((tmp_path / "home" / "jobs").iterdir())) == 2  # not known yet which
    own_redis.start()
    deadline = time.monotonic() + 20
    while len(list((tmp_path / "home" / "jobs").iterdir())) > 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert [folder.name for folder in (tmp_path / "home" / "jobs").iterdir()] == [answer.json()["id"]]


def test_unknown_paths_and_methods_and_internal_errors_are_problems(
    settings: ServiceSettings, document: dict[str, Any]
) -> None:
    app = create_app(settings)

    @app.get("/broken")
    def broken() -> None:
        raise RuntimeError("a secret of the implementation")

    client = TestClient(app, headers={"X-API-Key": KEY}, raise_server_exceptions=False)
    posted = client.post("/jobs", json=document).json()["id"]
    for method, path, status, code in (
        ("GET", "/nothing", 404, "not-found"),
        ("GET", "/jobs/nothing", 404, "not-found"),
        ("GET", f"/jobs/{posted}:spec", 404, "not-found"),  # another key of the same job in Redis
        ("GET", "/jobs/..%2F..%2Fetc/report", 404, "not-found"),
        ("PUT", "/jobs", 405, "method-not-allowed"),
        ("GET", "/broken", 500, "internal"),
    ):
        answer = client.request(method, path)
        problem = answer.json()
        assert (answer.status_code, problem["status"]) == (status, status)
        assert answer.headers["content-type"] == "application/problem+json"
        assert problem["type"] == f"urn:mergenet:problem:{code}"
        assert problem["instance"] == unquote(path)
        assert "secret" not in answer.text
    assert client.put("/jobs").headers["allow"] == "GET, POST"
    assert client.put(f"/jobs/{posted}").headers["allow"] == "DELETE, GET"
    assert client.put("/docs").headers["allow"] == "GET"


def test_the_schema_accepts_the_job_and_refuses_a_wrong_one(client: TestClient, document: dict[str, Any]) -> None:
    schema = client.get("/schema/job").json()
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    assert validator.is_valid(document)
    assert not validator.is_valid(document | {"trian": {}})


def test_the_openapi_document_describes_every_route_and_its_problems(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    known = {tag["name"] for tag in document["tags"]}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], (method, path)
            assert set(operation["tags"]) <= known
            if path not in ("/healthz", "/readyz", "/schema/job"):
                assert operation["security"], (method, path)
                assert {"401", "403"} <= set(operation["responses"]), (method, path)
    assert "HTTPValidationError" not in str(document)
    assert "415" in document["paths"]["/jobs"]["post"]["responses"]
    report = document["paths"]["/jobs/{job_id}/report"]["get"]["responses"]["200"]
    assert report["content"]["application/json"]["schema"]["$ref"].endswith("/Report")
    references = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert references <= set(document["components"]["schemas"])


def test_no_page_loads_anything_from_elsewhere_and_every_answer_says_so(client: TestClient) -> None:
    page = client.get("/docs")
    assert "<code>POST /jobs/{job_id}/cancel</code>" in page.text
    assert "http" not in page.text.replace("http.", "")
    assert "<script" not in page.text
    for path in ("/docs", "/jobs", "/nothing", "/openapi.json"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'none';")


def test_metrics_show_jobs_and_workers(client: TestClient, post: Callable[..., str]) -> None:
    post()
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert 'mergenet_jobs{state="queued"} 1.0' in answer.text
    assert "mergenet_trials_waiting 2.0" in answer.text
    assert 'mergenet_workers{state="busy"} 0.0' in answer.text


def test_metrics_count_requests_by_method_route_and_status(client: TestClient, post: Callable[..., str]) -> None:
    job_id = post()
    for path in (
        f"/jobs/{job_id}",
        f"/jobs/{job_id}",
        "/jobs/nothing",
        "/no/such/route",
        "/metrics",
        "/docs",
        "/openapi.json",
    ):
        client.get(path)
    client.get("/jobs", headers={"Authorization": "Bearer wrong"})
    client.request("BREW", "/jobs")
    samples = {
        (sample.labels["method"], sample.labels["route"], sample.labels["status"]): sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
        if sample.name in ("mergenet_http_requests_total", "mergenet_http_request_duration_seconds_count")
    }
    assert samples == {
        ("POST", "/jobs", "202"): 1.0,
        ("GET", "/jobs/{job_id}", "200"): 2.0,
        ("GET", "/jobs/{job_id}", "404"): 1.0,
        ("GET", "unmatched", "404"): 1.0,
        ("GET", "/metrics", "200"): 1.0,
        ("GET", "/docs", "200"): 1.0,
        ("GET", "/openapi.json", "200"): 1.0,
        ("GET", "/jobs", "401"): 1.0,
        ("other", "/jobs", "405"): 1.0,
    }
    families = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}
    assert "this API process" in families["mergenet_http_requests"].documentation
    assert "this API process" in families["mergenet_http_request_duration_seconds"].documentation


def test_every_request_is_logged_with_the_name_of_its_key(
    client: TestClient, document: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="mergenet.access")
    client.post("/jobs", json=document)
    client.get("/jobs", headers={"Authorization": "Bearer wrong"})
    client.get("/healthz")
    posted, refused = (record.getMessage() for record in caplog.records if record.name == "mergenet.access")
    assert re.fullmatch(r"POST '/jobs' 202 \d+\.\d ms operator", posted)
    assert re.fullmatch(r"GET '/jobs' 401 \d+\.\d ms -", refused)
    assert KEY not in caplog.text
