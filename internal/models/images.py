"""Decodes pictures for reading: bounded before a pixel is decoded, upright, flat, of a size that can be read."""

import io
from collections.abc import Generator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from pkg.apperr import AppError, Code

Pixels = npt.NDArray[np.uint8]

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF")
READABLE_PIXELS = 4_000_000
"""About A4 at 200 dpi: more pixels cost time and read no better."""
STRIP_RATIO = 4
"""A picture taller than this many widths (a long screenshot) is read in strips instead of being shrunk."""
STRIP_OVERLAP = 160
"""Rows that two strips share, so that a line of text lies in one of them as a whole."""
DEEP_MODES = frozenset({"I", "F", "I;16", "I;16B", "I;16L", "I;16N"})


class Strip(NamedTuple):
    """RGB pixels of shape (height, width, 3). Their point (x, y) is (x * scale, y * scale + top) in the picture.

    Lines of text with their centre between the rows `keep` of the picture are taken from this strip.
    """

    pixels: Pixels
    scale: float
    top: int
    keep: tuple[float, float]


@dataclass(frozen=True)
class Picture:
    """A decoded picture. `width` and `height` are those of the file, upright; `image` may be smaller."""

    width: int
    height: int
    image: Image.Image

    def strips(self) -> Generator[Strip]:
        """The picture from top to bottom, in one piece unless it is very tall."""
        if not _is_long(self.width, self.height):
            scale = _shrinking(self.width, self.height)
            size = (max(1, round(self.width / scale)), max(1, round(self.height / scale)))
            small = self.image if self.image.size == size else self.image.resize(size, Image.Resampling.LANCZOS)
            yield Strip(np.asarray(small), self.width / size[0], 0, (0.0, float("inf")))
            return
        rows = max(READABLE_PIXELS // self.width, 4 * STRIP_OVERLAP)
        tops = range(0, self.height - STRIP_OVERLAP, rows - STRIP_OVERLAP)
        for top in tops:
            piece = self.image.crop((0, top, self.width, min(top + rows, self.height)))
            begin = 0.0 if top == 0 else top + STRIP_OVERLAP / 2
            end = float("inf") if top == tops[-1] else top + rows - STRIP_OVERLAP / 2
            yield Strip(np.asarray(piece), 1.0, top, (begin, end))


def decode(data: bytes, *, megapixels: int) -> Picture:
    """The first frame. Raises `file.unreadable`, or `file.too_complex` above `megapixels` million pixels."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > megapixels * 1_000_000:
                raise _too_large(megapixels)
            _decode_smaller(image)
            upright = ImageOps.exif_transpose(image)
            if upright.size != image.size:
                width, height = height, width
            return Picture(width, height, _flatten(upright))
    except AppError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(megapixels) from error
    except UnidentifiedImageError as error:
        raise AppError(Code.FILE_UNREADABLE, "not a PNG, JPEG, WEBP, GIF or TIFF; upload one of them") from error
    except Exception as error:  # decoders of broken pictures raise nearly anything: OSError, SyntaxError, struct.error
        raise AppError(Code.FILE_UNREADABLE, "the picture is damaged; save it again and upload it anew") from error


def _too_large(megapixels: int) -> AppError:
    return AppError(Code.FILE_TOO_COMPLEX, f"the picture has more than {megapixels} million pixels; upload it smaller")


def _decode_smaller(image: Image.Image) -> None:
    """Lets the JPEG decoder leave out what would be thrown away; a long screenshot keeps its size."""
    if image.format == "JPEG" and not _is_long(image.width, image.height) and not _is_long(image.height, image.width):
        scale = _shrinking(image.width, image.height)
        image.draft(None, (round(image.width / scale), round(image.height / scale)))


def _is_long(width: int, height: int) -> bool:
    return height > STRIP_RATIO * width and width * height > READABLE_PIXELS


def _shrinking(width: int, height: int) -> float:
    return max(1.0, (width * height / READABLE_PIXELS) ** 0.5)


def _flatten(image: Image.Image) -> Image.Image:
    """8-bit RGB on white."""
    if image.mode in DEEP_MODES:
        return _eight_bits(image).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        flat = Image.new("RGB", layer.size, "white")
        flat.paste(layer, mask=layer.getchannel("A"))
        return flat
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Stretches 16-bit and float samples over 0 to 255; converting them as they are would clip to white."""
    samples = np.nan_to_num(np.asarray(image, dtype=np.float32))
    low, high = float(samples.min()), float(samples.max())
    return Image.fromarray(((samples - low) * (255.0 / max(high - low, 1e-6))).astype(np.uint8))
