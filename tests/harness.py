"""Shared by the tests of workers and faults: tiny jobs, real worker processes, and waiting for conditions.

A `Lab` is a service's home with its Redis and the folders that jobs may name. Its jobs train a small MLP on images of
two classes. `SOLO` jobs have one trial with enough steps for a fault to occur during training.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil
from PIL import Image
from rq import Queue

from mergenet_core.planning.make_plan import make_plan
from mergenet_core.planning.new_job import new_job
from mergenet_core.planning.plan import Estimate, Plan
from mergenet_core.processes.command import python_command
from mergenet_core.records import state_machine
from mergenet_core.records.events import Event
from mergenet_core.records.job import TERMINAL, Job, Request, Trial, TrialResult
from mergenet_core.settings import Settings
from mergenet_core.spec.parse import parse
from mergenet_core.store import events, rq_queue, worker_registry
from mergenet_core.store.jobs import Store
from tests.conftest import RedisServer
from workers import processes

Found = TypeVar("Found")
SOLO = "control-0"
LEASE_SECONDS = 3.0
_SIZE = 8
ROOT = Path(__file__).parents[1]


@dataclass
class Lab:
    """A service without its API: submits jobs to the store, starts workers, reads the results."""

    redis_server: RedisServer
    folder: Path
    lease_seconds: float = LEASE_SECONDS
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _environments: dict[int, dict[str, str]] = field(default_factory=dict)
    """By process id, the variables that a worker's environment adds to the lab's own."""

    def __post_init__(self) -> None:
        (self.folder / "models").mkdir(parents=True)
        make_images(self.folder / "data" / "train", count=80, seed=0)
        make_images(self.folder / "data" / "test", count=40, seed=1)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "MERGENET_HOME": str(self.folder / "home"),
            "MERGENET_REDIS_URL": self.redis_server.url,
            "MERGENET_MODEL_ROOTS": str(self.folder / "models"),
            "MERGENET_DATA_ROOTS": str(self.folder / "data"),
            "MERGENET_LEASE_SECONDS": str(self.lease_seconds),
            "MERGENET_GRACE_SECONDS": "20",
            "MERGENET_THREADS": "1",
            "MERGENET_WORKERS": "1",
            "MERGENET_CPU_SLOTS": "8",
            "MERGENET_SILENCE_SECONDS": "8",
        }

    @property
    def settings(self) -> Settings:
        names = {name.removeprefix("MERGENET_").lower(): value for name, value in self.environment.items()}
        return Settings.model_validate(names)

    def alive(self) -> list[subprocess.Popen[bytes]]:
        """The workers that are running."""
        return [worker for worker in self.workers if worker.poll() is None]

    def want_workers(self, count: int = 1, **environment: str) -> None:
        """Make exactly `count` workers with this environment listen; those of earlier tests are kept if they fit."""
        fitting = [worker for worker in self.alive() if self._environments[worker.pid] == environment][:count]
        surplus = [worker for worker in self.alive() if worker not in fitting]
        for worker in surplus:
            worker.terminate()
        for worker in surplus:
            worker.wait(30)

        def listening() -> bool:
            for _ in range(count - len(self.alive())):
                self.start_worker(**environment)
            known = {int(worker.name.split("-")[-2]) for worker in worker_registry.workers(self.store.redis)}
            return len(known & {worker.pid for worker in self.alive()}) >= count

        wait(listening, f"{count} workers to listen", self.explain, 120)

    @property
    def store(self) -> Store:
        return Store(self.redis_server.client())

    def start_worker(
        self, *options: str, module: str = "workers", working_directory: Path | None = None, **environment: str
    ) -> subprocess.Popen[bytes]:
        """A real worker process; its output goes to a log in the lab's folder."""
        log = (self.folder / f"worker-{len(self.workers)}.log").open("wb")
        worker = subprocess.Popen(
            python_command(module, *options),
            cwd=working_directory,
            env={**os.environ, "PYTHONPATH": str(ROOT), **self.environment, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        log.close()
        self.workers.append(worker)
        self._environments[worker.pid] = environment
        return worker

    def submit(
        self, document: dict[str, Any], *, solo: bool = True, before: Callable[[Job], None] | None = None
    ) -> Job:
        """Record and queue a job as the service does; with `solo`, its only trial is `SOLO`."""
        spec = parse(document)
        plan = make_plan(spec, self.settings.roots, self.settings.home, [])
        if solo:
            trials = tuple(trial.model_copy(update={"needs": ()}) for trial in plan.trials if trial.id == SOLO)
            plan = plan.model_copy(update={"trials": trials})
        job = new_job(spec, plan, "tests")
        folder = self.settings.job_folder(job.id)
        folder.path.mkdir(parents=True)
        if before is not None:
            before(job)
        folder.spec.write_text(spec.model_dump_json())
        job = self.store.create(state_machine.submit(job), spec, plan.model_dump(mode="json")).job
        rq_queue.enqueue(self.redis_server.client(decode=False), job)
        return job

    def ask(self, job: Job, what: Request) -> None:
        """Request a change of the job as a user does."""
        self.store.update(job.id, lambda record: state_machine.request(record, what))

    def resume(self, job: Job) -> None:
        """Resume the job as a user does."""
        rq_queue.enqueue(self.redis_server.client(decode=False), self.store.update(job.id, state_machine.resume))

    def events(self, job: Job, type: str) -> list[Event]:
        """The job's events of one type."""
        return [event for event in events.events(self.store.redis, job.id, limit=1000) if event.type == type]

    def wait_for_checkpoint(self, job: Job, count: int = 1) -> None:
        """Wait until the job has published `count` checkpoints."""
        wait(lambda: len(self.events(job, "checkpoint.published")) >= count, f"{count} checkpoints", self.explain)

    def wait_for_state(self, job: Job, wanted: str, seconds: float = 60) -> Job:
        """Wait until the job is in a state; fails at once if it ends in another."""

        def reached() -> Job | None:
            record = self.store.get(job.id)
            assert record.state == wanted or record.state not in TERMINAL, f"{record.reason}\n{self.explain()}"
            return record if record.state == wanted else None

        return wait(reached, f"the job being {wanted}", self.explain, seconds)

    def checkpoints(self, job: Job) -> list[Path]:
        """The trial's checkpoint folders, oldest first."""
        return sorted((self.settings.job_folder(job.id).trial(SOLO) / "checkpoints").glob("step-*"))

    def processes(self, job: Job) -> list[psutil.Process]:
        """The running training processes of a job's trial `SOLO`."""
        found = processes.tagged(f"{job.id}/{SOLO}/")
        return [process for process in found if not ended(process)]

    def chain(self, job: Job) -> tuple[psutil.Process, psutil.Process, psutil.Process]:
        """A job's single training process, its parent (the work-horse), and that one's parent (the worker)."""
        training = wait(lambda: next(iter(self.processes(job)), None), "a training process", self.explain)
        horse = training.parent()
        assert horse is not None
        worker = horse.parent()
        assert worker is not None
        return training, horse, worker

    def explain(self) -> str:
        """The job's state and the logs of all processes, for the message of a failed test."""
        jobs = [f"{job.id} is {job.state}: {job.reason}" for job in self.store.page(limit=3)[0]]
        messages = Queue(rq_queue.QUEUE, connection=self.redis_server.client(decode=False)).get_job_ids()
        workers = [
            f"{worker.name} is {worker.state} with {worker.job}" for worker in worker_registry.workers(self.store.redis)
        ]
        logs = [*self.folder.glob("worker-*.log"), *self.folder.glob("home/jobs/*/trials/*/attempt-*.log")]
        printed = [f"== {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in sorted(logs)]
        return "\n".join([*printed, "== now", *jobs, f"queued: {messages}", *workers])

    def close(self) -> None:
        """Kill the workers and their processes, stopped ones too."""
        for worker in self.workers:
            for process in [*_tree(worker.pid)]:
                _signal(process, signal.SIGKILL)
            worker.wait()


@contextmanager
def lab(redis_server: RedisServer, folder: Path, **options: Any) -> Iterator[Lab]:
    """A lab that leaves no process behind."""
    found = Lab(redis_server, folder, **options)
    try:
        yield found
    finally:
        found.close()


def wait(condition: Callable[[], Found | None], what: str, explain: Callable[[], str], seconds: float = 60) -> Found:
    """Poll until the condition returns a true value, and return that value."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}\n{explain()}"
        time.sleep(0.05)
    return found


def ended(process: psutil.Process) -> bool:
    """Whether a process has ended; a zombie has, although its parent has not collected it."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def document(*, steps: int = 1500, checkpoint_every: int = 150, **train: Any) -> dict[str, Any]:
    """A job between two MLPs, the source trained first; a step takes a few milliseconds."""
    model = {"model_type": "mergenet-mlp", "image_size": _SIZE, "num_channels": 1}
    data = {"train": "train", "test": "test", "image_size": _SIZE}
    recipe = {"batch_size": 16, "learning_rate": 1e-3} | train
    return {
        "name": "tiny",
        "source": {
            "model": {"config": model | {"hidden_sizes": [24, 24]}},
            "data": data,
            "train": {"steps": 20, "batch_size": 16},
        },
        "target": {
            "model": {"config": model | {"hidden_sizes": [12, 12]}},
            "task": "image-classification",
            "data": data,
        },
        "transfer": {"method": "anchored"},
        "train": recipe | {"steps": steps, "checkpoint_every": checkpoint_every, "eval_every": steps},
    }


def job_of(trials: tuple[Trial, ...], *, max_attempts: int = 4, labels: dict[str, str] | None = None) -> Job:
    """A record with these trials, before they are queued; ids grow with time, also within a millisecond."""
    given = document() | {"labels": labels or {}, "resources": {"attempts": max_attempts}}
    nothing = Estimate(target_parameters=None, source_parameters=None, memory_bytes=None, disk_bytes=None, steps=0)
    plan = Plan(trials=trials, pairing=None, estimate=nothing, strategy="single")
    id = f"job-{time.time_ns():020d}-{secrets.token_hex(2)}"
    return new_job(parse(given), plan, "tests").model_copy(update={"id": id})


def make_images(folder: Path, *, count: int, seed: int) -> None:
    """An image folder of two classes that differ in which half is brighter."""
    dice = random.Random(seed)
    for index in range(count):
        label = ("left", "right")[index % 2]
        image = Image.new("L", (_SIZE, _SIZE))
        bright = range(_SIZE // 2) if label == "left" else range(_SIZE // 2, _SIZE)
        for x in range(_SIZE):
            for y in range(_SIZE):
                image.putpixel((x, y), dice.randrange(60, 256) if x in bright else dice.randrange(0, 200))
        (folder / label).mkdir(parents=True, exist_ok=True)
        image.save(folder / label / f"{index:04d}.png")


def result_of(job: Job) -> TrialResult:
    """The trial's committed result."""
    found = job.trial(SOLO).result
    assert found is not None, json.dumps(job.model_dump(mode="json"), indent=1)
    return found


def _tree(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.Error:
        return
