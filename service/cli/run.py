"""`mergenet run`: starts a service on this machine, runs one job in it and downloads the result."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from mergenet_core.errors import NotFound, Unavailable
from mergenet_core.processes.linux import terminate_with
from mergenet_core.records.job import TERMINAL
from mergenet_core.spec.job import JobSpec
from mergenet_core.spec.parse import digest
from service.cli.watch import watch_job
from service.client import Client
from service.client.profile import Profile
from service.local.local_service import LocalOptions, start_command
from service.schemas import JobView

_UNFINISHED = "unfinished-runs.json"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_job(spec: JobSpec, options: LocalOptions, out: Path | None, console: Console) -> bool:
    """Start the service, submit the job, watch it, download its result, stop the service.

    A file in the home maps each document to its job, so that a second run continues an interrupted one.
    Returns: whether the job succeeded. Raises: the service's errors; `Unavailable` if it does not start.
    """
    with local_service(options) as profile, Client(profile.url, profile.api_key) as client:
        job = _unfinished(client, spec, options.home)
        if job is not None:
            console.print(f"Continuing job {job.id}, which was interrupted", markup=False)
            if job.state in ("paused", "pausing"):
                client.resume(job.id)
        else:
            job = client.submit(spec)
            _remember(options.home, spec, job.id)
            console.print(f"{spec.name} is job {job.id}", markup=False)
        succeeded = watch_job(client, job.id, console)
        if succeeded and out is not None:
            files = client.download(job.id, out)
            console.print(f"Downloaded {len(files)} files to {out}; their SHA-256 hashes match", markup=False)
        elif succeeded:
            console.print(f"The result is in {options.home / 'jobs' / job.id / 'artifact'}", markup=False)
        return succeeded


@contextlib.contextmanager
def local_service(options: LocalOptions) -> Iterator[Profile]:
    """Run a service in a process of its own; leaving the context stops it.

    The first SIGINT, SIGTERM or SIGHUP raises `KeyboardInterrupt`; each further one makes the service stop faster.

    Raises: `Unavailable` if it does not start.
    """
    reading, writing = os.pipe()
    parent = os.getpid()
    process: subprocess.Popen[bytes] | None = None

    def hurry(signum: int, frame: object) -> None:
        if process is not None:
            process.terminate()

    def interrupt(signum: int, frame: object) -> None:
        for number in _SIGNALS:
            signal.signal(number, hurry)  # so that no signal interrupts the clean-up
        raise KeyboardInterrupt

    for number in _SIGNALS:
        signal.signal(number, interrupt)
    # no signal between the start of the process and the assignment of `process`
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        process = subprocess.Popen(
            start_command(options, writing),
            stdout=subprocess.DEVNULL,
            pass_fds=(writing,),
            start_new_session=True,
            preexec_fn=lambda: terminate_with(parent),
        )
        os.close(writing)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        with os.fdopen(reading) as pipe:
            profile = pipe.read()
        if not profile:
            raise Unavailable("the service did not start; its error message is above")
        yield Profile.model_validate_json(profile)
    finally:
        try:
            for number in _SIGNALS:
                signal.signal(number, hurry)
        finally:
            if process is not None:
                process.terminate()
                process.wait()


def _unfinished(client: Client, spec: JobSpec, home: Path) -> JobView | None:
    job_id = _read(home).get(digest(spec))
    if job_id is None:
        return None
    try:
        job = client.get(job_id)
    except NotFound:
        return None
    return None if job.state in TERMINAL else job


def _remember(home: Path, spec: JobSpec, job_id: str) -> None:
    (home / _UNFINISHED).write_text(json.dumps(_read(home) | {digest(spec): job_id}))


def _read(home: Path) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads((home / _UNFINISHED).read_text())
    except (OSError, ValueError):
        return {}
    return found
