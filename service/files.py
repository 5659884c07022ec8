"""Files over HTTP: ranges, conditions and hashes as RFC 9110 says, every refusal as a problem."""

from __future__ import annotations

import base64
import re
from pathlib import Path

from fastapi import Request, Response
from fastapi.responses import FileResponse
from starlette.exceptions import HTTPException

_RANGES = re.compile(r"^bytes=\s*(?:\d+-\d*|-\d+)(?:\s*,\s*(?:\d+-\d*|-\d+))*$")
_FIRST = re.compile(r"(\d+)-")


def file_response(
    request: Request,
    path: Path,
    *,
    sha256: str | None = None,
    media_type: str | None = None,
    filename: str | None = None,
) -> Response:
    """A file, or the part of it that `Range` asks for; its ETag is its hash, where that is known."""
    headers = {"Cache-Control": "no-cache"}
    if sha256 is not None:
        headers["ETag"] = f'"{sha256}"'
        headers["Repr-Digest"] = f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"
        if _matches(request.headers.get("if-none-match"), sha256):
            return Response(status_code=304, headers=headers)
    stat = path.stat()
    asked = request.headers.get("range")
    if asked is not None:
        _check_range(asked, stat.st_size)
    return FileResponse(path, headers=headers, media_type=media_type, filename=filename, stat_result=stat)


def _matches(condition: str | None, sha256: str) -> bool:
    if condition is None:
        return False
    tags = [tag.strip().removeprefix("W/").strip('"') for tag in condition.split(",")]
    return "*" in tags or sha256 in tags


def _check_range(asked: str, size: int) -> None:
    """Refuse what FileResponse would refuse in plain text. Raises: `HTTPException` 400 or 416."""
    if not _RANGES.match(asked.strip()):
        raise HTTPException(400, f"the Range header {asked[:80]!r} is not understood; write bytes=FIRST-LAST")
    firsts = [int(first) for first in _FIRST.findall(asked)]
    if size == 0 or any(first >= size for first in firsts):
        raise HTTPException(
            416,
            f"the file has {size} bytes; the range {asked[:80]!r} begins after its end",
            {"Content-Range": f"bytes */{size}"},
        )
