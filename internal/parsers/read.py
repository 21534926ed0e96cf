"""One entry for all formats: what runs inside the sandbox's child."""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from internal.entities.parsed import Parsed
from internal.parsers.docx import read_docx
from internal.parsers.eml import read_eml
from internal.parsers.epub import read_epub
from internal.parsers.html import read_html
from internal.parsers.image import FORMATS, read_image
from internal.parsers.markdown import read_markdown
from internal.parsers.media_types import CSV, DOCX, EML, EPUB, HTML, JSON, MARKDOWN, ODT, PDF, PLAIN, PPTX, XLSX
from internal.parsers.odt import read_odt
from internal.parsers.outline import Outline
from internal.parsers.pdf import read_pdf
from internal.parsers.pptx import read_pptx
from internal.parsers.text import read_csv, read_json, read_plain
from internal.parsers.wire import READABLE_SIDE
from internal.parsers.xlsx import read_xlsx
from pkg.apperr import AppError, Code

READERS: dict[str, Callable[[BinaryIO, Outline], None]] = {
    DOCX: read_docx,
    PPTX: read_pptx,
    XLSX: read_xlsx,
    ODT: read_odt,
    EPUB: read_epub,
    EML: read_eml,
    HTML: read_html,
    MARKDOWN: read_markdown,
    CSV: read_csv,
    JSON: read_json,
    PLAIN: read_plain,
}


def read(
    file: BinaryIO,
    *,
    media_type: str,
    workdir: Path,
    max_bytes: int,
    megapixels: int,
    side: int = READABLE_SIDE,
) -> Parsed:
    """Everything that the file says. Page images go to `workdir`; their paths are relative to it."""
    outline = Outline(max_bytes=max_bytes)
    if media_type == PDF:
        read_pdf(file, outline, workdir=workdir)
    elif media_type in FORMATS:
        read_image(file, outline, media_type=media_type, workdir=workdir, megapixels=megapixels, side=side)
    elif media_type in READERS:
        READERS[media_type](file, outline)
    else:
        raise AppError(Code.FILE_TYPE_NOT_ALLOWED, f"Files of type {media_type} can't be read.")
    return outline.parsed()
