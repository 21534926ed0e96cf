"""Reading text from pictures, by the local model process."""

import asyncio
from pathlib import Path
from typing import Protocol

import httpx
import msgspec

from internal.entities.ocr import OcrPage
from internal.providers.local_models import model_client
from pkg.apperr import AppError, Code

TOO_LARGE = 413
ALIVE_SECONDS = 5.0


class Ocr(Protocol):
    """Reads the text of one picture."""

    async def read(self, path: Path) -> OcrPage:
        """Raises FILE_UNREADABLE or FILE_TOO_COMPLEX for the picture, MODEL_UNAVAILABLE for the reader.

        MODEL_TIMEOUT: the reader lives, but this picture took too long; that uses up a try, for it may always do so.
        """
        ...


class LocalOcr:
    """`/v1/ocr` of the local model process."""

    def __init__(self, url: str, *, timeout: float = 120.0) -> None:
        self._client = model_client(url, timeout=timeout)

    async def read(self, path: Path) -> OcrPage:
        """Sends the picture's bytes and decodes the lines."""
        try:
            answer = await self._client.post(
                "/v1/ocr",
                content=await asyncio.to_thread(path.read_bytes),
                headers={"content-type": "application/octet-stream"},
            )
        except httpx.ReadTimeout as error:
            raise await self._late() from error
        except httpx.HTTPError as error:
            raise _unavailable() from error
        if answer.is_success:
            return msgspec.json.decode(answer.content, type=OcrPage)
        if answer.status_code == TOO_LARGE:
            raise AppError(Code.FILE_TOO_COMPLEX, "The picture has too many pixels to be read; make it smaller.")
        if answer.is_client_error:
            raise AppError(Code.FILE_UNREADABLE, "The picture is damaged and can't be read; save it again and retry.")
        raise _unavailable()

    async def close(self) -> None:
        """Closes idle connections."""
        await self._client.aclose()

    async def _late(self) -> AppError:
        """Who is to blame: the reader that hangs, or the picture."""
        try:
            await self._client.get("/healthz", timeout=ALIVE_SECONDS)
        except httpx.HTTPError:
            return _unavailable()
        return AppError(Code.MODEL_TIMEOUT, "The text of a picture could not be read in time; the task tries again.")


def _unavailable() -> AppError:
    return AppError(Code.MODEL_UNAVAILABLE, "The text reader isn't ready; the task waits for it.", retry_after=5)
