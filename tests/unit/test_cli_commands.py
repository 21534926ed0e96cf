"""The command line itself: what it offers, how fast it answers, and how it words what went wrong."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from dreamhub import __main__ as cli
from dreamhub.errors import StartError
from pkg.apperr import AppError, Code, SettingsError
from pkg.version import version

ROOT = Path(__file__).resolve().parents[2]


def dreamhub(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "dreamhub", *arguments],
        env={"PYTHONPATH": f"{ROOT / 'cmd'}:{ROOT}", **environment},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_names_every_command_and_imports_none() -> None:
    ended = dreamhub("--help")
    assert ended.returncode == 0
    for command in (
        "up",
        "serve",
        "work",
        "relay",
        "models",
        "migrate",
        "tenant",
        "ingest",
        "search",
        "chat",
        "doctor",
    ):
        assert f" {command} " in ended.stdout
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, dreamhub.__main__; print(*sys.modules)"],
        env={"PYTHONPATH": f"{ROOT / 'cmd'}:{ROOT}"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert not {"asyncpg", "litestar", "pydantic", "httpx", "redis", "internal", "rich.console"} & set(loaded)


def test_version_is_the_project_s() -> None:
    assert dreamhub("--version").stdout == f"dreamhub {version()}\n"
    assert f'version = "{version()}"' in (ROOT / "pyproject.toml").read_text()


def test_a_misspelt_setting_is_named_without_a_traceback(tmp_path: Path) -> None:
    ended = dreamhub("up", "--home", str(tmp_path), LIMIT__MAX_FILE_MB="5")
    assert ended.returncode == 2
    assert ended.stderr == (
        "dreamhub: LIMIT__MAX_FILE_MB is not a setting of DreamHub; did you mean LIMITS__MAX_FILE_MB?\n"
    )


def test_production_refuses_embedded_servers(tmp_path: Path) -> None:
    ended = dreamhub("up", "--home", str(tmp_path / "home"), DREAMHUB_ENV="production")
    assert ended.returncode == 2
    for name in ("DB__DSN", "REDIS__URL", "BLOBS__URL", "SCAN__CLAMD", "AUTH__PLATFORM_TOKEN", "AUTH__JWT_SECRET"):
        assert f"dreamhub: {name}: " in ended.stderr
    assert not (tmp_path / "home").exists()


def test_a_folder_named_like_ours_in_the_current_directory_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "dreamhub", "up", "--home", "/dev/null/x"],
        env={"PYTHONPATH": f"{ROOT / 'cmd'}:{ROOT}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.stderr.startswith("dreamhub: --home /dev/null/x can't be used: ")


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (SettingsError("A: wrong\nB: wrong"), 2, "dreamhub: A: wrong\ndreamhub: B: wrong\n"),
        (StartError("port 1 is in use"), 1, "dreamhub: port 1 is in use\n"),
        (AppError(Code.DATABASE_UNAVAILABLE, "no login"), 1, "dreamhub: no login\n"),
        (ExceptionGroup("tasks", [ExceptionGroup("more", [StartError("one")])]), 1, "dreamhub: one\n"),
    ],
)
def test_errors_that_a_person_can_mend(
    error: Exception, code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> int:
        raise error

    with pytest.raises(typer.Exit) as ended:
        cli._guard(fail)
    assert ended.value.exit_code == code
    assert capsys.readouterr().err == text


def test_other_errors_keep_their_traceback() -> None:
    def fail() -> int:
        raise ExceptionGroup("tasks", [ValueError("a defect")])

    with pytest.raises(ExceptionGroup, match="tasks"):
        cli._guard(fail)
