"""What lies in an archive."""

import msgspec


class ArchiveBounds(msgspec.Struct, frozen=True, kw_only=True):
    """Entries of an archive, real bytes of one of them and of all together, at most."""

    entries: int
    entry_bytes: int
    total_bytes: int


class ArchiveEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A file of an archive, or why it is refused. `ordinal` counts all entries, from 0; folders are passed over.

    Of a refused one the names are fit to be shown, those of others are as they are, without control characters.
    """

    ordinal: int
    filename: str
    folder: str = ""
    size: int = 0
    error_code: str | None = None
    error_message: str | None = None
