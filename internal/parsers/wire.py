"""What worker, zygote and child say to each other: msgpack with checked types, never pickle."""

import msgspec

from internal.entities.archives import ArchiveBounds, ArchiveEntry
from internal.entities.parsed import Parsed

READABLE_SIDE = 4096
"""Pixels of the longer side of a picture that text is read from."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one parse: seconds of wall clock and of the processor, bytes of resident memory and result, megapixels
    of a picture, and pixels of the longer side of what is made of it."""

    seconds: float
    cpu_seconds: float
    memory: int
    output: int
    megapixels: int
    side: int


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A request to the zygote; the file and the result pipe travel with it as descriptors.

    With `archive` the file is expanded within these bounds instead of being read.
    """

    id: int
    media_type: str
    workdir: str
    limits: Limits
    archive: ArchiveBounds | None = None


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Kill the child of a job."""

    id: int


class Start(msgspec.Struct, frozen=True, tag=True):
    """Fork a child for a job."""

    job: Job


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The zygote has imported everything; `capabilities` are the walls it could put up."""

    capabilities: tuple[str, ...]


class Ended(msgspec.Struct, frozen=True, tag=True):
    """A child is gone. `reason` is exited, time or memory; `signal` is 0 for an ordinary exit."""

    id: int
    reason: str
    signal: int


class Done(msgspec.Struct, frozen=True, tag=True):
    """A child's good result."""

    parsed: Parsed


class Expanded(msgspec.Struct, frozen=True, tag=True):
    """What a child found in an archive; the files lie in the work folder."""

    entries: tuple[ArchiveEntry, ...]


class Failed(msgspec.Struct, frozen=True, tag=True):
    """A child's error. `trace` is for the log only, and only for errors that nobody foresaw."""

    code: str
    detail: str
    trace: str = ""


Request = Start | Cancel
Notice = Ready | Ended
Result = Done | Expanded | Failed
