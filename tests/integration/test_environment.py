"""`deploy/environment.sh`: made once, made anew when it was left half-made, and in step with the lock."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose locks name no package."""
    (tmp_path / "deploy").mkdir()
    shutil.copy2(CHECKOUT / "deploy" / "environment.sh", tmp_path / "deploy")
    (tmp_path / "requirements").mkdir()
    for kind in ("run", "dev"):
        (tmp_path / "requirements" / f"{kind}.txt").write_text("# nothing\n")
    return tmp_path


def make(checkout: Path, kind: str) -> str:
    """What it says; nothing when there was nothing to do."""
    command = ["sh", "deploy/environment.sh", kind]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True).stderr


def pins(kind: str) -> set[str]:
    text = (CHECKOUT / "requirements" / f"{kind}.txt").read_text()
    return set(re.findall(r"^([A-Za-z0-9_.-]+==[^ ;\\]+)", text, re.MULTILINE))


def test_it_is_made_once_and_again_when_half_made_or_outdated(checkout: Path) -> None:
    assert "making .venv with Python 3.11" in make(checkout, "dev")
    assert (checkout / ".venv" / "bin" / "python").exists()
    assert make(checkout, "dev") == ""
    assert make(checkout, "run") == ""  # the development environment serves both

    (checkout / "requirements" / "run.txt").write_text("# something else\n")
    said = make(checkout, "run")
    assert "requirements/run.txt" in said
    assert "making" not in said
    assert make(checkout, "run") == ""

    (checkout / ".venv" / ".unfinished").touch()
    assert "making .venv" in make(checkout, "run")
    assert make(checkout, "run") == ""


def test_the_development_lock_holds_the_other_at_the_same_versions() -> None:
    assert len(pins("run")) > 50
    assert pins("run") <= pins("dev")


def test_every_pin_has_hashes_and_no_host_is_named() -> None:
    for kind in ("run", "dev"):
        text = (CHECKOUT / "requirements" / f"{kind}.txt").read_text()
        assert text.count("==") > 50
        assert "://" not in text
        for block in re.split(r"\n(?=[A-Za-z0-9])", text):
            assert block.startswith("#") or "--hash=sha256:" in block, block
