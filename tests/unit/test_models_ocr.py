"""Pictures are bounded, put upright and read in the order of a person."""

import io
import struct
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from internal.models import images, ocr, reading_order
from internal.models.ocr import Reader
from pkg.apperr import AppError, Code

FIXTURES = Path(__file__).parents[1] / "fixtures" / "models"
ENGLISH = ["Invoice 4711 for Alice", "Total due: 250 EUR"]


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader(threads=2)


def drawn(lines: list[str] = ENGLISH, *, size: tuple[int, int] = (900, 160), mode: str = "RGB") -> Image.Image:
    picture = Image.new("RGB", size, "white")
    font = ImageFont.load_default(40)
    for row, line in enumerate(lines):
        ImageDraw.Draw(picture).text((20, 20 + 60 * row), line, font=font, fill="black")
    return picture.convert(mode)


def encoded(picture: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def read(reader: Reader, data: bytes) -> list[str]:
    return [line.text for line in ocr.read(reader, data, megapixels=60).lines]


def test_chinese_and_english_are_read_with_places(reader: Reader) -> None:
    page = ocr.read(reader, (FIXTURES / "notice_zh_en.png").read_bytes(), megapixels=60)
    assert [line.text for line in page.lines] == [
        "退货政策 Return policy",
        "客户在收到商品后三十天内可以申请全额退款，",
        "Refunds are paid within 14 days.",
        "发票号码：2026-0117",
    ]
    assert (page.width, page.height) == (760, 260)
    for row, line in enumerate(page.lines):
        left, top, right, bottom = line.box
        assert 0 <= left < 40 < 300 < right <= page.width
        assert top < 40 + 58 * row < bottom
        assert 0.9 < line.confidence <= 1


def test_vertical_chinese_is_read_from_right_to_left(reader: Reader) -> None:
    assert read(reader, (FIXTURES / "vertical_zh.png").read_bytes()) == ["山高水長", "月白風清"]


@pytest.mark.parametrize("form", images.FORMATS)
def test_every_format_is_read(reader: Reader, form: str) -> None:
    assert read(reader, encoded(drawn(), form)) == ENGLISH


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "I;16"])
def test_every_kind_of_pixel_is_read(reader: Reader, mode: str) -> None:
    picture = drawn(mode="L")
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
    assert read(reader, encoded(picture.convert(mode) if mode != "I;16" else picture, "TIFF")) == ENGLISH


def test_text_on_a_transparent_ground_is_read(reader: Reader) -> None:
    picture = Image.new("RGBA", (900, 160), (0, 0, 0, 0))
    picture.paste("black", mask=drawn(mode="L").point(lambda grey: 255 - grey))
    assert read(reader, encoded(picture)) == ENGLISH


def test_first_frame_of_an_animation_is_read(reader: Reader) -> None:
    frames = [drawn(["second frame"]), drawn(["third frame"])]
    assert read(reader, encoded(drawn(), "GIF", save_all=True, append_images=frames)) == ENGLISH


def test_photo_taken_sideways_is_put_upright(reader: Reader) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    page = ocr.read(reader, encoded(drawn().rotate(90, expand=True), "JPEG", exif=exif), megapixels=60)
    assert [line.text for line in page.lines] == ENGLISH
    assert (page.width, page.height) == (900, 160)


def test_blank_picture_has_no_lines(reader: Reader) -> None:
    assert read(reader, encoded(Image.new("RGB", (300, 200), "white"))) == []
    assert read(reader, encoded(Image.new("L", (1, 1)))) == []


def test_long_screenshot_is_read_without_loss_or_doubles(reader: Reader) -> None:
    lines = [f"Message number {number}" for number in range(1, 10)]
    picture = Image.new("RGB", (700, 6000), "white")
    tops = [120 + 640 * row for row in range(9)]
    for top, line in zip(tops, lines, strict=True):
        ImageDraw.Draw(picture).text((30, top), line, font=ImageFont.load_default(40), fill="black")
    page = ocr.read(reader, encoded(picture), megapixels=60)
    assert len(list(images.decode(encoded(picture), megapixels=60).strips())) > 1
    assert [line.text for line in page.lines] == lines
    assert all(line.box[1] - 30 < top < line.box[3] for line, top in zip(page.lines, tops, strict=True))


def test_strips_cover_every_row_once() -> None:
    picture = images.Picture(1000, 9000, Image.new("RGB", (1000, 9000)))
    strips = list(picture.strips())
    assert strips[0].keep[0] == 0
    assert strips[-1].keep[1] == float("inf")
    for upper, lower in pairwise(strips):
        assert upper.keep[1] == lower.keep[0]
        assert lower.top + 40 < lower.keep[0] < upper.top + upper.pixels.shape[0] - 40
    assert strips[-1].top + strips[-1].pixels.shape[0] == 9000


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_large_picture_is_shrunk_and_its_boxes_are_not(reader: Reader, form: str) -> None:
    picture = drawn(size=(900, 700)).resize((3600, 2800))
    data = encoded(picture, form)
    (strip,) = images.decode(data, megapixels=60).strips()
    assert strip.pixels.shape[0] * strip.pixels.shape[1] <= images.READABLE_PIXELS * 1.01
    page = ocr.read(reader, data, megapixels=60)
    assert (page.width, page.height) == (3600, 2800)
    assert [line.text for line in page.lines] == ENGLISH
    assert page.lines[1].box[1] == pytest.approx(4 * 82, abs=40)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(8000, 8000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_refused_before_they_are_decoded(width: int, height: int) -> None:
    with pytest.raises(AppError) as caught:
        images.decode(bomb(width, height), megapixels=60)
    assert caught.value.code == Code.FILE_TOO_COMPLEX


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a picture",
        encoded(drawn())[:400],
        encoded(drawn(), "JPEG")[:-4000],
        encoded(drawn(), "TIFF")[:200],
        bomb(100, 100),
        encoded(drawn(), "BMP"),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    ],
    ids=["empty", "text", "cut png", "cut jpeg", "cut tiff", "short pixels", "bmp", "eps"],
)
def test_damaged_and_other_files_are_unreadable(data: bytes) -> None:
    with pytest.raises(AppError) as caught:
        images.decode(data, megapixels=60)
    assert caught.value.code == Code.FILE_UNREADABLE


def test_rows_on_a_page_scanned_askew_stay_together() -> None:
    climb = [(x, 100 - x // 40, x + 90, 130 - x // 40) for x in range(0, 600, 100)]
    below = [(x, 160 - x // 40, x + 90, 190 - x // 40) for x in range(0, 600, 100)]
    boxes = [*reversed(below), *reversed(climb)]
    assert [boxes[index] for index in reading_order.order(boxes)] == climb + below


def test_nothing_has_no_order() -> None:
    assert reading_order.order([]) == []
