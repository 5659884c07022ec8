"""Reads request bodies and job documents, with a limit on the bytes that really arrive."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import Depends, Request
from pydantic import JsonValue
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from mergenet_core.errors import BodyTooLarge, FieldError, SpecInvalid
from mergenet_core.spec import parse
from mergenet_core.spec.job import JobSpec
from service.server.dependencies import Ctx

YAML_LIMIT_BYTES = 128 << 10
"""Longest YAML document. YAML is parsed far more slowly than JSON, so longer documents must be JSON."""
_YAML = ("application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml", "text/plain", "")

JOB_BODY: dict[str, object] = {
    "requestBody": {
        "required": True,
        "description": "The job document, as JSON or YAML; `/schema/job` describes it.",
        "content": {
            "application/json": {"schema": {"$ref": "/schema/job"}},
            "application/yaml": {"schema": {"type": "string"}},
        },
    }
}


async def read_body(request: Request, context: Ctx) -> bytes:
    """The whole body.

    Raises: `BodyTooLarge` as soon as more bytes than the limit have arrived; Content-Length is not trusted.
    """
    limit = context.settings.max_body_bytes
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise BodyTooLarge(f"the body is longer than {limit} bytes; name models and data by path instead")
        chunks.append(chunk)
    return b"".join(chunks)


Body = Annotated[bytes, Depends(read_body)]


async def job_document(request: Request, context: Ctx, body: Body) -> JobSpec:
    """The job document in the body. Raises: `SpecInvalid`, `BodyTooLarge`, `HTTPException` 415.

    One document is read at a time: reading is work for the processor, and several at once would slow all requests.
    """
    async with context.reading:
        return await run_in_threadpool(_read_document, request, body)


def _read_document(request: Request, body: bytes) -> JobSpec:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "application/json" or media_type.endswith("+json"):
        return parse.parse(json_object(body))
    if media_type not in _YAML:
        raise HTTPException(415, f"a job document is application/json or application/yaml, not {media_type}")
    if len(body) > YAML_LIMIT_BYTES:
        raise BodyTooLarge(f"a YAML document may have {YAML_LIMIT_BYTES} bytes; send longer ones as JSON")
    return parse.parse(body)


def json_object(body: bytes) -> dict[str, JsonValue]:
    """The body as a JSON object. Raises: `SpecInvalid`."""
    try:
        data = json.loads(body, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise SpecInvalid(f"the body is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise SpecInvalid(f"the body must be a JSON object, not {type(data).__name__}")
    return data


def _without_repeats(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        name = next(name for name in names if names.count(name) > 1)[:100]
        message = f"{name} is given twice; keep one of them"
        raise SpecInvalid(f"the document repeats a key: {message}", errors=(FieldError("", message),))
    return found


Document = Annotated[JobSpec, Depends(job_document)]
