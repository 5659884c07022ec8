"""A worker's working directory may hold folders named like our packages; no process of a trial executes them."""

from __future__ import annotations

from pathlib import Path

from mergenet_core.store import worker_registry
from tests.harness import SOLO, Lab, document, wait
from tests.shadows import write_shadows


def test_trials_on_one_and_on_two_devices_run_among_folders_named_like_our_packages(
    shared_lab: Lab, tmp_path: Path
) -> None:
    lab = shared_lab
    lab.want_workers(0)
    witness = write_shadows(tmp_path)
    # several workers, so that a process that starts workers stands above them
    pool = lab.start_worker(working_directory=tmp_path, MERGENET_WORKERS="2", MERGENET_CPU_SLOTS="2")
    wait(lambda: len(worker_registry.workers(lab.store.redis)) == 2, "two workers", lab.explain, 120)
    single = document(steps=5, checkpoint_every=5)
    for asked in (single, single | {"resources": {"devices": 2, "strategy": "ddp"}}):
        job = lab.wait_for_state(lab.submit(asked), "succeeded", 120)
        assert job.trial(SOLO).attempt == 1, lab.explain()
    lab.want_workers(0)
    assert pool.returncode == 0
    assert not witness.exists(), witness.read_text()
