"""The document that a trial really runs."""

from __future__ import annotations

from mergenet_core.records.job import Job, Trial
from mergenet_core.records.validation import best_on_validation
from mergenet_core.spec.job import JobSpec


def resolve_spec(job: Job, spec: JobSpec, trial: Trial) -> JobSpec:
    """Replace every `auto` in a job's document by what was chosen for a trial.

    The strategy was chosen when the job was accepted. The method is that of the trial's own candidate; an arm that
    waited for candidates (the shams, transfer+distill) uses the one that is best on validation at its seed. Where no
    method was chosen for the trial (control, source, finalize), it stays `auto`.
    """
    if job.strategy is not None and spec.resources.strategy == "auto":
        resources = spec.resources.model_copy(update={"strategy": job.strategy})
        spec = spec.model_copy(update={"resources": resources})
    tried = [one for one in (job.trial(need) for need in trial.needs) if one.candidate is not None]
    candidate = trial.candidate
    if candidate is None and tried and trial.kind == "arm":
        candidate = best_on_validation(tried).candidate
    if candidate is None:
        return spec
    transfer = spec.transfer.model_copy(update={"method": candidate.method, "include": candidate.include})
    return spec.model_copy(update={"transfer": transfer})
