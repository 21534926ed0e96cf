"""The documents for readers agree with the code."""

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import SecretStr

from dreamhub.__main__ import app
from internal.entities.tasks import Queue
from internal.entities.watch import ALERTS
from internal.handlers.routes import ROUTES
from pkg import config

ROOT = Path(__file__).resolve().parents[2]
OPERATORS = (ROOT / "docs" / "operators.md").read_text()
EXAMPLE = (ROOT / ".env.example").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
READMES = (ROOT / "README.md", ROOT / "README.zh-CN.md")
ROW = re.compile(r"^\| `(?P<name>[A-Z_]+)` \| (?:`(?P<default>[^`]*)`)? ?\| (?P<meaning>.+) \|$", re.MULTILINE)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)")
CODE = re.compile(r"```(?P<language>\w*)\n(?P<text>.*?)```", re.DOTALL)
COMMANDS: Any = typer.main.get_command(app)
NAMES_WITHOUT_FIELD = {"DREAMHUB_SECRETS_DIR", "DREAMHUB_FAILPOINTS", *config.CLIENT_NAMES}


def settings() -> dict[str, str]:
    """Name in the environment → default as it would be written there."""
    found = dict.fromkeys(NAMES_WITHOUT_FIELD, "")
    for name, field in config.Settings.model_fields.items():
        if name not in config.SECTIONS:
            found[str(field.validation_alias)] = written(field.default)
            continue
        for inner, value in field.annotation.model_fields.items():
            found[f"{name}__{inner}".upper()] = written(value.default)
    return found


def written(default: Any) -> str:
    if isinstance(default, SecretStr):
        return default.get_secret_value()
    return str(list(default)) if isinstance(default, tuple) else str(default)


def example() -> dict[str, str]:
    """Settings of .env.example, read as a shell would."""
    lines = re.findall(r"^# ([A-Z_]+=.*)$", EXAMPLE, re.MULTILINE)
    pairs = [shlex.split(line)[0].partition("=") for line in lines]
    return {name: value for name, _, value in pairs}


def test_the_operators_table_has_every_setting_with_its_default():
    table = OPERATORS.partition("<!-- settings -->")[2].partition("<!-- /settings -->")[0]
    rows = {match["name"]: match["default"] or "" for match in ROW.finditer(table)}
    assert len(rows) == table.count("\n| `"), "a row that can't be read"
    assert rows == settings()


def test_the_example_has_every_setting_and_its_default():
    assert example().keys() == settings().keys()
    differing = {name for name, default in settings().items() if default and example()[name] != default}
    assert differing == set()
    assert not re.search(r"^[^#\n]", EXAMPLE, re.MULTILINE), "nothing is set by the example as it stands"


def test_the_example_loads(monkeypatch: pytest.MonkeyPatch):
    for name, value in example().items():
        if name != "DREAMHUB_SECRETS_DIR":
            monkeypatch.setenv(name, value)
    assert config.load().ai.api_keys == ("change-me",)


def test_production_refuses_the_secrets_of_the_example(monkeypatch: pytest.MonkeyPatch):
    for name, value in example().items():
        if name != "DREAMHUB_SECRETS_DIR":
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("DREAMHUB_ENV", "production")
    monkeypatch.setenv("SCAN__CLAMD", "tcp://clamav:3310")
    with pytest.raises(config.SettingsError) as raised:
        config.load()
    assert re.findall(r"^[A-Z_]+", str(raised.value), re.MULTILINE)[1:] == ["AUTH__PLATFORM_TOKEN", "AUTH__JWT_SECRET"]


def test_every_secret_of_the_example_is_a_placeholder():
    for section in config.SECTIONS:
        for name, field in config.Settings.model_fields[section].annotation.model_fields.items():
            if field.annotation is SecretStr:
                assert "change-me" in example()[f"{section}__{name}".upper()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    for match in LINK.finditer(CODE.sub("", page.read_text())):
        target, _, anchor = match["target"].partition("#")
        if "://" in target:
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), match["target"]
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_both_readmes_show_the_same_calls():
    calls = [
        [
            line
            for match in CODE.finditer(page.read_text())
            for line in re.sub(r"[#'\"].*?(?:['\"]|$)", "", match["text"], flags=re.MULTILINE).splitlines()
            if "api " in line or line.startswith(("make", "$bin"))
        ]
        for page in READMES
    ]
    assert calls[0]
    assert [line.split()[0] for line in calls[0]] == [line.split()[0] for line in calls[1]]
    assert all("```mermaid" in page.read_text() for page in READMES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_of_the_api_exist(page: Path):
    known = {re.sub(r"\{\w+:\w+\}", "*", path) for handler in ROUTES for path in handler.paths}
    for path in re.findall(r"/api/v1/[\w/{}$.-]+", page.read_text()):
        asked = re.sub(r"\{\w+\}|\$[A-Z]+", "*", path.rstrip("/."))
        assert asked in known, path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_exist(page: Path):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = set(re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.MULTILINE))
    assert used <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_their_options_exist(page: Path):
    for match in CODE.finditer(page.read_text()):
        if match["language"] != "sh":
            continue
        for line in re.findall(r"^\s*(?:dreamhub|\$bin -m dreamhub) (.+)$", match["text"], re.MULTILINE):
            name, *arguments = shlex.split(line, comments=True)
            command = COMMANDS.commands[name]
            options = {option for parameter in command.params for option in parameter.opts}
            assert {argument for argument in arguments if argument.startswith("-")} <= options


def test_the_operators_page_says_what_to_do_about_every_alert():
    table = OPERATORS.partition("| alert | means |")[2].partition("\n\n")[0]
    told = set(re.findall(r"^\| `([a-z_.]+?)(?:\.QUEUE)?` \|", table, re.MULTILINE))
    raised = {name.removesuffix(f".{queue}") for name in ALERTS for queue in Queue if name.endswith(f".{queue}")}
    plain = {name for name in ALERTS if not any(name.endswith(f".{queue}") for queue in Queue)}
    assert told == raised | plain | {"document.file_missing"}


def test_every_decision_has_its_three_parts_and_is_listed():
    folder = ROOT / "docs" / "adr"
    index = (folder / "README.md").read_text()
    pages = sorted(folder.glob("[0-9]*.md"))
    assert [page.name[:4] for page in pages] == [f"{number:04}" for number in range(1, len(pages) + 1)]
    for page in pages:
        text = page.read_text()
        assert text.startswith(f"# {page.name[:4]} ")
        assert re.findall(r"^## (\w+)", text, re.MULTILINE)[:1] == ["Context"]
        assert {"Context", "Decision", "Consequences"} <= set(re.findall(r"^## (\w+)", text, re.MULTILINE))
        assert page.name in index


def test_what_the_image_copies_exists_and_reaches_the_build():
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    sources = [
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", dockerfile, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert {"pyproject.toml", "requirements", "cmd", "internal", "pkg", "migrations"} <= set(sources)
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(sources) == let_through
    assert all((ROOT / source).exists() for source in sources)
    last_stage = dockerfile.rpartition("\nFROM ")[2]
    assert "USER 10001" in last_stage
    assert "pip" not in last_stage


@pytest.mark.parametrize(
    ("command", "port"),
    [("python dreamhub serve", 8000), ("python dreamhub models", 8010), ("python dreamhub work --queues batch", None)],
)
def test_the_image_is_healthy_where_it_listens(command: str, port: int | None):
    port_of = runpy.run_path(str(ROOT / "deploy" / "healthcheck.py"))["port_of"]
    assert port_of(command.split(), "http://0.0.0.0:8010", "") == port
