"""The whole service on one machine, with its files in one folder: Redis, the API and workers as child processes.

`mergenet up` calls `run_service`; `mergenet run` starts `start_command` as a process of its own. Signal handlers only
increase a counter, so that a signal can never come between the start of a child and the note that it exists.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from mergenet_core.errors import MergeNetError, PathRefused, Unavailable
from mergenet_core.processes.command import python_command
from mergenet_core.processes.kept_process import KeptProcess
from mergenet_core.processes.linux import adopt_orphans
from mergenet_core.processes.trees import end_descendants, reap_orphans
from service.client.profile import Profile, clear_address, read_key, write_profile

READY_SECONDS = 60.0
"""How long Redis and the API may take until they answer."""
DRAIN_SECONDS = 75.0
"""How long workers may take to write their checkpoints; a second signal cuts it short."""
STOP_SECONDS = 10.0


@dataclass(frozen=True)
class LocalOptions:
    """How to set up a service on one machine."""

    home: Path
    models: Path
    data: Path
    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes a free one."""
    workers: int | None = None
    """Trials at a time; None for as many as the machine has GPUs, or one."""


_OPTIONS = TypeAdapter(LocalOptions)


@dataclass
class _Service:
    options: LocalOptions
    stops: int = 0
    """How many signals asked it to stop."""
    children: list[KeptProcess] = field(default_factory=list)


def run_service(options: LocalOptions, ready: Callable[[Profile], None]) -> None:
    """Run until SIGINT or SIGTERM, and leave no process behind. After a second signal it does not wait for checkpoints.

    Call it in the main thread of a process that does nothing else; `ready` is called once the API answers.
    Raises: `PathRefused` if another service uses the folder or the port, `Unavailable` if a child keeps ending.
    """
    service = _Service(options)

    def ask_to_stop(signum: int, frame: object) -> None:
        service.stops += 1

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, ask_to_stop)
    adopt_orphans()
    home = options.home.resolve()
    (home / "logs").mkdir(parents=True, exist_ok=True)
    lock = (home / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise PathRefused(
            f"{home} is in use by another `mergenet up` or `run`; stop that one or take another --home"
        ) from None
    listening = _listen(options)
    try:
        _start(service, home, listening, ready)
        while not service.stops:
            for child in service.children:
                child.keep_alive()
            reap_orphans({child.pid for child in service.children})
            time.sleep(0.1)
    finally:
        listening.close()
        _stop(service)
        clear_address(home)
        lock.close()


def redis_binary() -> str:
    """The redis-server on PATH, or else the one that the extra `embedded` installs. Raises: `Unavailable`."""
    embedded = Path(sys.executable).with_name("redis-server")
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None and embedded.is_file():
        found = str(embedded)
    if found is None:
        raise Unavailable("no redis-server is installed; install the extra: pip install 'mergenet-service[embedded]'")
    return found


def _start(service: _Service, home: Path, listening: socket.socket, ready: Callable[[Profile], None]) -> None:
    options = service.options
    password = secrets.token_urlsafe(24)
    port = _free_port()
    profile = Profile(
        url=f"http://{_reachable(options.host)}:{listening.getsockname()[1]}",
        api_key=read_key(home) or f"mn_{secrets.token_urlsafe(32)}",
    )
    environment = os.environ | {
        "MERGENET_HOME": str(home),
        "MERGENET_REDIS_URL": f"redis://:{password}@127.0.0.1:{port}/0",
        "MERGENET_MODEL_ROOTS": str(options.models.resolve()),
        "MERGENET_DATA_ROOTS": str(options.data.resolve()),
        "PYTHONUNBUFFERED": "1",
    }
    environment.pop("MERGENET_API_KEY", None)  # workers do not need it
    redis = KeptProcess(
        "redis",
        [redis_binary(), "-"],
        log=home / "logs" / "redis.log",
        environment=dict(os.environ),
        # the password through standard input: everyone on the machine can read arguments
        stdin=_redis_config(port, password),
        folder=home / "redis",
    )
    _launch(service, redis)
    _wait(service, "Redis", lambda: _redis_answers(port, password))
    _launch(
        service,
        KeptProcess(
            "api",
            python_command("service", "--fd", str(listening.fileno())),
            log=home / "logs" / "api.log",
            environment=environment | {"MERGENET_API_KEY": profile.api_key},
            descriptors=(listening.fileno(),),
        ),
    )
    if options.workers != 0:
        count = {} if options.workers is None else {"MERGENET_WORKERS": str(options.workers)}
        log, command = home / "logs" / "workers.log", python_command("workers")
        _launch(service, KeptProcess("workers", command, log=log, environment=environment | count))
    _wait(service, "the API", lambda: _api_answers(listening))
    if not service.stops:
        write_profile(home, profile)
        ready(profile)


def _launch(service: _Service, child: KeptProcess) -> None:
    if service.stops:
        return
    service.children.append(child)
    child.start()


def _wait(service: _Service, what: str, answers: Callable[[], bool]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not service.stops and not answers():
        for child in service.children:
            child.keep_alive()
        if time.monotonic() > deadline:
            raise Unavailable(f"{what} does not answer after {READY_SECONDS:.0f} s; see {service.options.home}/logs")
        time.sleep(0.05)


def _stop(service: _Service) -> None:
    """End the workers while Redis still records their last checkpoints, then the API, then Redis."""
    for child in reversed(service.children):
        child.ask_to_end()
        deadline = time.monotonic() + (DRAIN_SECONDS if child.name == "workers" else STOP_SECONDS)
        while child.alive() and time.monotonic() < deadline and service.stops <= 1:
            time.sleep(0.02)
    end_descendants()


def _listen(options: LocalOptions) -> socket.socket:
    try:
        listening = socket.create_server((options.host, options.port), backlog=1024)
    except OSError as error:
        raise PathRefused(
            f"{options.host}:{options.port} cannot be listened on ({error.strerror}); take another --port"
        ) from None
    # connections inherit it; without it the body of a response waits 40 ms for the acknowledgement of its headers
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _redis_config(port: int, password: str) -> bytes:
    lines = [f"port {port}", "bind 127.0.0.1", f"requirepass {password}", "dir .", 'save ""']
    lines += ["appendonly yes", "appendfsync always", "maxmemory-policy noeviction"]
    return "\n".join(lines).encode()


def _redis_answers(port: int, password: str) -> bool:
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.exceptions import RedisError
    from redis.retry import Retry

    try:
        with Redis(port=port, password=password, socket_timeout=1, retry=Retry(NoBackoff(), 0)) as client:
            return bool(client.ping())
    except RedisError:
        return False


def _api_answers(listening: socket.socket) -> bool:
    """Whether the API is ready; until it accepts the connection, the kernel holds the request."""
    host, port = listening.getsockname()[:2]
    try:
        with socket.create_connection((_reachable(host), port), timeout=1) as connection:
            connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return connection.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "") else host


def start_command(options: LocalOptions, ready_fd: int) -> list[str]:
    """The command that runs a service in a process of its own.

    Once the service is ready, its profile is written to the file descriptor `ready_fd` as JSON.
    """
    return python_command("service.local.local_service", _OPTIONS.dump_json(options).decode(), str(ready_fd))


def main(text: str, ready_fd: int) -> int:
    """Run the service of a `start_command`; return the exit status."""
    options = _OPTIONS.validate_json(text)

    def ready(profile: Profile) -> None:
        with os.fdopen(ready_fd, "w") as pipe:
            pipe.write(profile.model_dump_json())

    try:
        run_service(options, ready)
    except MergeNetError as error:
        print(error.message, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename or options.home} cannot be used ({error.strerror or error})", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
