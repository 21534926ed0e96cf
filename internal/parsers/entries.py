"""Names of an archive's entries, and what kind of archive a file is."""

import unicodedata
from collections.abc import Collection

import msgspec

from internal.parsers.media_types import GZIP, TAR, TAR_BZ2, TAR_XZ, ZIP
from pkg.apperr import AppError, Code

MAX_PATH = 1_000
MAX_NAME = 255
SIGNATURES = (
    (b"PK\x03\x04", ZIP),
    (b"PK\x05\x06", ZIP),
    (b"\x1f\x8b", GZIP),
    (b"BZh", TAR_BZ2),
    (b"\xfd7zXZ\0", TAR_XZ),
)
TAR_MAGIC = slice(257, 262)
HIDDEN = ("__MACOSX",)
FEW = 0.5


class EntryName(msgspec.Struct, frozen=True):
    """Folder and last part of an entry's path."""

    folder: str
    filename: str


def archive_type(head: bytes) -> str:
    """The kind of archive that begins so. Raises FILE_TYPE_NOT_ALLOWED."""
    for signature, media_type in SIGNATURES:
        if head.startswith(signature):
            return media_type
    if head[TAR_MAGIC] == b"ustar":
        return TAR
    raise AppError(
        Code.FILE_TYPE_NOT_ALLOWED, "The file is no archive that is read: send ZIP, TAR, TAR.GZ, TAR.BZ2 or TAR.XZ."
    )


def decoded(raw: bytes) -> str:
    """A name without a declared encoding: UTF-8, else Chinese (GB18030) where it looks so, else that of DOS."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        pass  # what follows are guesses
    try:
        chinese = raw.decode("gb18030")
    except UnicodeDecodeError:
        return raw.decode("cp437")
    wide = [char for char in chinese if not char.isascii()]
    # Letters with accents in DOS's encoding make rare characters of GB18030; people's names are of common ones.
    common = sum(_is_common(char) for char in wide)
    return chinese if common > len(wide) * FEW else raw.decode("cp437")


def is_passed_over(path: str) -> bool:
    """Hidden files and folders, and what macOS puts beside files."""
    parts = [part for part in _parts(path) if part not in (".", "..")]
    return any(part.startswith(".") or part in HIDDEN for part in parts)


def named(plain: str) -> EntryName:
    """Of a path that was checked."""
    folder, _, last = plain.rpartition("/")
    return EntryName(folder, last)


def named_for_show(path: str) -> EntryName:
    """Of any path, whatever is wrong with it: what isn't printable stands as escapes."""
    *folders, last = _parts(path) or [""]
    return EntryName(_shown("/".join(folders))[:MAX_PATH], _shown(last)[:MAX_NAME])


def check_path(path: str, seen: Collection[str]) -> str:
    """The path as it counts among `seen`. Raises FILE_NAME_INVALID for one that leads out of the archive, that can't be
    a name, or that was seen before."""
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in path):
        raise _invalid("holds control characters")
    if path.startswith(("/", "\\")) or path[1:2] == ":":
        raise _invalid("begins at the root of a disk")
    parts = _parts(path)
    if ".." in parts:
        raise _invalid("leads out of the archive")
    if not parts or len(parts[-1]) > MAX_NAME or len(path) > MAX_PATH:
        raise _invalid(f"has no name, or one of more than {MAX_NAME} characters, or more than {MAX_PATH} as a whole")
    plain = "/".join(part for part in parts if part != ".")
    if plain in seen:
        raise _invalid("is there twice; the first one counts")
    return plain


def _parts(path: str) -> list[str]:
    return [part for part in path.replace("\\", "/").split("/") if part]


def _is_common(char: str) -> bool:
    try:
        char.encode("gb2312")
    except UnicodeEncodeError:
        return False
    return True


def _shown(text: str) -> str:
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)


def _invalid(what: str) -> AppError:
    return AppError(Code.FILE_NAME_INVALID, f"The path of this entry {what}.")
