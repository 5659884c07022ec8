"""GPUs as NVIDIA's library reports them; here a small library of our own reports those that FAKE_GPUS names."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mergenet_core.settings import Settings
from mergenet_core.store import device_leases, worker_registry
from tests.harness import SOLO, Lab, document, result_of, wait
from workers.host import capacity

TWO = "GPU-aaaa-1,GPU-bbbb-2"
CODE = "from workers.host.gpus import gpus\n"
CODE += "print(*[f'{gpu.id}|{gpu.name}|{gpu.memory_bytes}' for gpu in gpus()], sep='\\n')"


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which that library is found."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("nvml")
    source, library = Path(__file__).with_name("nvml.c"), folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return {"LD_LIBRARY_PATH": str(folder)}


def found(environment: dict[str, str]) -> list[str]:
    run = subprocess.run(
        [sys.executable, "-c", CODE], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return run.stdout.split("\n")[:-1]


def test_gpus_have_uuid_name_and_memory(nvml: dict[str, str]) -> None:
    listed = found(nvml | {"FAKE_GPUS": TWO})
    assert listed == [f"{uuid}|cuda: Imagined GPU|{1 << 30}" for uuid in TWO.split(",")]


@pytest.mark.parametrize(
    ("named", "seen"),
    [
        ("1", ["GPU-bbbb-2"]),
        ("1,0", ["GPU-bbbb-2", "GPU-aaaa-1"]),
        ("GPU-bb", ["GPU-bbbb-2"]),
        ("0,7,1", ["GPU-aaaa-1"]),
        ("", []),
        ("-1", []),
    ],
)
def test_gpus_that_cuda_visible_devices_hides_are_not_listed(nvml: dict[str, str], named: str, seen: list[str]) -> None:
    listed = found(nvml | {"FAKE_GPUS": TWO, "CUDA_VISIBLE_DEVICES": named})
    assert [line.split("|")[0] for line in listed if line] == seen


def test_without_a_driver_the_cpu_has_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    known = capacity.devices(Settings(cpu_slots=3))
    assert [device.id for device in known] == ["0", "1", "2"]
    assert capacity.ledger_name(known) == socket.gethostname()
    assert capacity.workers(Settings(cpu_slots=3), known) == 1
    monkeypatch.setattr(capacity, "cpus", lambda: 8)
    for workers, slots, taken, threads in ((1, 8, 1, 8), (1, 8, 4, 2), (4, 4, 1, 2), (4, 4, 2, 2), (4, 2, 1, 4)):
        wanted = Settings(cpu_slots=slots, workers=workers, threads=None)
        monkeypatch.delenv("MERGENET_THREADS", raising=False)
        assert capacity.threads(wanted, capacity.devices(wanted), taken) == threads, (workers, slots, taken)


@pytest.fixture
def gpu_host(shared_lab: Lab, nvml: dict[str, str]) -> Iterator[tuple[Lab, subprocess.Popen[bytes]]]:
    """A host with two GPUs, and so with two workers."""
    lab = shared_lab
    lab.want_workers(0)
    pool = lab.start_worker(**nvml, FAKE_GPUS=TWO, MERGENET_WORKERS="2")
    wait(lambda: len(worker_registry.workers(lab.store.redis)) == 2, "two workers", lab.explain, 120)
    yield lab, pool
    pool.terminate()
    assert pool.wait(30) == 0
    assert worker_registry.workers(lab.store.redis) == []


def test_a_trial_sees_its_own_gpu_alone_and_the_worker_never_imports_torch(
    gpu_host: tuple[Lab, subprocess.Popen[bytes]], final_loss: float
) -> None:
    lab, pool = gpu_host
    jobs = [lab.submit(document()), lab.submit(document())]
    trainings = []
    for job in jobs:
        lab.wait_for_checkpoint(job)
        trainings.append(lab.chain(job)[0])
        assert trainings[-1].cmdline()[1:] == ["-P", "-m", "workers.trial", f"{job.id}/{SOLO}/1"]
    assert sorted(training.environ()["CUDA_VISIBLE_DEVICES"] for training in trainings) == TWO.split(",")
    for process in psutil.Process(pool.pid).children():
        assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
    workers = worker_registry.workers(lab.store.redis)
    assert {worker.device for worker in workers} == {"cuda: Imagined GPU ×2"}
    states = device_leases.listing(lab.store.redis, workers)
    assert [(one.id, one.state) for one in states] == [(uuid, "held") for uuid in TWO.split(",")]
    for job in jobs:
        job = lab.wait_for_state(job, "succeeded", 120)
        assert result_of(job).final_loss == pytest.approx(final_loss, abs=1e-6)


def test_a_job_for_the_cpu_is_lent_no_gpu_and_one_for_cuda_runs_where_gpus_are(
    gpu_host: tuple[Lab, subprocess.Popen[bytes]],
) -> None:
    lab, _ = gpu_host
    job = lab.submit(document() | {"resources": {"device": "cpu"}})
    lab.wait_for_checkpoint(job)
    workers = worker_registry.workers(lab.store.redis)
    assert {one.state for one in device_leases.listing(lab.store.redis, workers)} == {"free"}
    lab.ask(job, "cancel")
    lab.wait_for_state(job, "cancelled")
    job = lab.submit(document() | {"resources": {"device": "cuda"}})
    # these GPUs are imagined, so the training itself cannot begin on them
    wait(lambda: lab.store.get(job.id).trial(SOLO).attempt == 1, "a worker with GPUs to take it", lab.explain)
