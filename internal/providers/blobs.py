"""Objects: the uploaded bytes, in a folder or in S3. Keys are `tenant/uuid`, never a file's name."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import UUID

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, S3Store

from internal.entities.objects import StoredObject
from pkg.apperr import AppError, Code, SettingsError
from pkg.sections import Blobs

READ_BYTES = 256 * 1024
LOCAL_PART_BYTES = 1024 * 1024
S3_PART_BYTES = 5 * 1024 * 1024
"""The least that S3 takes. Larger parts, or several at once, would stand in the server's memory."""
REMOVALS = 16
REQUEST_TIME = timedelta(seconds=60)

if TYPE_CHECKING:
    from obstore import GetOptions  # these two exist for type checkers only
    from obstore.store import S3Config


class BlobStore:
    """Puts, reads and removes objects. Every failure but a missing object is BLOB_UNAVAILABLE, which is transient."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._part_bytes = LOCAL_PART_BYTES if isinstance(store, LocalStore) else S3_PART_BYTES

    @staticmethod
    def key(tenant_id: UUID, object_id: UUID) -> str:
        """The object's name; a tenant's objects share a prefix, so that erasing a tenant is one listing."""
        return f"{tenant_id}/{object_id}"

    @staticmethod
    def part_key(tenant_id: UUID, part_id: UUID) -> str:
        """The name of an object that is a part of an unfinished upload."""
        return f"{tenant_id}/uploads/{part_id}"

    @staticmethod
    def archive_key(tenant_id: UUID, batch_id: UUID) -> str:
        """The name of an object that is an archive, until its files are documents."""
        return f"{tenant_id}/archives/{batch_id}"

    async def put_file(self, key: str, path: Path) -> None:
        """Stores a file's bytes, in parts where it is large, and never shows a half-written object."""
        try:
            await obstore.put_async(self._store, key, path, chunk_size=self._part_bytes, max_concurrency=1)
        except (BaseError, OSError) as error:
            raise _unavailable() from error

    async def fetch(self, key: str, path: Path) -> int:
        """Copies an object into a file and answers its size in bytes. Raises FileNotFoundError when it isn't there."""
        size = 0
        with path.open("wb") as file:
            async for part in self.read(key):
                size += file.write(part)
        return size

    async def read(self, key: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The object's bytes from `start` to before `end`, in parts of about 256 kB."""
        options: GetOptions = {"range": (start, end) if end is not None else {"offset": start}}
        try:
            result = await obstore.get_async(self._store, key, options=options)
            async for part in result.stream(min_chunk_size=READ_BYTES):
                yield bytes(part)
        except FileNotFoundError:
            raise
        except (BaseError, OSError) as error:
            raise _unavailable() from error

    async def remove(self, key: str) -> None:
        """Removes an object; one that isn't there is fine."""
        try:
            await obstore.delete_async(self._store, key)
        except FileNotFoundError:
            return
        except (BaseError, OSError) as error:
            raise _unavailable() from error

    async def remove_all(self, keys: Sequence[str]) -> None:
        """Removes many objects, a few at a time."""
        for start in range(0, len(keys), REMOVALS):
            await asyncio.gather(*(self.remove(key) for key in keys[start : start + REMOVALS]))

    async def exists(self, key: str) -> bool:
        """Whether the object is there."""
        try:
            await obstore.head_async(self._store, key)
        except FileNotFoundError:
            return False
        except (BaseError, OSError) as error:
            raise _unavailable() from error
        return True

    async def pages(self, prefix: str, *, size: int) -> AsyncIterator[list[StoredObject]]:
        """All objects below a prefix, about `size` at a time, in no certain order.

        What is added or removed meanwhile may be among them or not.
        """
        try:
            async for page in obstore.list(self._store, prefix=prefix, chunk_size=size):
                yield [StoredObject(key=item["path"], modified=item["last_modified"]) for item in page]
        except (BaseError, OSError) as error:
            raise _unavailable() from error

    async def check(self) -> None:
        """Writes, reads and removes a small object. Raises BLOB_UNAVAILABLE."""
        key = "health/check"
        try:
            await obstore.put_async(self._store, key, b"ok")
            with suppress(FileNotFoundError):  # another server removed it: it may write here as well
                await (await obstore.get_async(self._store, key)).bytes_async()
                await obstore.delete_async(self._store, key)
        except (BaseError, OSError) as error:
            raise _unavailable() from error


def open_blobs(settings: Blobs) -> BlobStore:
    """The store that `BLOBS__URL` names, which must. Raises SettingsError for options that make no sense."""
    url = urlsplit(settings.url)
    if url.scheme == "file":
        try:
            return BlobStore(LocalStore(prefix=unquote(url.path), mkdir=True))
        except (BaseError, OSError) as error:
            raise SettingsError(f"BLOBS__URL: the folder {unquote(url.path)} can't be made or read: {error}") from None
    return BlobStore(_s3(url.netloc, {name: values[-1] for name, values in parse_qs(url.query).items()}, settings))


def _s3(bucket: str, options: dict[str, str], settings: Blobs) -> S3Store:
    endpoint = options.pop("endpoint", None)
    region = options.pop("region", "us-east-1")
    if options:
        raise SettingsError(f"BLOBS__URL: unknown option {', '.join(sorted(options))}; known are endpoint and region")
    access, secret = settings.access_key.get_secret_value(), settings.secret_key.get_secret_value()
    if bool(access) != bool(secret):
        raise SettingsError(
            "BLOBS__ACCESS_KEY and BLOBS__SECRET_KEY: set both, or neither (then the machine's own role is used)"
        )
    config: S3Config = {"region": region, "virtual_hosted_style_request": endpoint is None}
    if endpoint:
        config["endpoint"] = endpoint
    if access:
        config["access_key_id"], config["secret_access_key"] = access, secret
    return S3Store(
        bucket,
        config=config,
        client_options={"allow_http": endpoint is not None and endpoint.startswith("http://"), "timeout": REQUEST_TIME},
        retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=20)},
    )


def _unavailable() -> AppError:
    return AppError(Code.BLOB_UNAVAILABLE, "The object store can't be reached; try again shortly.", retry_after=5)
