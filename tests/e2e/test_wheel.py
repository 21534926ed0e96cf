"""The wheel, installed into a fresh environment: one name, and a program that works there."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Generator
from pathlib import Path

import pytest

from pkg.version import version

CHECKOUT = Path(__file__).resolve().parents[2]
SOURCES = ("cmd", "internal", "pkg", "migrations", "pyproject.toml", "README.md", "LICENSE")


def run(*command: str | Path, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "DREAMHUB_HOME")}
    return subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True, timeout=120, check=check)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    """An environment whose site-packages gained the wheel; the dependencies come from ours by a path file."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        found = CHECKOUT / name
        if found.is_dir():
            shutil.copytree(found, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(found, source / name)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", cwd=source)
    environment = folder / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    site = Path(
        run(
            environment / "bin" / "python", "-c", "import site; print(site.getsitepackages()[0])", cwd=folder
        ).stdout.strip()
    )
    (wheel,) = (folder / "dist").glob("*.whl")
    run(sys.executable, "-m", "pip", "--python", environment, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    added = {path.name for path in site.iterdir()}
    assert added == {"dreamhub", f"dreamhub-{version()}.dist-info"}
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    yield environment / "bin"
    shutil.rmtree(folder)


def test_it_answers_help_and_version(installed: Path, tmp_path: Path) -> None:
    assert "Reads documents, photos and recordings" in run(installed / "dreamhub", "--help", cwd=tmp_path).stdout
    assert run(installed / "dreamhub", "--version", cwd=tmp_path).stdout == f"dreamhub {version()}\n"
    assert run(installed / "python", "-m", "dreamhub", "--version", cwd=tmp_path).stdout == f"dreamhub {version()}\n"


def test_doctor_explains_how_to_start(installed: Path, tmp_path: Path) -> None:
    ended = run(installed / "dreamhub", "doctor", cwd=tmp_path, check=False)
    assert ended.returncode == 1, ended.stderr
    assert "FAIL PostgreSQL     DB__DSN isn't set and no `up` is running" in ended.stdout
    assert "start everything on this machine with `dreamhub up`" in ended.stdout
    assert ended.stderr == ""


def test_it_runs_its_own_code_and_carries_the_migrations(installed: Path, tmp_path: Path) -> None:
    probe = (
        "import runpy, sys; sys.argv = ['dreamhub', '--version']\n"
        "import contextlib\n"
        "with contextlib.suppress(SystemExit): runpy.run_module('dreamhub', run_name='__main__')\n"
        "import internal, pkg\n"
        "from internal.repositories.migrate import read_all\n"
        "print(internal.__file__, pkg.__file__, len(read_all()))"
    )
    internal, pkg, migrations = run(installed / "python", "-c", probe, cwd=tmp_path).stdout.splitlines()[-1].split()
    bundle = f"{installed.parent}/lib/python3.11/site-packages/dreamhub/_bundle/"
    assert internal == f"{bundle}internal/__init__.py"
    assert pkg == f"{bundle}pkg/__init__.py"
    assert int(migrations) == len(list((CHECKOUT / "migrations").glob("*.sql")))
