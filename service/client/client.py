"""The HTTP client behind `service.client`: one typed method for each endpoint.

A request without an answer is sent again. That is safe: reads change nothing, a job is posted under an idempotency key,
and where a repeated request is refused because the first one succeeded, that refusal counts as success.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import httpx2
from pydantic import TypeAdapter
from ulid import ULID

from mergenet_core.errors import SpecInvalid, Unavailable
from mergenet_core.planning.plan import Plan
from mergenet_core.records.api_keys import Scope
from mergenet_core.records.events import Event, Metric, Progress
from mergenet_core.records.job import TERMINAL, Request
from mergenet_core.records.workers import DeviceState, WorkerInfo
from mergenet_core.results.report import Report
from mergenet_core.spec.job import JobSpec
from service.client.download import fetch
from service.client.errors import raise_problem
from service.schemas import (
    ArtifactList,
    CheckpointList,
    EventPage,
    JobPage,
    JobView,
    KeyView,
    Leftover,
    MetricSeries,
    NewKey,
    Validation,
)

TRIES = 4
STREAM_RETRY_SECONDS = 120.0
"""How long `follow` keeps reconnecting to a service that does not answer."""
_READ_SECONDS = 40.0  # the server sends a comment every 15 s into a quiet stream
_WORKERS = TypeAdapter(list[WorkerInfo])
_DEVICES = TypeAdapter(list[DeviceState])
_KEYS = TypeAdapter(list[KeyView])
_LEFTOVERS = TypeAdapter(list[Leftover])


@dataclass(frozen=True)
class _Content:
    """What a request carries: query parameters, or a body with its headers."""

    params: Mapping[str, str | int] | None = None
    json: object = None
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class Client:
    """A connection to a MergeNet service. Use it as a context manager, or call `close`."""

    def __init__(self, url: str | None = None, api_key: str | None = None) -> None:
        """Address and key default to MERGENET_URL and MERGENET_API_KEY. Raises: `SpecInvalid`, `Unavailable`."""
        self.url = (url or os.environ.get("MERGENET_URL") or "http://127.0.0.1:8000").rstrip("/")
        key = api_key or os.environ.get("MERGENET_API_KEY")
        headers = {"Authorization": f"Bearer {_header_value(key, 'the API key')}"} if key else {}
        timeout = httpx2.Timeout(_READ_SECONDS, connect=5.0)
        # without TLS there is nothing to verify, and loading the certificates takes a tenth of a second
        secure = self.url.startswith("https:")
        try:
            self._http = httpx2.Client(base_url=self.url, headers=headers, timeout=timeout, verify=secure)
        except httpx2.InvalidURL as error:
            raise Unavailable(f"{self.url} is not an address ({error}); is MERGENET_URL right?") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def submit(self, document: JobSpec | Mapping[str, object] | str, *, idempotency_key: str | None = None) -> JobView:
        """Queue a job, given as a `JobSpec`, as a mapping, or as YAML text.

        Raises: `SpecInvalid`, `PathRefused`, `ModelRefused`, `DataRefused`, `PairingRefused`, `TooLarge`,
        `IdempotencyConflict`.
        """
        key = _header_value(idempotency_key or str(ULID()), "the idempotency key")
        content = _document(document, {"Idempotency-Key": key})
        return JobView.model_validate_json(self._send("POST", "/jobs", content).content)

    def validate(self, document: JobSpec | Mapping[str, object] | str) -> Validation:
        """Plan a job without queueing it: pairs of weights, memory and disk. Raises: what `submit` raises."""
        return Validation.model_validate_json(self._send("POST", "/jobs/validate", _document(document)).content)

    def get(self, job_id: str) -> JobView:
        """A job's record with its progress and the reason why it waits. Raises: `NotFound`."""
        return JobView.model_validate_json(self._send("GET", f"/jobs/{job_id}").content)

    def jobs(
        self, *, status: str | None = None, label: str | None = None, after: str | None = None, limit: int = 50
    ) -> JobPage:
        """A page of jobs, newest first; `label` is written `name=value`."""
        query = _query(status=status, label=label, after=after, limit=limit)
        return JobPage.model_validate_json(self._send("GET", "/jobs", query).content)

    def cancel(self, job_id: str) -> JobView:
        """Stop a job for good; its running trial writes a checkpoint first."""
        return self._request(job_id, "cancel")

    def pause(self, job_id: str) -> JobView:
        """Stop a job until `resume`."""
        return self._request(job_id, "pause")

    def resume(self, job_id: str) -> JobView:
        """Continue a paused job, or a failed one that is marked retryable. Raises: `StateConflict`."""
        answer = self._send("POST", f"/jobs/{job_id}/resume", when_repeated=409)
        return self.get(job_id) if answer.is_error else JobView.model_validate_json(answer.content)

    def checkpoint(self, job_id: str) -> JobView:
        """Ask the running trial to write a checkpoint now."""
        return self._request(job_id, "checkpoint")

    def delete(self, job_id: str) -> None:
        """Delete a finished job and its files. Raises: `NotFound`, `StateConflict`."""
        self._send("DELETE", f"/jobs/{job_id}", when_repeated=404)

    def plan(self, job_id: str) -> Plan:
        """Trials, pairing and estimate, as they were when the job was accepted. Raises: `NotFound`."""
        return Plan.model_validate_json(self._send("GET", f"/jobs/{job_id}/plan").content)

    def report(self, job_id: str) -> Report:
        """The arms side by side, and the verdict. Raises: `NotFound` until the job has succeeded."""
        return Report.model_validate_json(self._send("GET", f"/jobs/{job_id}/report").content)

    def metrics(
        self,
        job_id: str,
        *,
        name: str | None = None,
        trial: str | None = None,
        step_from: int = 0,
        step_to: int | None = None,
        resolution: int = 1000,
    ) -> list[Metric]:
        """Measured numbers in a range of steps, thinned to at most `resolution` points a series."""
        query = _query(name=name, trial=trial, step_from=step_from, step_to=step_to, resolution=resolution)
        return MetricSeries.model_validate_json(self._send("GET", f"/jobs/{job_id}/metrics", query).content).items

    def logs(self, job_id: str, *, trial: str | None = None, attempt: int | None = None, tail: int = 65536) -> str:
        """The end of an attempt's log, `tail` bytes of it; by default of the newest attempt of the last trial."""
        query = _query(trial=trial, attempt=attempt, tail=tail)
        return self._send("GET", f"/jobs/{job_id}/logs", query).content.decode(errors="replace")

    def checkpoints(self, job_id: str) -> CheckpointList:
        """The newest checkpoint of each trial."""
        return CheckpointList.model_validate_json(self._send("GET", f"/jobs/{job_id}/checkpoints").content)

    def artifacts(self, job_id: str) -> ArtifactList:
        """The files of the result. Raises: `NotFound` until the job has succeeded."""
        return ArtifactList.model_validate_json(self._send("GET", f"/jobs/{job_id}/artifacts").content)

    def download(self, job_id: str, folder: Path) -> list[Path]:
        """Download the result into a folder, resuming partial files and checking the SHA-256 of each.

        Raises: `NotFound`, `CheckpointInvalid`, `StorageFull`, `Unavailable`.
        """
        return [fetch(self._http, file, folder) for file in self.artifacts(job_id).items]

    def workers(self) -> list[WorkerInfo]:
        """The workers that are alive."""
        return _WORKERS.validate_json(self._send("GET", "/workers").content)

    def devices(self) -> list[DeviceState]:
        """The devices of the workers' hosts: which trial holds each, and which are quarantined."""
        return _DEVICES.validate_json(self._send("GET", "/devices").content)

    def clear_device(self, host: str, device: str) -> list[DeviceState]:
        """End a device's quarantine. Needs an admin key. Raises: `NotFound` if it is not quarantined."""
        path = f"/devices/{quote(host, safe='')}/{quote(device, safe='')}/clear"
        answer = self._send("POST", path, when_repeated=404)
        return self.devices() if answer.is_error else _DEVICES.validate_json(answer.content)

    def gc(self, *, delete: bool = False) -> list[Leftover]:
        """Folders on the server that belong to no job; with `delete` they are removed. Needs an admin key."""
        content = _query(delete="true" if delete else "false")
        return _LEFTOVERS.validate_json(self._send("POST", "/gc", content).content)

    def api_keys(self) -> list[KeyView]:
        """Names and scopes of all keys. Needs an admin key."""
        return _KEYS.validate_json(self._send("GET", "/keys").content)

    def create_key(self, name: str, scopes: Sequence[Scope], *, replace: bool = False) -> NewKey:
        """Create a key, which is shown only once. Needs an admin key.

        Raises: `StateConflict` if there is a key of that name, unless `replace`, which revokes that one.
        """
        content = _Content(json={"name": name, "scopes": list(scopes), "replace": replace})
        return NewKey.model_validate_json(self._send("POST", "/keys", content).content)

    def revoke_key(self, name: str) -> None:
        """Delete a key. Needs an admin key. Raises: `NotFound`."""
        self._send("DELETE", f"/keys/{quote(name, safe='')}", when_repeated=404)

    def events(self, job_id: str, *, after: str | None = None, limit: int = 200) -> EventPage:
        """A page of a job's events, oldest first."""
        query = _query(after=after, limit=limit)
        return EventPage.model_validate_json(self._send("GET", f"/jobs/{job_id}/events", query).content)

    def follow(self, job_id: str, *, after: str | None = None) -> Iterator[Event | Progress]:
        """Events and progress as they happen, until the job has ended; a broken stream is resumed where it broke.

        Raises: `NotFound` if the job is deleted; `Unavailable` if the service does not answer for
        `STREAM_RETRY_SECONDS`.
        """
        broken_since: float | None = None
        while True:
            try:
                for event in self._stream(job_id, after):
                    broken_since = None
                    if isinstance(event, Event):
                        after = event.id
                    yield event
                # a stream ends with its job, and also when the server stops: the job's state shows which
                if self.get(job_id).state in TERMINAL and not self.events(job_id, after=after, limit=1).items:
                    return
            except (Unavailable, httpx2.TransportError) as error:
                broken_since = broken_since or time.monotonic()
                if time.monotonic() - broken_since > STREAM_RETRY_SECONDS:
                    raise Unavailable(
                        f"{self.url} has not answered for {STREAM_RETRY_SECONDS:.0f} s ({error}); is it up?"
                    ) from None
            time.sleep(0.5)

    def _stream(self, job_id: str, after: str | None) -> Iterator[Event | Progress]:
        headers = {"Last-Event-ID": after} if after else {}
        with self._http.sse(f"/jobs/{job_id}/events/stream", headers=headers) as source:
            if source.response.is_error:
                source.response.read()
                raise_problem(source.response)
            for event in source:
                if event.event == "progress":
                    yield Progress.model_validate_json(event.data)
                else:
                    yield Event.model_validate_json(event.data)

    def _request(self, job_id: str, what: Request) -> JobView:
        return JobView.model_validate_json(self._send("POST", f"/jobs/{job_id}/{what}").content)

    def _send(
        self, method: str, path: str, content: _Content = _Content(), *, when_repeated: int | None = None
    ) -> httpx2.Response:
        """Send a request until it is answered.

        `when_repeated` is the error status that the server gives to a request it has carried out before. It counts as
        success when the answer to an earlier try was lost, and the response is returned.
        """
        perhaps_done = False
        for attempt in range(1, TRIES + 1):
            try:
                answer = self._http.request(
                    method,
                    path,
                    params=content.params,
                    json=content.json,
                    content=content.body,
                    headers=content.headers,
                )
                if not answer.is_error or (perhaps_done and answer.status_code == when_repeated):
                    return answer
                raise_problem(answer)
            except httpx2.TransportError as error:
                perhaps_done = perhaps_done or not isinstance(error, httpx2.ConnectError)
                if attempt == TRIES:
                    raise Unavailable(
                        f"{self.url} does not answer ({error}); is it up, and is MERGENET_URL right?"
                    ) from None
            except Unavailable:
                perhaps_done = True
                if attempt == TRIES:
                    raise
            time.sleep(0.2 * 2**attempt)
        raise AssertionError("unreachable")


def _document(document: JobSpec | Mapping[str, object] | str, headers: Mapping[str, str] | None = None) -> _Content:
    headers = headers or {}
    if isinstance(document, JobSpec):
        document = document.model_dump(mode="json", exclude_unset=True)
    if isinstance(document, str):
        return _Content(body=document.encode(), headers={**headers, "Content-Type": "application/yaml"})
    return _Content(json=dict(document), headers=headers)


def _header_value(text: str, what: str) -> str:
    """The text, if an HTTP header can carry it. Raises: `SpecInvalid`."""
    if not (text.isascii() and text.isprintable()):
        raise SpecInvalid(f"{what} holds a line break or a character outside ASCII; copy it again")
    return text


def _query(**values: str | int | None) -> _Content:
    return _Content(params={name: value for name, value in values.items() if value is not None})
