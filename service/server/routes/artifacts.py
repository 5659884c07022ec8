"""The files of a result: their list with hashes, and their content. Only files in the manifest are served."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from fastapi import APIRouter, Request, Response

from mergenet_core.errors import CheckpointInvalid, NotFound
from mergenet_core.records.artifacts import Artifact, Manifest
from mergenet_core.records.job import Job
from mergenet_core.storage.published_folder import MANIFEST, read_manifest, sha256, verified
from service.schemas import ArtifactFile, ArtifactList
from service.server.auth import needs
from service.server.dependencies import Context, Ctx, JobId
from service.server.file_response import file_response
from service.server.problem_details import responses

router = APIRouter(prefix="/jobs/{job_id}/artifacts", tags=["result"])


@router.get("", dependencies=[needs("read")], responses={**responses(401, 403, 404, 503)}, summary="List the files")
def list_artifacts(context: Ctx, job_id: JobId) -> ArtifactList:
    """Every file of the result with its size, hash and role; the manifest itself is last."""
    folder, manifest = _result(context, context.store.get(job_id))
    files = [*manifest.files, _manifest_file(folder)]
    return ArtifactList(
        items=[
            ArtifactFile(**file.model_dump(), href=f"/jobs/{job_id}/artifacts/{quote(file.path)}") for file in files
        ],
        about=manifest.about,
    )


@router.head("/{path:path}", dependencies=[needs("read")], include_in_schema=False)
@router.get(
    "/{path:path}",
    dependencies=[needs("read")],
    response_class=Response,
    responses={
        200: {"content": {"application/octet-stream": {}}},
        206: {"description": "The bytes that `Range` names", "content": {"application/octet-stream": {}}},
        304: {"description": "The file's hash is in `If-None-Match`"},
        **responses(401, 403, 404, 416, 503),
    },
    summary="Download a file",
)
def get_artifact(context: Ctx, job_id: JobId, path: str, request: Request) -> Response:
    """A file of the result. Its ETag is its SHA-256; a `Range` header resumes a broken download."""
    folder, manifest = _result(context, context.store.get(job_id))
    entry = next((file for file in manifest.files if file.path == path), None)
    if entry is None and path == MANIFEST:
        entry = _manifest_file(folder)
    if entry is None:
        raise NotFound(f"the result has no file {path!r}; GET /jobs/{job_id}/artifacts lists its files")
    file = folder / entry.path
    if not file.resolve().is_relative_to(folder.resolve()) or not verified(file, entry):
        raise CheckpointInvalid(f"{path} on the server's disk differs from the manifest, so it is not served")
    return file_response(request, file, sha256=entry.sha256, filename=file.name)


def _result(context: Context, job: Job) -> tuple[Path, Manifest]:
    if job.artifact is None:
        raise NotFound(f"there is no artifact yet: the job is {job.state} ({job.reason}); it comes when it succeeds")
    folder = context.settings.job_folder(job.id).path / job.artifact
    return folder, read_manifest(folder)


def _manifest_file(folder: Path) -> Artifact:
    path = folder / MANIFEST
    return Artifact(path=MANIFEST, bytes=path.stat().st_size, sha256=sha256(path), role="manifest")
