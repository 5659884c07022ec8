"""Jobs: post, check, list, look at, steer, delete."""

from __future__ import annotations

import shutil
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import JSONResponse

from mergenet_core.errors import NotFound, SpecInvalid
from mergenet_core.records import state_machine
from mergenet_core.records.api_keys import ApiKey
from mergenet_core.records.job import Job, JobState, Request
from mergenet_core.store import events
from mergenet_core.store.worker_registry import workers
from service.schemas import CheckpointList, JobPage, JobSummary, JobView, TrialCheckpoint, Validation
from service.server import submission
from service.server.auth import needs
from service.server.dependencies import Context, Ctx, JobId
from service.server.problem_details import responses
from service.server.request_body import JOB_BODY, Document

router = APIRouter(prefix="/jobs", tags=["jobs"])
_PARTS = ("events", "metrics", "logs", "report", "plan", "checkpoints", "artifacts")


@router.post(
    "",
    status_code=202,
    response_model=JobView,
    responses={**responses(401, 403, 413, 422, 503)},
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
            description="Any unique text. The same key with the same document gives the same job, for seven days.",
        ),
    ] = None,
) -> JobView:
    """Check a job document and queue it. Nothing is queued and nothing stays when anything in it is refused."""
    job, new = submission.accept(context, document, key.name, idempotency_key)
    response.headers["Location"] = f"/jobs/{job.id}"
    if not new:
        response.headers["Idempotency-Replayed"] = "true"
    return view(context, job)


@router.post(
    "/validate",
    dependencies=[needs("read")],
    responses={**responses(401, 403, 413, 422, 503)},
    openapi_extra=JOB_BODY,
    summary="Check a job without queueing it",
)
def validate(context: Ctx, document: Document) -> Validation:
    """Which weights pair, how many parameters can be transferred, and what memory and disk the job needs."""
    return Validation(name=document.name, plan=submission.plan(context, document), labels=document.labels)


@router.get("", dependencies=[needs("read")], responses={**responses(401, 403, 422, 503)}, summary="List jobs")
def list_jobs(
    context: Ctx,
    status: Annotated[str | None, Query(description="Only jobs in this state.")] = None,
    label: Annotated[str | None, Query(description="Only jobs with this label, as `name=value`.")] = None,
    after: Annotated[str | None, Query(max_length=100, description="The `next` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> JobPage:
    """Newest jobs first, in pages."""
    jobs, following = context.store.page(state=_state(status), label=_label(label), after=after, limit=limit)
    return JobPage(items=[_summary(job) for job in jobs], next=following)


@router.get("/{job_id}", dependencies=[needs("read")], responses={**responses(401, 403, 404, 503)}, summary="See a job")
def get_job(context: Ctx, job_id: JobId) -> JobView:
    """The job's record: its state and why, its trials, where each is, and why it waits."""
    return view(context, context.store.get(job_id))


@router.delete(
    "/{job_id}",
    dependencies=[needs("submit")],
    status_code=204,
    responses={**responses(401, 403, 404, 409, 503)},
    summary="Delete a finished job",
)
def delete_job(context: Ctx, job_id: JobId) -> None:
    """Forget a finished job and remove its folder, artifact included."""
    context.store.delete(job_id)
    shutil.rmtree(context.settings.job_folder(job_id).path, ignore_errors=True)


def _steer(what: Request, summary: str, text: str) -> None:
    @router.post(
        f"/{{job_id}}/{what}",
        dependencies=[needs("submit")],
        status_code=202,
        responses={**responses(401, 403, 404, 409, 503)},
        summary=summary,
        description=text,
        operation_id=f"{what}_job",
    )
    def steer(context: Ctx, job_id: JobId) -> JobView:
        return view(context, context.store.update(job_id, lambda job: state_machine.request(job, what)))


_steer("cancel", "Cancel a job", "Stop for good; the running trial writes a checkpoint first. Asking twice is fine.")
_steer("pause", "Pause a job", "The running trial writes a checkpoint and stops; the worker is free for other jobs.")
_steer("checkpoint", "Write a checkpoint now", "The running trial publishes a checkpoint at its next step and goes on.")


@router.post(
    "/{job_id}/resume",
    dependencies=[needs("submit")],
    status_code=202,
    responses={**responses(401, 403, 404, 409, 503)},
    summary="Resume a job",
)
def resume_job(context: Ctx, job_id: JobId) -> JobView:
    """Go on with a paused job, or with one that failed for a reason that may have passed, from its checkpoints."""
    job = context.store.update(job_id, state_machine.resume)
    submission.send(context, job)
    return view(context, job)


@router.get(
    "/{job_id}/plan", dependencies=[needs("read")], responses={**responses(401, 403, 404, 503)}, summary="See the plan"
)
def get_plan(context: Ctx, job_id: JobId) -> dict[str, Any]:
    """Trials, pairing and estimate as they were when the job was accepted."""
    return context.store.plan(job_id)


@router.get(
    "/{job_id}/checkpoints",
    dependencies=[needs("read")],
    responses={**responses(401, 403, 404, 503)},
    summary="List checkpoints",
)
def get_checkpoints(context: Ctx, job_id: JobId) -> CheckpointList:
    """The newest checkpoint of each trial, as far as it is still kept."""
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
    responses={**responses(401, 403, 404, 503)},
    summary="See the report",
    response_class=JSONResponse,
)
def get_report(context: Ctx, job_id: JobId) -> Response:
    """The arms side by side, their paired differences to the control, and the verdict."""
    job = context.store.get(job_id)
    path = context.settings.job_folder(job_id).artifact / "report.json"
    if job.artifact is None or not path.is_file():
        raise NotFound(f"there is no report yet: the job is {job.state} ({job.reason}); it comes when it has succeeded")
    return Response(path.read_bytes(), media_type="application/json")


def view(context: Context, job: Job) -> JobView:
    """A job's record with what is known of it just now."""
    return JobView(
        **job.model_dump(),
        progress=events.progress(context.redis, job.id),
        waiting=_waiting(context, job),
        links={"self": f"/jobs/{job.id}"} | {part: f"/jobs/{job.id}/{part}" for part in _PARTS},
    )


def _waiting(context: Context, job: Job) -> str | None:
    """Why nothing of a job runs: the devices that it needs, or its place among all that waits, and what workers do."""
    active = [trial for trial in job.trials if trial.state in state_machine.ACTIVE]
    if active:
        return None if any(trial.state == "running" for trial in active) else active[0].reason
    before = [context.store.place(job.id, trial.id) for trial in job.trials if trial.state == "queued"]
    place = min((count for count in before if count is not None), default=None)
    if place is None:
        return None
    alive = [worker for worker in workers(context.redis) if worker.fleet == (job.nodes > 1)]
    if alive and job.nodes == 1:
        known, alive = len(alive), [worker for worker in alive if len(worker.devices) >= job.devices]
        if not alive:
            return (
                f"number {place + 1} in line; needs {job.devices} devices on one host, and none of the {known} workers "
                "is on a host with so many"
            )
    if not alive and job.nodes > 1:
        return f"number {place + 1} in line; needs a fleet worker, none is up: `python -m workers --fleet` starts one"
    if not alive:
        return f"number {place + 1} in line; no worker is up, start one with `python -m workers`"
    busy = sum(worker.state == "busy" for worker in alive)
    count = f"{len(alive)} {'fleet ' * (job.nodes > 1)}worker{'s' if len(alive) > 1 else ''}"
    return f"number {place + 1} in line; {count}, {busy} busy"


def _summary(job: Job) -> JobSummary:
    kept = job.model_dump(include=set(JobSummary.model_fields) - {"trials", "trials_done", "links"})
    done = sum(trial.state == "succeeded" for trial in job.trials)
    return JobSummary(**kept, trials=len(job.trials), trials_done=done, links={"self": f"/jobs/{job.id}"})


def _state(text: str | None) -> JobState | None:
    for known in get_args(JobState):
        if text == known:
            return known  # type: ignore[no-any-return]
    if text is None:
        return None
    raise SpecInvalid(f"status {text!r} is not a state; there are {', '.join(get_args(JobState))}")


def _label(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise SpecInvalid(f"label {text!r} is not name=value; write for example label=team=vision")
    return name, value
