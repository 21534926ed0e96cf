"""PDF: text with places through PDFium; pages without usable text become images for OCR."""

import ctypes
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c

from internal.parsers.image import write_page
from internal.parsers.outline import Outline
from internal.parsers.pdf_layout import Line, Page, squeeze, write_pages
from pkg.apperr import AppError, Code

MAX_PAGES = 2000
MAX_PAGE_CHARS = 200_000
MAX_PAGE_IMAGES = 500
MAX_BOOKMARKS = 5000
RENDER_DPI = 200
RENDER_PIXELS = 12_000_000
JPEG_QUALITY = 88
FEW_CHARS = 30  # a page with fewer visible characters and a picture on it is a scan
MAX_GARBAGE = 0.25  # share of characters that mean nothing
COVERING = 0.5  # share of the page that a picture must cover to be a scan
BOLD_WEIGHT = 600
BOLD_NAMES = (b"bold", b"black", b"heavy", b"-medi", b"cmbx")
MAX_FONT_NAME = 128
FIXED_PITCH = 1  # a font descriptor's first flag
MANY_PATHS = 40  # vector outlines instead of text
_LINES = re.compile(r"[^\n]*\n|[^\n]+\Z")
_META = {"Title": "title", "Author": "author", "Subject": "subject", "CreationDate": "created"}


def read_pdf(file: BinaryIO, outline: Outline, *, workdir: Path) -> None:
    """Reads a PDF. Raises FILE_ENCRYPTED, FILE_UNREADABLE or FILE_TOO_COMPLEX (too many pages)."""
    document = _open(file.read())
    try:
        if len(document) > MAX_PAGES:
            raise AppError(
                Code.FILE_TOO_COMPLEX, f"The PDF has {len(document)} pages; at most {MAX_PAGES} are read. Split it."
            )
        outline.note("pages", len(document))
        for key, value in document.get_metadata_dict(skip_empty=True).items():
            if key in _META:
                outline.note(_META[key], value)
        pages = [_read_page(document, number, outline, workdir) for number in range(1, len(document) + 1)]
        contents = _contents(document)
        write_pages([page for page in pages if page is not None], contents, outline)
    except pdfium.PdfiumError as error:
        raise _damaged() from error
    finally:
        document.close()
    if not pages:
        raise _damaged()


def _open(data: bytes) -> pdfium.PdfDocument:
    try:
        return pdfium.PdfDocument(data)
    except pdfium.PdfiumError as error:
        if error.err_code == pdfium_c.FPDF_ERR_PASSWORD:
            raise AppError(
                Code.FILE_ENCRYPTED, "The PDF needs a password; save it without one and upload it again."
            ) from error
        if error.err_code == pdfium_c.FPDF_ERR_SECURITY:
            raise AppError(
                Code.FILE_ENCRYPTED, "The PDF is protected in a way that can't be read; upload an open one."
            ) from error
        raise _damaged() from error


def _damaged() -> AppError:
    return AppError(Code.FILE_UNREADABLE, "The PDF is damaged; open it, save or print it as PDF again and upload that.")


def _read_page(document: pdfium.PdfDocument, number: int, outline: Outline, workdir: Path) -> Page | None:
    """The lines of a page, or None when it went to OCR or can't be read."""
    try:
        page = document[number - 1]
    except pdfium.PdfiumError:
        outline.warn(f"Page {number} is damaged and was left out.")
        return None
    try:
        width, height = page.get_size()
        if not (width > 0 and height > 0 and math.isfinite(width * height)):
            outline.warn(f"Page {number} has no size and was left out.")
            return None
        textpage = page.get_textpage()
        try:
            text = _text(textpage)
            if _needs_ocr(page, text, width * height):
                _render(page, number, outline, workdir)
                return None
            turned = page.get_rotation() != 0
            return Page(number, width, height, _lines(page, textpage, text, height), turned)
        finally:
            textpage.close()
    finally:
        page.close()


def _text(textpage: pdfium.PdfTextPage) -> str:
    """All characters of a page, index for index with PDFium's own counting in UTF-16 units."""
    count = min(textpage.count_chars(), MAX_PAGE_CHARS)
    if count <= 0:
        return ""
    buffer = (ctypes.c_ushort * (count + 1))()
    written = pdfium_c.FPDFText_GetText(textpage, 0, count, buffer)
    return bytes(buffer)[: 2 * max(0, written - 1)].decode("utf-16-le", errors="surrogatepass")


def _needs_ocr(page: pdfium.PdfPage, text: str, area: float) -> bool:
    visible = [char for char in text if not char.isspace()]
    if len(visible) >= FEW_CHARS:
        return _garbage(text, visible)
    paths = 0
    for item in page.get_objects(filter=(pdfium_c.FPDF_PAGEOBJ_IMAGE, pdfium_c.FPDF_PAGEOBJ_PATH), max_depth=3):
        if not isinstance(item, pdfium.PdfImage):
            paths += 1
            if paths > MANY_PATHS and not visible:
                return True
            continue
        x0, y0, x1, y1 = item.get_bounds()
        if not visible or abs((x1 - x0) * (y1 - y0)) > COVERING * area:
            return True
    return bool(visible) and _garbage(text, visible)


def _garbage(text: str, visible: list[str]) -> bool:
    """A text layer whose fonts don't say what their shapes mean."""
    bad = sum(1 for char in visible if char == "\ufffd" or "\ue000" <= char <= "\uf8ff" or char < " ")
    # PDFium gives U+0002 for a hyphen at a line end; there is at most one a line.
    bad -= text.count("\x02\r\n") + text.count("\x02\n")
    return bad + 5 * text.count("(cid:") > MAX_GARBAGE * len(visible)


def _render(page: pdfium.PdfPage, number: int, outline: Outline, workdir: Path) -> None:
    if len(outline.images) >= MAX_PAGE_IMAGES:
        outline.warn(f"Only the first {MAX_PAGE_IMAGES} scanned pages were read; split the file to read the others.")
        return
    width, height = page.get_size()
    scale = min(RENDER_DPI / 72, math.sqrt(RENDER_PIXELS / (width * height)))
    if width * scale < 1 or height * scale < 1:
        outline.warn(f"Page {number} is too thin to be read and was left out.")
        return
    bitmap = page.render(scale=scale, grayscale=True)  # pyright: ignore[reportArgumentType] (its hint forgets fractions)
    image = bitmap.to_pil()
    outline.images.append(write_page(image, workdir, number, quality=JPEG_QUALITY))
    bitmap.close()


def _lines(page: pdfium.PdfPage, textpage: pdfium.PdfTextPage, text: str, height: float) -> list[Line]:
    """Lines with their places, in content order. Only the ends of each line are asked for: it is fast."""
    left, bottom, _, top = page.get_cropbox() or (0.0, 0.0, 0.0, height)
    height = max(height, top - bottom)
    lines: list[Line] = []
    start = 0
    units = _utf16_offsets(text)
    for raw in _LINES.findall(text):
        visible = raw.strip()
        if visible:
            first = start + raw.index(visible[0])
            last = start + len(raw.rstrip()) - 1
            boxes = [_char_box(textpage, units(first)), _char_box(textpage, units(last))]
            boxes.append(_char_box(textpage, units((first + last) // 2)))
            good = [box for box in boxes if box is not None]
            if good:
                line = _line(visible, good, left, bottom + height)
                fonts = [_font(textpage, units(index)) for index in (first, (first + last) // 2, last)]
                line.bold, line.fixed = (all(flags) for flags in zip(*fonts, strict=True))
                lines.append(line)
            elif lines:
                lines[-1].text = f"{lines[-1].text} {visible}"
        start += len(raw)
    return lines


def _line(text: str, boxes: list[tuple[float, float, float, float]], left: float, top: float) -> Line:
    return Line(
        text=text,
        x0=min(box[0] for box in boxes) - left,
        y0=top - max(box[3] for box in boxes),
        x1=max(box[2] for box in boxes) - left,
        y1=top - min(box[1] for box in boxes),
        size=max(box[3] - box[1] for box in boxes),
    )


def _font(textpage: pdfium.PdfTextPage, index: int) -> tuple[bool, bool]:
    """Whether a character is bold and whether its font has a fixed pitch, by the font's name where it isn't told."""
    raw = ctypes.create_string_buffer(MAX_FONT_NAME)
    flags = ctypes.c_int()
    length = pdfium_c.FPDFText_GetFontInfo(textpage, index, raw, MAX_FONT_NAME, ctypes.byref(flags))
    name = raw.value.lower() if 0 < length <= MAX_FONT_NAME else b""
    bold = any(mark in name for mark in BOLD_NAMES) or pdfium_c.FPDFText_GetFontWeight(textpage, index) >= BOLD_WEIGHT
    fixed = bool(flags.value & FIXED_PITCH) or b"mono" in name or b"courier" in name
    return bold, fixed


def _utf16_offsets(text: str) -> Callable[[int], int]:
    """Maps a place in `text` to PDFium's index, which counts UTF-16 units."""
    wide = [index for index, char in enumerate(text) if char > "\uffff"]
    if not wide:
        return lambda index: index
    return lambda index: index + sum(1 for place in wide if place < index)


def _char_box(textpage: pdfium.PdfTextPage, index: int) -> tuple[float, float, float, float] | None:
    """Left, bottom, right, top of a character with its font's full height; None for generated ones."""
    try:
        box = textpage.get_charbox(index, loose=True)
    except pdfium.PdfiumError:
        return None
    x0, y0, x1, y1 = box
    return (x0, y0, x1, y1) if x1 >= x0 and y1 > y0 and math.isfinite(x0 + y0 + x1 + y1) else None


def _contents(document: pdfium.PdfDocument) -> dict[int, dict[str, int]]:
    """Bookmarks as page → squeezed title → level 1 to 6; empty when there are too few to rely on."""
    found: dict[int, dict[str, int]] = {}
    count = 0
    try:
        for bookmark in document.get_toc(max_depth=6):
            count += 1
            target = bookmark.get_dest()
            index = target.get_index() if target is not None else None
            title = squeeze(bookmark.get_title())
            if index is not None and title:
                found.setdefault(index + 1, {})[title] = min(bookmark.level + 1, 6)
            if count >= MAX_BOOKMARKS:
                break
    except (pdfium.PdfiumError, RecursionError, UnicodeError):
        return {}
    return found if count >= 3 else {}
