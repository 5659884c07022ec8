"""Files over HTTP with ranges, conditions and hashes (RFC 9110, RFC 9530); refusals are problems."""

from __future__ import annotations

import base64
import re
from pathlib import Path

from fastapi import Request, Response
from fastapi.responses import FileResponse
from starlette.exceptions import HTTPException

_RANGE = re.compile(r"(?P<first>\d{0,18})-(?P<last>\d{0,18})", re.ASCII)


def file_response(
    request: Request,
    path: Path,
    *,
    sha256: str | None = None,
    media_type: str | None = None,
    filename: str | None = None,
) -> Response:
    """A file, or the bytes of it that `Range` names. Where its SHA-256 is known, that is its ETag."""
    headers = {"Cache-Control": "no-cache"}
    if sha256 is not None:
        headers["ETag"] = f'"{sha256}"'
        headers["Repr-Digest"] = f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"
        if _matches(request.headers.get("if-none-match"), sha256):
            return Response(status_code=304, headers=headers)
    stat = path.stat()
    wanted = request.headers.get("range")
    if wanted is not None:
        _check_range(wanted, stat.st_size)
    return FileResponse(path, headers=headers, media_type=media_type, filename=filename, stat_result=stat)


def _matches(condition: str | None, sha256: str) -> bool:
    if condition is None:
        return False
    tags = [tag.strip().removeprefix("W/").strip('"') for tag in condition.split(",")]
    return "*" in tags or sha256 in tags


def _check_range(header: str, size: int) -> None:
    """Refuse, as a problem, a range that `FileResponse` would refuse in plain text. Raises: `HTTPException`."""
    ranges = [_RANGE.fullmatch(text.strip()) for text in header.removeprefix("bytes=").split(",")]
    pairs = [(found["first"], found["last"]) for found in ranges if found is not None]
    backwards = any(first and last and int(first) > int(last) for first, last in pairs)
    if not header.startswith("bytes=") or len(pairs) < len(ranges) or backwards or ("", "") in pairs:
        raise HTTPException(400, f"the Range header {header[:80]!r} is not understood; write bytes=FIRST-LAST")
    if any(int(first) >= size if first else int(last) == 0 or size == 0 for first, last in pairs):
        detail = f"the file has {size} bytes; the range {header[:80]!r} contains none of them"
        raise HTTPException(416, detail, {"Content-Range": f"bytes */{size}"})
