"""An upload form, read as it comes in: `multipart/form-data` whose file never lies in memory as a whole."""

from collections.abc import AsyncGenerator, AsyncIterator

from multipart import MultipartError, MultipartSegment, ParserLimitReached, PushMultipartParser

from internal.handlers.descriptions import read_tags
from internal.handlers.dispositions import RAW, names_of
from pkg.apperr import AppError, Code

FILE = "file"
ONE_FILE = frozenset({FILE})
FIELDS = frozenset({"priority", "tags", "collection", "visibility"})
REPEATABLE = frozenset({"tags"})
MAX_PARTS = 64
MAX_FIELD_BYTES = 32 * 1024
FORM_BYTES = 512 * 1024
"""What all other fields, headers and boundaries may take besides the file."""


class UploadForm:
    """The parts of one form, in whatever order they come. Use: `begin`, then `chunks` to its end, then `finish`.

    A form of many files: `following` before each one's `chunks`, until it says that there is none. `files` are the
    names of parts that are files, `part` is the present one's.
    """

    def __init__(
        self,
        stream: AsyncIterator[bytes],
        boundary: str,
        *,
        max_file_bytes: int,
        fields: frozenset[str] = FIELDS,
        files: frozenset[str] = ONE_FILE,
        max_parts: int = MAX_PARTS,
    ) -> None:
        try:
            self._parser = PushMultipartParser(boundary, max_segment_count=max_parts, header_charset=RAW)
        except MultipartError as error:
            raise _malformed(error) from None
        self._stream = stream
        self._known = fields
        self._left = max_file_bytes + FORM_BYTES
        self._max_file_bytes = max_file_bytes
        self._events = self._parse()
        self._fields: dict[str, list[str]] = {}
        self._files = files
        self._inside = False
        self.part = ""
        self.filename = ""

    async def begin(self) -> None:
        """Reads fields until the file begins. Raises REQUEST_INVALID when there is none."""
        if not await self.following():
            raise _invalid(FILE, "is missing; send the file as a part named file")

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The file's bytes."""
        async for event in self._events:
            if event is None:
                self._inside = False
                return
            if isinstance(event, bytes | bytearray):
                yield bytes(event)

    async def skip(self) -> None:
        """Reads past what nobody wanted of the present file."""
        if self._inside:
            async for _ in self.chunks():
                pass

    async def finish(self) -> None:
        """Reads the fields that follow the file."""
        if await self.following():
            raise _invalid(FILE, "is there twice; upload one file at a time")

    def field(self, name: str) -> str | None:
        """A field's text; None for one that is missing or empty."""
        return next((text for text in self._fields.get(name, []) if text), None)

    def tags(self) -> list[str]:
        """From repeated parts, each as `read_tags` takes it."""
        return [tag for text in self._fields.get("tags", []) for tag in read_tags(text)]

    async def following(self) -> bool:
        """Reads fields: True when a file begins, False at the form's end."""
        name: str | None = None
        text = bytearray()
        async for event in self._events:
            if isinstance(event, MultipartSegment):
                field, filename = names_of(event.header("Content-Disposition") or "")
                if field in self._files:
                    self.part, self.filename, self._inside = field, filename, True
                    return True
                name = self._expected(field)
            elif event is None:
                if name is not None:
                    self._fields.setdefault(name, []).append(_text(name, text))
                name, text = None, bytearray()
            elif name is not None:
                text += event
                if len(text) > MAX_FIELD_BYTES:
                    raise _invalid(name, f"is longer than {MAX_FIELD_BYTES} bytes")
        return False

    def _expected(self, name: str) -> str:
        if name not in self._known:
            raise _invalid(name[:100], "is not a field of this form")
        if name in self._fields and name not in REPEATABLE:
            raise _invalid(name, "is there twice")
        return name

    async def _parse(self) -> AsyncGenerator[MultipartSegment | bytes | bytearray | None]:
        try:
            async for chunk in self._stream:
                self._left -= len(chunk)
                if self._left < 0:
                    raise AppError(
                        Code.FILE_TOO_LARGE if self._files == ONE_FILE else Code.REQUEST_TOO_LARGE,
                        f"The upload is larger than the limit of {self._max_file_bytes // 1024**2} MB.",
                    )
                if chunk:
                    for event in self._parser.parse(chunk):
                        yield event
            self._parser.close()
        except ParserLimitReached as error:
            raise AppError(Code.REQUEST_TOO_LARGE, f"The form has too many parts or headers: {_said(error)}.") from None
        except MultipartError as error:
            raise _malformed(error) from None


def _text(name: str, raw: bytes | bytearray) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise _invalid(name, "is not UTF-8") from None
    if "\x00" in text:
        raise _invalid(name, "holds a NUL; remove it")
    return text


def _invalid(field: str, what: str) -> AppError:
    return AppError(Code.REQUEST_INVALID, f"{field} {what}.", errors=[{"field": field, "message": what}])


def _malformed(error: MultipartError) -> AppError:
    return AppError(Code.REQUEST_MALFORMED, f"The body is not well-formed multipart/form-data: {_said(error)}.")


def _said(error: MultipartError) -> object:
    """The parser's own sentence; what else it holds may be an exception of Python's."""
    return error.args[0]
