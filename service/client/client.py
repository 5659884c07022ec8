"""The typed client: `Client(url, key).submit(document)`. It raises the same errors as the service, by the same names.

A request that got no answer is sent again: reading twice does no harm, and a job is posted under an idempotency key.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx2
from pydantic import TypeAdapter
from ulid import ULID

from mergenet_core.errors import SpecInvalid, Unavailable
from mergenet_core.records.events import Event, Metric, Progress
from mergenet_core.records.job import TERMINAL
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
    MetricSeries,
    NewKey,
    Validation,
)

TRIES = 4
PATIENCE_SECONDS = 120.0
"""How long a broken event stream is tried again before it is given up."""
_READ_SECONDS = 40.0  # the server sends a comment every 15 s into a quiet stream
_WORKERS = TypeAdapter(list[WorkerInfo])
_DEVICES = TypeAdapter(list[DeviceState])
_KEYS = TypeAdapter(list[KeyView])


class Client:
    """A connection to a MergeNet service. Close it, or use it as a context manager."""

    def __init__(self, url: str | None = None, api_key: str | None = None) -> None:
        """Address and key default to MERGENET_URL and MERGENET_API_KEY. Raises: `SpecInvalid`, `Unavailable`."""
        self.url = (url or os.environ.get("MERGENET_URL") or "http://127.0.0.1:8000").rstrip("/")
        key = api_key or os.environ.get("MERGENET_API_KEY")
        headers = {"Authorization": f"Bearer {_sendable(key, 'the API key')}"} if key else {}
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
        """Give the connection back."""
        self._http.close()

    def submit(self, document: JobSpec | Mapping[str, Any] | str, *, idempotency_key: str | None = None) -> JobView:
        """Post a job given as a `JobSpec`, as data, or as YAML text.

        Raises: `SpecInvalid`, `PathRefused`, `ModelRefused`, `DataRefused`, `PairingRefused`, `TooLarge`, …
        """
        answer = self._send("POST", "/jobs", **_content(document, idempotency_key or str(ULID())))
        return JobView.model_validate_json(answer.content)

    def validate(self, document: JobSpec | Mapping[str, Any] | str) -> Validation:
        """What a job would do: pairs, transferable parameters, memory and disk. Raises: what `submit` raises."""
        return Validation.model_validate_json(self._send("POST", "/jobs/validate", **_content(document)).content)

    def get(self, job_id: str) -> JobView:
        """A job's record, its progress, and why it waits. Raises: `NotFound`."""
        return JobView.model_validate_json(self._send("GET", f"/jobs/{job_id}").content)

    def jobs(
        self, *, status: str | None = None, label: str | None = None, after: str | None = None, limit: int = 50
    ) -> JobPage:
        """A page of jobs, newest first; `label` as `name=value`."""
        answer = self._send("GET", "/jobs", params=_given(status=status, label=label, after=after, limit=limit))
        return JobPage.model_validate_json(answer.content)

    def cancel(self, job_id: str) -> JobView:
        """Stop a job for good; its running trial writes a checkpoint first."""
        return self._steer(job_id, "cancel")

    def pause(self, job_id: str) -> JobView:
        """Stop a job until `resume`."""
        return self._steer(job_id, "pause")

    def resume(self, job_id: str) -> JobView:
        """Go on with a paused job, or with one that failed for a reason that may have passed."""
        return self._steer(job_id, "resume")

    def checkpoint(self, job_id: str) -> JobView:
        """Ask the running trial for a checkpoint now."""
        return self._steer(job_id, "checkpoint")

    def delete(self, job_id: str) -> None:
        """Forget a finished job and its files."""
        self._send("DELETE", f"/jobs/{job_id}")

    def plan(self, job_id: str) -> dict[str, Any]:
        """Trials, pairing and estimate as they were when the job was accepted."""
        found: dict[str, Any] = self._send("GET", f"/jobs/{job_id}/plan").json()
        return found

    def report(self, job_id: str) -> Report:
        """The arms side by side. Raises: `NotFound` until the job has succeeded."""
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
        """Measured numbers in a range of steps, at most `resolution` points a series."""
        wanted = _given(name=name, trial=trial, step_from=step_from, step_to=step_to, resolution=resolution)
        answer = self._send("GET", f"/jobs/{job_id}/metrics", params=wanted)
        return MetricSeries.model_validate_json(answer.content).items

    def logs(self, job_id: str, *, trial: str | None = None, attempt: int | None = None, tail: int = 65536) -> str:
        """The last bytes of what an attempt's processes printed."""
        wanted = _given(trial=trial, attempt=attempt, tail=tail)
        return self._send("GET", f"/jobs/{job_id}/logs", params=wanted).content.decode(errors="replace")

    def checkpoints(self, job_id: str) -> CheckpointList:
        """The newest checkpoint of each trial."""
        return CheckpointList.model_validate_json(self._send("GET", f"/jobs/{job_id}/checkpoints").content)

    def artifacts(self, job_id: str) -> ArtifactList:
        """The files of the result. Raises: `NotFound` until the job has succeeded."""
        return ArtifactList.model_validate_json(self._send("GET", f"/jobs/{job_id}/artifacts").content)

    def download(self, job_id: str, folder: Path) -> list[Path]:
        """Bring the result into a folder: broken downloads go on, every file's hash is checked before it has its name.

        Raises: `NotFound`, `CheckpointInvalid`, `StorageFull`, `Unavailable`.
        """
        return [fetch(self._http, file, folder) for file in self.artifacts(job_id).items]

    def workers(self) -> list[WorkerInfo]:
        """The workers that are alive."""
        return _WORKERS.validate_json(self._send("GET", "/workers").content)

    def devices(self) -> list[DeviceState]:
        """The devices of the workers' hosts, who holds them, and which are lent to nobody."""
        return _DEVICES.validate_json(self._send("GET", "/devices").content)

    def clear_device(self, host: str, device: str) -> list[DeviceState]:
        """Let a quarantined device be lent again. Needs an admin's key. Raises: `NotFound` when it is none."""
        path = f"/devices/{quote(host, safe='')}/{quote(device, safe='')}/clear"
        return _DEVICES.validate_json(self._send("POST", path).content)

    def api_keys(self) -> list[KeyView]:
        """Names and scopes of all keys. Needs an admin's key."""
        return _KEYS.validate_json(self._send("GET", "/keys").content)

    def create_key(self, name: str, scopes: tuple[str, ...]) -> NewKey:
        """Make a key; it is shown this once. Needs an admin's key."""
        answer = self._send("POST", "/keys", json={"name": name, "scopes": list(scopes)})
        return NewKey.model_validate_json(answer.content)

    def revoke_key(self, name: str) -> None:
        """Forget a key. Needs an admin's key."""
        self._send("DELETE", f"/keys/{name}")

    def events(self, job_id: str, *, after: str | None = None, limit: int = 200) -> EventPage:
        """A page of a job's events, oldest first."""
        answer = self._send("GET", f"/jobs/{job_id}/events", params=_given(after=after, limit=limit))
        return EventPage.model_validate_json(answer.content)

    def follow(self, job_id: str, *, after: str | None = None) -> Iterator[Event | Progress]:
        """Events and progress as they happen, until the job has ended; a broken stream goes on where it broke.

        Raises: `Unavailable` when the service stays away, `NotFound` when the job is gone.
        """
        broken_since: float | None = None
        while True:
            try:
                for event in self._stream(job_id, after):
                    broken_since = None
                    if isinstance(event, Event):
                        after = event.id
                    yield event
                # it ends with the job, or because the server stops: only the record tells
                if self.get(job_id).state in TERMINAL and not self.events(job_id, after=after, limit=1).items:
                    return
            except (Unavailable, httpx2.TransportError) as error:
                broken_since = broken_since or time.monotonic()
                if time.monotonic() - broken_since > PATIENCE_SECONDS:
                    raise Unavailable(f"{self.url} stays away: {error}") from None
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

    def _steer(self, job_id: str, what: str) -> JobView:
        return JobView.model_validate_json(self._send("POST", f"/jobs/{job_id}/{what}").content)

    def _send(self, method: str, path: str, **parts: Any) -> httpx2.Response:
        for attempt in range(1, TRIES + 1):
            try:
                answer = self._http.request(method, path, **parts)
                if not answer.is_error:
                    return answer
                raise_problem(answer)
            except httpx2.TransportError as error:
                if attempt == TRIES:
                    raise Unavailable(
                        f"{self.url} does not answer ({error}); is it up, and is MERGENET_URL right?"
                    ) from None
            except Unavailable:
                if attempt == TRIES:
                    raise
            time.sleep(0.2 * 2**attempt)
        raise AssertionError("unreachable")


def _content(document: JobSpec | Mapping[str, Any] | str, idempotency_key: str | None = None) -> dict[str, Any]:
    headers = {"Idempotency-Key": _sendable(idempotency_key, "the idempotency key")} if idempotency_key else {}
    if isinstance(document, JobSpec):
        document = document.model_dump(mode="json", exclude_unset=True)
    if isinstance(document, str):
        return {"content": document.encode(), "headers": headers | {"Content-Type": "application/yaml"}}
    return {"json": dict(document), "headers": headers}


def _sendable(text: str, what: str) -> str:
    """What a header can carry. Raises: `SpecInvalid`."""
    if not (text.isascii() and text.isprintable()):
        raise SpecInvalid(f"{what} holds a line break or a character outside ASCII; copy it again")
    return text


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
