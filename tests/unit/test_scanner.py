"""When `up` starts a clamd of its own, and what is said where it doesn't."""

from pathlib import Path

import pytest

from dreamhub import scanner
from dreamhub.scanner import Off, find
from pkg import config
from pkg.config import Settings
from pkg.sections import Scan


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a clamd and a folder for signatures, which is empty."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(scanner, "FOLDERS", str(tmp_path / "sbin"))
    (tmp_path / "sbin").mkdir()
    (tmp_path / "sbin" / "clamd").touch(mode=0o755)
    (tmp_path / "signatures").mkdir()
    return tmp_path


def settings(machine: Path, **scan: str) -> Settings:
    return config.load(scan=Scan(signatures=str(machine / "signatures"), **scan))


@pytest.mark.parametrize("name", ["main.cvd", "daily.cld", "local.hdb"])
def test_it_is_started_where_there_are_signatures(machine: Path, name: str) -> None:
    (machine / "signatures" / name).touch()
    assert find(settings(machine)) == machine / "sbin" / "clamd"


@pytest.mark.parametrize("name", [None, "bytecode.cvd", "freshclam.dat"])
def test_without_signatures_it_says_how_to_get_them(machine: Path, name: str | None) -> None:
    if name:
        (machine / "signatures" / name).touch()
    assert find(settings(machine)) == Off(
        f"clamd has no signatures in {machine / 'signatures'}", "freshclam, then start again"
    )


def test_a_machine_without_it_is_told_how_to_install_it(machine: Path) -> None:
    (machine / "signatures" / "main.cvd").touch()
    (machine / "sbin" / "clamd").unlink()
    assert find(settings(machine)) == Off(
        "clamd isn't installed", "apt-get install clamav-daemon && freshclam, then start again"
    )


def test_off_means_off(machine: Path) -> None:
    (machine / "signatures" / "main.cvd").touch()
    assert isinstance(find(settings(machine, clamd="off")), Off)
