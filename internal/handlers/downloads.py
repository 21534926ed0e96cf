"""Sending stored files: in pieces, by range, and never as something that a browser would run."""

import re
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import quote

from litestar import HttpMethod, Request, Response
from litestar.response import Stream

from internal.entities.documents import Document
from internal.entities.versions import Version
from internal.handlers.problems import to_problem
from pkg.apperr import AppError, Code

RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def download(
    request: Request[Any, Any, Any], document: Document | Version, read: Callable[[int, int], AsyncIterator[bytes]]
) -> Response[Any]:
    """`read(start, end)` gives bytes `start` to before `end`. Answers 200, 206 for one range, or 416."""
    headers = {
        "Content-Disposition": disposition(document.filename),
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "Cache-Control": "private, no-store",
        "Accept-Ranges": "bytes",
        "ETag": f'"{document.sha256.hex()}"',
    }
    wanted = parse_range(request.headers.get("range"), document.size)
    if wanted is not None and wanted[0] >= wanted[1]:
        error = AppError(Code.REQUEST_RANGE_NOT_SATISFIABLE, f"The file has {document.size} bytes.")
        raise to_problem(error, {"Content-Range": f"bytes */{document.size}"})
    start, end = wanted or (0, document.size)
    headers["Content-Length"] = str(end - start)
    if wanted is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{document.size}"
    return Stream(
        () if request.method == HttpMethod.HEAD else read(start, end),
        status_code=200 if wanted is None else 206,
        media_type=document.media_type,
        headers=headers,
    )


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Start and end (exclusive) of a single byte range; None to send all, an empty range where it can't be met."""
    found = RANGE.fullmatch(header.strip()) if header else None
    if found is None or found.groups() == ("", ""):
        return None  # several ranges, or a unit that isn't ours: RFC 9110 allows to ignore them
    first, last = found.groups()
    if not first:
        return max(0, size - int(last)), size
    start = int(first)
    end = min(size, int(last) + 1) if last else size
    if last and int(last) < start:
        return None
    return start, max(start, end) if start < size else start


def disposition(filename: str) -> str:
    """RFC 6266: a plain name for old clients, the real one encoded by RFC 5987."""
    plain = re.sub(r"[^A-Za-z0-9 ._()-]", "_", filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"
