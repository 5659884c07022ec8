"""Several workers of a host: what becomes of them when they cannot run."""

from __future__ import annotations

from pathlib import Path

from tests.harness import ROOT, Lab


def test_a_host_whose_workers_always_end_at_once_gives_up_and_says_so(shared_lab: Lab, tmp_path: Path) -> None:
    broken = "import os, sys\nif '--one' in sys.orig_argv: print('the disk is on fire', flush=True); os._exit(3)\n"
    (tmp_path / "sitecustomize.py").write_text(broken)
    pool = shared_lab.start_worker(MERGENET_WORKERS="2", PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert pool.wait(60) == 1
    log = (shared_lab.folder / f"worker-{shared_lab.workers.index(pool)}.log").read_text()
    assert log.count("the disk is on fire") >= 4
    assert "ended 4 times right after its start (exit 3); its output above says why" in log
    assert "Traceback" not in log
