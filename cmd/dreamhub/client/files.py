"""Which files a person means by the paths that they gave."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec


class File(msgspec.Struct, frozen=True):
    """A file as it was when it was seen. `named`: given itself, not found in a folder."""

    path: Path
    size: int
    modified_ns: int
    named: bool = False


def find_files(paths: Sequence[Path]) -> list[File]:
    """Files of all folders in the order of their names, each once.

    What is hidden is passed over, unless it was named itself; links to folders aren't followed, they may go round.
    """
    found: dict[Path, File] = {}
    for path in paths:
        for candidate, named in _candidates(Path(os.path.abspath(path))):
            if candidate not in found and (file := _look(candidate, named=named)) is not None:
                found[candidate] = file
    return list(found.values())


def _candidates(path: Path) -> Iterator[tuple[Path, bool]]:
    if not path.is_dir():
        yield path, True
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(folder, name), False


def _look(path: Path, *, named: bool) -> File | None:
    """None for what is gone meanwhile, and for sockets, pipes and devices."""
    try:
        found = path.stat()
    except OSError:
        return None
    return File(path, found.st_size, found.st_mtime_ns, named) if path.is_file() else None
