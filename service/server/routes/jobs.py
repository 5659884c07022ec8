"""Jobs: submit, check, list, show, control, delete."""

from __future__ import annotations

import shutil
from typing import Annotated, get_args

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import JSONResponse

from mergenet_core.errors import CheckpointInvalid, FieldError, NotFound, SpecInvalid
from mergenet_core.planning.plan import Plan
from mergenet_core.records import state_machine
from mergenet_core.records.api_keys import ApiKey
from mergenet_core.records.job import Job, JobState, Request
from mergenet_core.results.report import Report
from mergenet_core.storage.published_folder import read_manifest, verified
from mergenet_core.store import events
from mergenet_core.store.worker_registry import workers
from service.schemas import CheckpointList, JobPage, JobSummary, JobView, TrialCheckpoint, Validation
from service.server import submission
from service.server.auth import needs
from service.server.dependencies import JOB_ID, Context, Ctx, JobId
from service.server.problem_details import responses
from service.server.request_body import JOB_BODY, Document

router = APIRouter(prefix="/jobs", tags=["jobs"])
_LINKS = ("events", "metrics", "logs", "report", "plan", "checkpoints", "artifacts")
_STATES: tuple[JobState, ...] = get_args(JobState)


@router.post(
    "",
    status_code=202,
    response_model=JobView,
    responses={**responses(401, 403, 413, 415, 422, 503, 507)},
    openapi_extra=JOB_BODY,
    summary="Queue a job",
)
def post_job(
    context: Ctx,
    key: Annotated[ApiKey, needs("submit")],
    document: Document,
    response: Response,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=200,
            description="Any unique text. For seven days the same key with the same document gives the same job.",
        ),
    ] = None,
) -> JobView:
    """Check a job document and queue the job. A refused document leaves nothing behind."""
    created = submission.accept(context, document, key.name, idempotency_key)
    response.headers["Location"] = f"/jobs/{created.job.id}"
    if not created.new:
        response.headers["Idempotency-Replayed"] = "true"
    return view(context, created.job)


@router.post(
    "/validate",
    dependencies=[needs("read")],
    responses={**responses(401, 403, 413, 415, 422, 503)},
    openapi_extra=JOB_BODY,
    summary="Check a job without queueing it",
)
def validate(context: Ctx, document: Document) -> Validation:
    """The job's plan: pairs of weights, transferable parameters, memory and disk."""
    return Validation(name=document.name, plan=submission.plan(context, document), labels=document.labels)


@router.get("", dependencies=[needs("read")], responses={**responses(401, 403, 422, 503)}, summary="List jobs")
def list_jobs(
    context: Ctx,
    status: Annotated[str | None, Query(description="Only jobs in this state.")] = None,
    label: Annotated[str | None, Query(description="Only jobs with this label, as `name=value`.")] = None,
    after: Annotated[str | None, Query(pattern=JOB_ID, description="The `next` of the previous page.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> JobPage:
    """A page of jobs, newest first."""
    jobs, following = context.store.page(state=_state(status), label=_label(label), after=after, limit=limit)
    return JobPage(items=[_summary(job) for job in jobs], next=following)


@router.get(
    "/{job_id}", dependencies=[needs("read")], responses={**responses(401, 403, 404, 503)}, summary="Show a job"
)
def get_job(context: Ctx, job_id: JobId) -> JobView:
    """The job's record: its state and the reason, its trials with their progress, and why it waits."""
    return view(context, context.store.get(job_id))


@router.delete(
    "/{job_id}",
    dependencies=[needs("submit")],
    status_code=204,
    responses={**responses(401, 403, 404, 409, 503)},
    summary="Delete a finished job",
)
def delete_job(context: Ctx, job_id: JobId) -> None:
    """Delete a finished job and its folder, including the result."""
    context.store.delete(job_id)
    shutil.rmtree(context.settings.job_folder(job_id).path, ignore_errors=True)
    context.store.settled(job_id)


def _add_request_route(what: Request, summary: str, text: str) -> None:
    @router.post(
        f"/{{job_id}}/{what}",
        dependencies=[needs("submit")],
        status_code=202,
        responses={**responses(401, 403, 404, 409, 503)},
        summary=summary,
        description=text,
        operation_id=f"{what}_job",
    )
    def request(context: Ctx, job_id: JobId) -> JobView:
        return view(context, context.store.update(job_id, lambda job: state_machine.request(job, what)))


_add_request_route(
    "cancel", "Cancel a job", "Stop the job for good; the running trial writes a checkpoint first. May be repeated."
)
_add_request_route(
    "pause", "Pause a job", "The running trial writes a checkpoint and stops; its worker is free for other jobs."
)
_add_request_route(
    "checkpoint", "Write a checkpoint now", "The running trial writes a checkpoint at its next step and continues."
)


@router.post(
    "/{job_id}/resume",
    dependencies=[needs("submit")],
    status_code=202,
    responses={**responses(401, 403, 404, 409, 503)},
    summary="Resume a job",
)
def resume_job(context: Ctx, job_id: JobId) -> JobView:
    """Continue a paused job, or a failed one that is marked retryable, from its checkpoints."""
    job = context.store.update(job_id, state_machine.resume)
    submission.send(context, job)
    return view(context, job)


@router.get(
    "/{job_id}/plan", dependencies=[needs("read")], responses={**responses(401, 403, 404, 503)}, summary="Show the plan"
)
def get_plan(context: Ctx, job_id: JobId) -> Plan:
    """Trials, pairing and estimate, as they were when the job was accepted."""
    return Plan.model_validate(context.store.plan(job_id))


@router.get(
    "/{job_id}/checkpoints",
    dependencies=[needs("read")],
    responses={**responses(401, 403, 404, 503)},
    summary="List checkpoints",
)
def get_checkpoints(context: Ctx, job_id: JobId) -> CheckpointList:
    """The newest checkpoint of each trial that has one on disk."""
    job = context.store.get(job_id)
    folder = context.settings.job_folder(job_id).path
    return CheckpointList(
        items=[
            TrialCheckpoint(trial=trial.id, **trial.checkpoint.model_dump())
            for trial in job.trials
            if trial.checkpoint is not None and (folder / trial.checkpoint.path).is_dir()
        ]
    )


@router.get(
    "/{job_id}/report",
    dependencies=[needs("read")],
    responses={200: {"model": Report}, **responses(401, 403, 404, 503)},
    summary="Show the report",
    response_class=JSONResponse,
)
def get_report(context: Ctx, job_id: JobId) -> Response:
    """The arms side by side, their paired differences from the control, and the verdict."""
    job = context.store.get(job_id)
    folder = context.settings.job_folder(job_id).artifact
    path = folder / "report.json"
    if job.artifact is None or not path.is_file():
        raise NotFound(f"there is no report yet: the job is {job.state} ({job.reason}); it is written when it succeeds")
    entry = next((file for file in read_manifest(folder).files if file.path == path.name), None)
    if entry is None or not verified(path, entry):
        raise CheckpointInvalid(f"{path.name} on the server's disk differs from the manifest, so it is not served")
    return Response(path.read_bytes(), media_type="application/json")


def view(context: Context, job: Job) -> JobView:
    """A job's record with its progress and its position in the queue."""
    ahead = context.store.queue_position(job)
    position = None if ahead is None else ahead + 1
    return JobView(
        **job.model_dump(),
        progress=events.progress(context.redis, job.id),
        queue_position=position,
        waiting_reason=_waiting_reason(context, job, position),
        links={"self": f"/jobs/{job.id}"} | {name: f"/jobs/{job.id}/{name}" for name in _LINKS},
    )


def _waiting_reason(context: Context, job: Job, position: int | None) -> str | None:
    """Why no trial of the job runs: it waits for devices, or in the queue for a worker."""
    active = [trial for trial in job.trials if trial.state in state_machine.ACTIVE]
    if active:
        return None if any(trial.state == "running" for trial in active) else active[0].reason
    if position is None:
        return None
    return f"position {position} in the queue; {_worker_shortage(context, job)}"


def _worker_shortage(context: Context, job: Job) -> str:
    """The workers that could run the job's trials, or why there are none."""
    fleet = job.nodes > 1
    alive = [worker for worker in workers(context.redis) if worker.fleet == fleet]
    if not alive and fleet:
        return "needs a fleet worker, none is running: `python -P -m workers --fleet` starts one"
    if not alive:
        return "no worker is running, start one with `python -P -m workers`"
    able = alive if fleet else [worker for worker in alive if len(worker.devices) >= job.devices]
    if job.device == "cuda" and not fleet:
        able = [worker for worker in able if worker.device.startswith("cuda")]
        if not able:
            return f"needs {job.devices} GPU{'s' if job.devices > 1 else ''} on one host; no running worker has so many"
    if not able:
        return f"needs {job.devices} devices on one host; no running worker is on a host with so many"
    busy = sum(worker.state == "busy" for worker in able)
    return f"{len(able)} {'fleet ' if fleet else ''}worker{'s' if len(able) > 1 else ''}, {busy} busy"


def _summary(job: Job) -> JobSummary:
    kept = job.model_dump(include=set(JobSummary.model_fields) - {"trials", "trials_done", "links"})
    done = sum(trial.state == "succeeded" for trial in job.trials)
    return JobSummary(**kept, trials=len(job.trials), trials_done=done, links={"self": f"/jobs/{job.id}"})


def _state(text: str | None) -> JobState | None:
    if text is None:
        return None
    for state in _STATES:
        if text == state:
            return state
    message = f"status {text!r} is not a state; there are {', '.join(_STATES)}"
    raise SpecInvalid(message, errors=(FieldError("?status", message),))


def _label(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        message = f"label {text!r} is not name=value; write for example label=team=vision"
        raise SpecInvalid(message, errors=(FieldError("?label", message),))
    return name, value
