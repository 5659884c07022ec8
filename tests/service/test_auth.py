"""Every request needs a key, and a key allows only what its scopes cover."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.routing import BaseRoute

from mergenet_core.store import keys
from mergenet_core.store.api_keys import create_key
from mergenet_core.store.jobs import Store
from service.server.app import create_app
from service.server.settings import ServiceSettings
from tests.service.conftest import KEY

OPEN = {"/healthz", "/readyz", "/schema/job", "/openapi.json", "/docs"}
NEEDS_SUBMIT = {("POST", "/jobs"), ("DELETE", "/jobs/{job_id}")} | {
    ("POST", f"/jobs/{{job_id}}/{what}") for what in ("cancel", "pause", "resume", "checkpoint")
}


def every_route(settings: ServiceSettings) -> set[tuple[str, str]]:
    def walk(routes: list[BaseRoute]) -> Iterator[tuple[str, str]]:
        for route in routes:
            inner = getattr(route, "original_router", None) or getattr(route, "router", None)
            if inner is not None:
                yield from walk(inner.routes)
            else:
                for method in getattr(route, "methods", ()):
                    yield method, route.path  # type: ignore[attr-defined]

    found = set(walk(create_app(settings).routes))
    assert len(found) > 25
    assert ("GET", "/jobs/{job_id}/events/stream") in found
    return found


def call(client: TestClient, method: str, path: str, headers: dict[str, str]) -> Any:
    concrete = (
        path.replace("{job_id}", "01J00000000000000000000000").replace("{path:path}", "a/b").replace("{name}", "k")
    )
    return client.request(method, concrete, headers=headers)


def test_every_route_but_health_and_description_refuses_without_a_key(settings: ServiceSettings) -> None:
    client = TestClient(create_app(settings.model_copy(update={"wrong_keys_per_minute": 10_000})))
    for method, path in every_route(settings):
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"X-API-Key": "wrong"},
            {"Authorization": f"Basic {KEY}"},
        ):
            answer = call(client, method, path, headers)
            if path in OPEN:
                assert answer.status_code == 200, (method, path)
                continue
            assert answer.status_code == 401, (method, path, headers)
            assert answer.headers["www-authenticate"].startswith("Bearer")
            if method != "HEAD":
                assert answer.json()["type"] == "urn:mergenet:problem:unauthenticated"


@pytest.mark.parametrize("scope", ["read", "submit", "admin"])
def test_a_key_does_what_its_scope_says_and_no_more(settings: ServiceSettings, store: Store, scope: str) -> None:
    key = create_key(store.redis, f"{scope}-only", (scope,))  # type: ignore[arg-type]
    client = TestClient(create_app(settings))
    for method, path in every_route(settings):
        if path in OPEN or path == "/metrics":
            continue
        needed = (
            "admin"
            if path.startswith("/keys") or path.endswith("/clear") or path == "/gc"
            else "submit"
            if (method, path) in NEEDS_SUBMIT
            else "read"
        )
        status = call(client, method, path, {"X-API-Key": key}).status_code
        allowed = scope in (needed, "admin")
        assert (status != 403) == allowed, (scope, method, path, status)
        assert status != 401


def test_keys_are_made_listed_and_revoked(client: TestClient, settings: ServiceSettings, store: Store) -> None:
    made = client.post("/keys", json={"name": "ci", "scopes": ["read", "submit"]})
    assert made.status_code == 201
    key = made.json()["key"]
    assert key not in str(store.redis.hgetall(keys.API_KEYS))  # only its hash is at rest
    assert client.get("/keys").json() == [{"name": "ci", "scopes": ["read", "submit"]}]
    other = TestClient(create_app(settings), headers={"Authorization": f"Bearer {key}"})
    assert other.get("/jobs").status_code == 200
    assert client.delete("/keys/ci").status_code == 204
    assert other.get("/jobs").status_code == 401
    assert client.delete("/keys/ci").status_code == 404
    wrong = client.post("/keys", json={"name": "ci", "scopes": ["everything"]})
    assert (wrong.status_code, wrong.json()["errors"][0]["pointer"]) == (422, "/scopes/0")


@pytest.mark.parametrize("name", ["operator", "Operator", "anonymous"])
def test_a_key_cannot_be_named_like_the_service_itself(client: TestClient, name: str) -> None:
    answer = client.post("/keys", json={"name": name, "scopes": ["read"]})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/name")
    assert client.get("/keys").json() == []


def test_a_key_of_a_name_that_is_taken_is_kept_unless_it_is_to_be_replaced(
    client: TestClient, settings: ServiceSettings
) -> None:
    wanted = {"name": "ci", "scopes": ["read"]}
    old = TestClient(create_app(settings), headers={"X-API-Key": client.post("/keys", json=wanted).json()["key"]})
    again = client.post("/keys", json=wanted)
    assert (again.status_code, again.json()["type"]) == (409, "urn:mergenet:problem:state-conflict")
    assert old.get("/jobs").status_code == 200
    assert client.post("/keys", json=wanted | {"replace": True}).status_code == 201
    assert old.get("/jobs").status_code == 401
    assert len(client.get("/keys").json()) == 1


def test_after_many_wrong_keys_further_ones_are_not_looked_at_but_known_ones_work(
    settings: ServiceSettings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, new = (create_key(store.redis, name, ("read",)) for name in ("known", "new"))
    client = TestClient(create_app(settings.model_copy(update={"wrong_keys_per_minute": 5})))

    def status(key: str) -> int:
        return client.get("/jobs", headers={"X-API-Key": key}).status_code

    assert status(known) == 200
    assert [status(f"guess {number}") for number in range(5)] == [401] * 5
    refused = client.get("/jobs", headers={"X-API-Key": "guess"})
    assert (refused.status_code, refused.json()["type"]) == (429, "urn:mergenet:problem:too-many-requests")
    assert int(refused.headers["retry-after"]) > 0
    assert (status(known), status(new)) == (200, 429)
    later = time.monotonic() + 61
    monkeypatch.setattr("service.server.wrong_keys.time.monotonic", lambda: later)
    assert (status(new), status("guess")) == (200, 401)


def test_a_key_of_any_characters_is_refused_and_not_an_error(client: TestClient) -> None:
    assert client.get("/jobs", headers={"Authorization": "Bearer schlüssel".encode()}).status_code == 401


def test_without_auth_everyone_may_do_everything(settings: ServiceSettings) -> None:
    client = TestClient(create_app(settings.model_copy(update={"insecure_no_auth": True})))
    assert client.get("/keys").status_code == 200


def test_a_short_or_empty_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGENET_API_KEY", "")
    assert ServiceSettings().api_key is None
    monkeypatch.setenv("MERGENET_API_KEY", "short")
    with pytest.raises(ValueError, match="at least 16 characters"):
        ServiceSettings()
