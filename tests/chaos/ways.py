"""The ways in which bytes come to the product: a form, pieces by tus, an archive."""

import asyncio
import base64
import io
import random
import zipfile
from collections.abc import Awaitable

import httpx

from tests.chaos.corpus import File

Told = tuple[int, dict[str, str]]
"""Status and body of the answer that counts; (0, {}) where none was read."""
NOTHING: Told = (0, {})
PIECES = 3
TRIES = 40
"""Of a piece: about as long as the product is ever away."""
REST_SECONDS = (0.2, 0.8)
SPEAKS = {"Tus-Resumable": "1.0.0"}
OFFSET = {**SPEAKS, "Content-Type": "application/offset+octet-stream"}


async def by_form(http: httpx.AsyncClient, file: File, document: str = "") -> Told:
    """One request; with `document` a replacement."""
    files = {"file": (file.name, file.data)}
    if document:
        return await told(http.put(f"/api/v1/documents/{document}/content", files=files))
    return await told(http.post("/api/v1/documents", files=files))


async def by_archive(http: httpx.AsyncClient, files: list[File]) -> Told:
    """All in one ZIP. Only the archive is acknowledged, the files in it become documents later."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.writestr(file.name, file.data)
    status, _batch = await told(http.post("/api/v1/batches", files={"archive": ("all.zip", packed.getvalue())}))
    return status, {}


async def by_pieces(http: httpx.AsyncClient, file: File, draw: random.Random, document: str = "") -> Told:
    """Goes on where it was interrupted; a lost answer is asked for again, as clients of the protocol do."""
    named = {"filename": file.name, **({"document_id": document} if document else {})}
    metadata = ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in named.items())
    begun = await _asked(
        http.post(
            "/api/v1/uploads", headers={**SPEAKS, "Upload-Length": str(len(file.data)), "Upload-Metadata": metadata}
        )
    )
    if begun is None:
        return NOTHING
    if begun.status_code != httpx.codes.CREATED:
        return _body(begun)
    place, step = begun.headers["Location"], -(-len(file.data) // PIECES)
    for _ in range(TRIES):
        known = await _asked(http.head(place, headers=SPEAKS))
        if known is not None and known.status_code == httpx.codes.NOT_FOUND:
            return NOTHING
        if known is not None and known.status_code == httpx.codes.OK:
            if "Dreamhub-Document-Id" in known.headers:
                return _made(known)
            offset = int(known.headers["Upload-Offset"])
            sent = await _asked(
                http.patch(
                    place,
                    content=file.data[offset : offset + step],
                    headers={**OFFSET, "Upload-Offset": str(offset)},
                )
            )
            if sent is not None and "Dreamhub-Document-Id" in sent.headers:
                return _made(sent)
            if sent is not None and sent.status_code == httpx.codes.NO_CONTENT:
                continue
            # Conflicts of an interrupted piece pass; what is wrong with the whole file doesn't.
            if sent is not None and 400 <= sent.status_code < 429 and sent.status_code not in (404, 409, 423):
                return _body(sent)
        await asyncio.sleep(draw.uniform(*REST_SECONDS))
    return NOTHING


def _made(answer: httpx.Response) -> Told:
    ids = {"document_id": answer.headers["Dreamhub-Document-Id"], "task_id": answer.headers["Dreamhub-Task-Id"]}
    return httpx.codes.ACCEPTED, ids


async def told(request: Awaitable[httpx.Response]) -> Told:
    """What one request was answered."""
    answer = await _asked(request)
    return NOTHING if answer is None else _body(answer)


async def _asked(request: Awaitable[httpx.Response]) -> httpx.Response | None:
    try:
        return await request
    except httpx.HTTPError:
        return None


def _body(answer: httpx.Response) -> Told:
    try:
        return answer.status_code, answer.json()
    except ValueError:
        return NOTHING
