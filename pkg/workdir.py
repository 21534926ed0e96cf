"""A folder of temporary files for each process, which doesn't outlive it: whoever comes next removes a dead one's.

A living process holds a lock on its folder, and the kernel takes the lock away however the process ends; so a folder
whose lock can be taken belongs to nobody, and an id that was given again can't deceive anyone.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from pkg import logger

PREFIX = "dreamhub-scratch-"
"""Nothing else is ever removed: the root may be the machine's own folder, or one where somebody keeps other things."""


@contextmanager
def workdir(root: Path, process: str) -> Generator[Path]:
    """A new private folder in `root` for the block; the folders of dead processes are removed first."""
    root.mkdir(parents=True, exist_ok=True)
    sweep(root)
    folder, lock = _make(root, f"{PREFIX}{process}-{os.getpid()}-")
    try:
        yield folder
    finally:
        _remove(folder)
        os.close(lock)


def sweep(root: Path) -> None:
    """Removes what dead processes left in `root`; what lives, isn't ours, or belongs to another user stays."""
    for path in root.glob(f"{PREFIX}*"):
        try:
            if not path.is_dir() or path.is_symlink():
                path.unlink(missing_ok=True)
            elif (lock := _lock(path)) is not None:
                _remove(path)
                os.close(lock)
        except PermissionError:
            logger.get("workdir").debug("left alone, it belongs to another user", path=str(path))


def _make(root: Path, prefix: str) -> tuple[Path, int]:
    """A locked folder and the descriptor that holds the lock. A sweep may come between making and locking."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
        lock = _lock(folder)
        if lock is not None:
            if folder.exists():
                return folder, lock
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """None when a living process has it, or it is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _remove(folder: Path) -> None:
    """What can't be removed is told, and tried again by the next process that starts."""
    shutil.rmtree(
        folder,
        onerror=lambda _function, path, error: logger.get("workdir").warning(
            "a temporary file could not be removed", path=str(path), cause=str(error[1])
        ),
    )
