"""The end of a job: its report, and the artifact with the chosen trial's model in it."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import mergenet_core
from mergenet_core.errors import NotFound
from mergenet_core.model_files.read_model import weight_files
from mergenet_core.models.loading import folder_of
from mergenet_core.records.job import Job, Trial
from mergenet_core.records.provenance import Inputs, Provenance
from mergenet_core.results.card import model_card
from mergenet_core.results.report import build_report
from mergenet_core.spec.job import JobSpec
from mergenet_core.storage.paths import JobFolder, Roots
from mergenet_core.storage.published_folder import MANIFEST, publishing, sha256, verify
from mergenet_core.training.export import ROLES, environment
from mergenet_core.training.sources import source_path


def finalize(job: JobSpec, record: Job, folder: JobFolder, roots: Roots, attempt: int) -> str:
    """Write the report and publish the artifact; return its folder below the job's.

    It holds `model/` (the chosen trial's target as it was after its last step, chosen on validation), the adapter and
    the pairing where it has any, report.json, README.md, job.json and the manifest.

    Raises: `CheckpointInvalid`, `StorageFull`.
    """
    report = build_report(record.id, record.name, record.trials, record.memory_bytes, job.transfer.deliver)
    trial = record.trial(report.chosen)
    trial_folder = folder.trial(trial.id)
    folders = ["model"]
    if report.transferred:
        folders.append("adapter")
    if job.transfer.back_cycle is not None:
        folders.append("source-model")
    for name in folders:
        verify(trial_folder / name)
    about = _provenance(job, record, trial, folder, roots)
    step = trial.result.steps if trial.result is not None else 0
    with publishing(folder.artifact, kind="artifact", step=step, attempt=attempt, roles=ROLES, about=about) as draft:
        _copy(trial_folder / "model", draft / "model")
        if report.transferred:
            _copy(trial_folder / "adapter", draft)
        if job.transfer.back_cycle is not None:
            _copy(trial_folder / "source-model", draft / "source-model")
        (draft / "report.json").write_text(report.model_dump_json(indent=1))
        (draft / "job.json").write_text(_document(job))
        (draft / "README.md").write_text(model_card(job, report, trial, about))
    return folder.artifact.relative_to(folder.path).as_posix()


def _provenance(job: JobSpec, record: Job, trial: Trial, folder: JobFolder, roots: Roots) -> Provenance:
    if trial.result is None:
        raise NotFound(f"trial {trial.id} has no result; the job cannot be finalized before its trials have succeeded")
    inputs: Inputs = {"data": trial.result.data}
    source = source_path(job, folder, roots)
    if source is not None:
        inputs["source"] = _weights_sha256(source)
    target = folder_of(job.target.model, roots, "target.model")
    if target is not None:
        inputs["target"] = _weights_sha256(target)
    return {
        "job": record.id,
        "trial": trial.id,
        "seeds": job.seeds,
        "spec_sha256": hashlib.sha256(_document(job).encode()).hexdigest(),
        "inputs": inputs,
        "code": {"version": mergenet_core.__version__, "sha256": code_sha256()},
        "environment": trial.result.versions or environment(),
    }


def _document(job: JobSpec) -> str:
    """The content of the artifact's job.json."""
    return job.model_dump_json(indent=1)


def _weights_sha256(path: Path) -> dict[str, str]:
    """The hash of each file of a model's weights."""
    return {file.name: sha256(file) for file in weight_files(path)}


def code_sha256() -> str:
    """A hash over the source files that trained the model."""
    root = Path(mergenet_core.__file__).parent
    lines = (f"{path.relative_to(root).as_posix()} {sha256(path)}\n" for path in sorted(root.rglob("*.py")))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _copy(published: Path, folder: Path) -> None:
    shutil.copytree(published, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
