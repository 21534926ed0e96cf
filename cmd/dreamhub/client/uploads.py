"""What this person uploaded from here before, so that a second run needn't send it again.

Only a shortcut: the server knows each file by its bytes, and it answers for what this memory lost.
"""

import sqlite3
from pathlib import Path

from dreamhub.client.errors import ClientError
from dreamhub.client.files import File

SCHEMA = """
create table if not exists uploads (
    server text not null, tenant text not null, path text not null,
    modified_ns integer not null, size integer not null, document_id text not null,
    primary key (server, tenant, path)
) without rowid
"""
LOCK_SECONDS = 10.0


class Uploads:
    """A small SQLite file, shared by all runs of this user; entries are of one server and tenant."""

    def __init__(self, path: Path, server: str, tenant: str) -> None:
        self._key = (server, tenant)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None)
            self._db.execute(SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise ClientError(f"{path} can't be used to remember what was uploaded: {error}") from None

    def find(self, file: File) -> str | None:
        """The document of this very file; None when it is new or changed since."""
        row = self._db.execute(
            "select document_id from uploads"
            " where server = ? and tenant = ? and path = ? and modified_ns = ? and size = ?",
            (*self._key, _text(file.path), file.modified_ns, file.size),
        ).fetchone()
        return row[0] if row else None

    def add(self, file: File, document_id: str) -> None:
        """Remembers that the server has this file."""
        self._db.execute(
            "insert or replace into uploads values (?, ?, ?, ?, ?, ?)",
            (*self._key, _text(file.path), file.modified_ns, file.size, document_id),
        )

    def close(self) -> None:
        """Lets go of the file."""
        self._db.close()


def _text(path: Path) -> str:
    return str(path).encode(errors="surrogateescape").decode(errors="backslashreplace")
