"""Temporary folders: gone at the end of their process, however it ends, and never taken from a living one."""

import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from pkg.workdir import sweep, workdir

ROOT = Path(__file__).parents[2]
SPOOLS = """
import sys
from pathlib import Path
from pkg.workdir import workdir
with workdir(Path(sys.argv[1]), "worker") as folder:
    (folder / "ingest").mkdir()
    (folder / "ingest" / "source").write_text("a secret of the tenant")
    print(folder, flush=True)
    sys.stdin.read()
"""

Begin = Callable[[], tuple[subprocess.Popen[str], Path]]


@pytest.fixture
def begin(tmp_path: Path) -> Generator[Begin]:
    """Starts a process that spools into a folder of its own until its standard input ends."""
    made: list[subprocess.Popen[str]] = []

    def start() -> tuple[subprocess.Popen[str], Path]:
        process = subprocess.Popen(
            [sys.executable, "-c", SPOOLS, str(tmp_path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        made.append(process)
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    yield start
    for process in made:
        process.kill()
        process.communicate()


def test_a_killed_process_s_files_are_removed_by_the_next_and_a_living_one_s_are_not(
    tmp_path: Path, begin: Begin
) -> None:
    _living, kept = begin()
    killed, left = begin()
    killed.kill()
    killed.wait()
    assert (left / "ingest" / "source").exists()
    with workdir(tmp_path, "worker") as own:
        assert own.is_dir()
        assert not left.exists()
        assert (kept / "ingest" / "source").exists()


def test_a_clean_end_leaves_nothing(tmp_path: Path, begin: Begin) -> None:
    process, folder = begin()
    assert (folder / "ingest" / "source").exists()
    process.communicate("")
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_nothing_but_the_folders_of_dead_processes_is_removed(tmp_path: Path, begin: Begin) -> None:
    """The root may be the machine's own temporary folder, or somebody's."""
    _living, kept = begin()
    (tmp_path / "dreamhub-home").mkdir()
    (tmp_path / "dreamhub-home" / "secrets.json").write_text("of an installation")
    (tmp_path / "letter").write_text("of somebody else")
    with workdir(tmp_path, "server"):
        pass
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"dreamhub-home", "letter", kept.name}
    assert (tmp_path / "dreamhub-home" / "secrets.json").exists()


def test_a_link_is_removed_and_what_it_points_to_is_not(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").touch()
    root = tmp_path / "root"
    root.mkdir()
    (root / "dreamhub-scratch-link").symlink_to(tmp_path / "elsewhere")
    with workdir(root, "worker"):
        assert not (root / "dreamhub-scratch-link").is_symlink()
    assert (tmp_path / "elsewhere" / "file").exists()
