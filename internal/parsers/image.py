"""Photos and scans: bounded pixels, upright, EXIF facts as metadata; the picture itself goes on to OCR."""

import warnings
from pathlib import Path
from typing import BinaryIO

from PIL import ExifTags, Image, ImageOps

from internal.entities.parsed import PageImage
from internal.parsers.outline import Outline
from pkg.apperr import AppError, Code

MAX_FRAMES = 200  # pages of a TIFF
JPEG_QUALITY = 92
FORMATS = {
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/webp": "WEBP",
    "image/gif": "GIF",
    "image/tiff": "TIFF",
}
_EXIF = {"Make": "camera_make", "Model": "camera_model", "DateTime": "taken", "ImageDescription": "description",
         "Artist": "author", "Copyright": "copyright"}  # fmt: skip


def read_image(file: BinaryIO, outline: Outline, *, media_type: str, workdir: Path, megapixels: int, side: int) -> None:
    """Writes upright RGB pages into `workdir`, at most `side` pixels long: each page of a TIFF, the first frame of
    anything else.

    More than `megapixels` raises FILE_TOO_COMPLEX before a pixel is decoded.
    """
    with warnings.catch_warnings():
        # The bound below is ours and exact; corrupt metadata isn't worth a line.
        warnings.simplefilter("ignore")
        Image.MAX_IMAGE_PIXELS = None
        try:
            with Image.open(file, formats=(FORMATS[media_type],)) as image:
                _facts(image, outline)
                frames = getattr(image, "n_frames", 1) if media_type == "image/tiff" else 1
                if frames > MAX_FRAMES:
                    outline.warn(f"Only the first {MAX_FRAMES} of {frames} pages were read.")
                for number in range(min(frames, MAX_FRAMES)):
                    image.seek(number)
                    _bounded(image, megapixels)
                    outline.images.append(write_page(_upright(image, side), workdir, number + 1))
        except AppError:
            raise
        except (
            OSError,
            ValueError,
            SyntaxError,
            TypeError,
            EOFError,
            KeyError,
            IndexError,
            ZeroDivisionError,
        ) as error:
            # Pillow's readers raise all of these on damaged files.
            raise AppError(Code.FILE_UNREADABLE, "The picture is damaged; save it again and upload that.") from error


def write_page(image: Image.Image, workdir: Path, page: int, *, quality: int = JPEG_QUALITY) -> PageImage:
    """Saves one page for OCR as JPEG; the returned path is relative to `workdir`."""
    name = f"page-{page:05d}.jpg"
    image.save(workdir / name, "JPEG", quality=quality)
    return PageImage(page=page, path=name, width=image.width, height=image.height)


def _bounded(image: Image.Image, megapixels: int) -> None:
    width, height = image.size
    if width * height > megapixels * 1_000_000:
        raise AppError(
            Code.FILE_TOO_COMPLEX,
            f"The picture has {width} × {height} pixels; at most {megapixels} megapixels are read. Make it smaller.",
        )


def _upright(image: Image.Image, side: int) -> Image.Image:
    """Turned as EXIF says, transparent parts white, in RGB, at most `side` pixels long."""
    image.draft("RGB", (side, side))
    frame = _small_copy(image, side)
    if frame.mode.startswith(("I", "F")):
        frame = _eight_bits(frame)
    if frame.mode in ("RGBA", "LA", "PA") or "transparency" in frame.info:
        rgba = frame.convert("RGBA")
        frame = Image.new("RGB", rgba.size, "white")
        frame.paste(rgba, mask=rgba.getchannel("A"))
    frame = frame.convert("RGB")
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    frame.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(frame)


def _small_copy(image: Image.Image, side: int) -> Image.Image:
    """A copy of at most `side` pixels a side, made first: each full-size step would be one more picture in memory.

    The file's own frame is left as it is.
    """
    share = side / max(image.size)
    if share >= 1:
        return image.copy()
    size = (max(1, round(image.width * share)), max(1, round(image.height * share)))
    if image.mode in ("1", "P", "PA"):  # can't be blended; small in memory
        image = image.convert("RGBA" if "transparency" in image.info or image.mode == "PA" else "RGB")
    elif image.mode.startswith("I;"):
        image = image.convert("I")
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def _eight_bits(frame: Image.Image) -> Image.Image:
    """Deep greyscale scaled to 0–255 by its own extremes, as viewers do."""
    wide = frame.convert("F")
    low, high = wide.getextrema()
    if not isinstance(low, float) or not isinstance(high, float) or high <= low:
        return frame.convert("L")
    return wide.point(lambda value: value * (255 / (high - low)) - low * 255 / (high - low)).convert("L")


def _facts(image: Image.Image, outline: Outline) -> None:
    """Size, and what EXIF tells of camera, time and place."""
    outline.note("width", image.width)
    outline.note("height", image.height)
    try:
        exif = image.getexif()
        for tag, value in exif.items():
            if key := _EXIF.get(ExifTags.TAGS.get(tag, "")):
                outline.note(key, value)
        inner = exif.get_ifd(ExifTags.IFD.Exif)
        outline.note("taken", inner.get(ExifTags.Base.DateTimeOriginal))
        place = exif.get_ifd(ExifTags.IFD.GPSInfo)
        latitude = _degrees(place.get(ExifTags.GPS.GPSLatitude), place.get(ExifTags.GPS.GPSLatitudeRef) == "S")
        longitude = _degrees(place.get(ExifTags.GPS.GPSLongitude), place.get(ExifTags.GPS.GPSLongitudeRef) == "W")
    except Exception:  # noqa: BLE001 (a hostile EXIF block raises anything; the picture is good without it)
        outline.warn("The picture's EXIF data is damaged and was ignored.")
        return
    if latitude is not None and longitude is not None:
        outline.note("latitude", f"{latitude:.6f}")
        outline.note("longitude", f"{longitude:.6f}")


def _degrees(parts: object, negative: bool) -> float | None:
    if not isinstance(parts, tuple) or len(parts) != 3:
        return None
    degrees, minutes, seconds = (float(part) for part in parts)
    value = degrees + minutes / 60 + seconds / 3600
    return -value if negative else value
