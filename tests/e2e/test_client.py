"""The terminal's commands against the running product."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.product import CHECKOUT, Product

SECONDS = 120


class Terminal:
    """Runs commands as a person would who stands beside `up`, with a memory of uploads of their own."""

    def __init__(self, product: Product, folder: Path, key: str) -> None:
        self._home = product.home
        self._environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(folder),
            "LC_ALL": "C.UTF-8",
            "PYTHONPATH": f"{CHECKOUT / 'cmd'}:{CHECKOUT}",
            "DREAMHUB_URL": product.up["url"],
            "DREAMHUB_API_KEY": key,
        }

    def run(self, *arguments: str, code: int = 0, stdin: str = "") -> str:
        """What the command prints."""
        done = subprocess.run(
            [sys.executable, "-m", "dreamhub", *arguments],
            env=self._environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two documents, a program, a damaged file, and a hidden one."""
    root = tmp_path_factory.mktemp("documents")
    (root / "x200.md").write_text("# X200\n\n## Battery\n\nThe battery of the X200 lasts nine hours on one charge.\n")
    (root / "保修.txt").write_text("保修期为两年，自购买之日起计算。人为损坏不在保修范围之内。\n")
    (root / "setup.exe").write_bytes(b"MZ\x90\x00\x03" + bytes(200))
    (root / "damaged.pdf").write_bytes(b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n")
    (root / ".hidden.txt").write_text("never uploaded")
    return root


@pytest.fixture(scope="module")
def terminal(product: Product, tmp_path_factory: pytest.TempPathFactory) -> Terminal:
    return Terminal(product, tmp_path_factory.mktemp("person"), product.new_tenant("terminal")["api_key"])


@pytest.fixture(scope="module")
def ingested(terminal: Terminal, folder: Path) -> str:
    return terminal.run("ingest", str(folder), code=1)


def test_ingest_ends_with_what_became_of_each_file(ingested: str, folder: Path):
    assert "succeeded      2" in ingested
    assert "skipped        1  (1 not a kind of file that is read)" in ingested
    assert "failed         1" in ingested
    last = ingested.strip().splitlines()[-1]
    assert last.startswith(f"failed     {folder / 'damaged.pdf'}: ")
    assert len(last.partition(".pdf: ")[2]) > 10
    assert ".hidden" not in ingested


def test_a_second_run_sends_nothing_again(ingested: str, terminal: Terminal, folder: Path):
    (folder / "damaged.pdf").unlink()
    shown = terminal.run("ingest", str(folder))
    assert "succeeded      0" in shown
    assert "2 already there" in shown


def test_the_server_knows_a_file_that_this_person_forgot(
    ingested: str, terminal: Terminal, product: Product, folder, tmp_path
):
    key = terminal._environment["DREAMHUB_API_KEY"]
    shown = Terminal(product, tmp_path, key).run("ingest", str(folder / "x200.md"))
    assert "skipped        1  (1 already there)" in shown


@pytest.mark.parametrize(
    ("query", "file", "text"),
    [
        ("how long does the battery last", "x200.md", "nine hours"),
        ("保修期", "保修.txt", "两年"),
    ],
)
def test_search_prints_the_passage_first(ingested: str, terminal: Terminal, query: str, file: str, text: str):
    first = terminal.run("search", query).split("\n\n")[0]
    assert first.startswith(f"1. {file}")
    assert text in first


def test_chat_answers_with_citations(ingested: str, terminal: Terminal):
    shown = terminal.run("chat", stdin="How long does the battery of the X200 last?\n")
    assert "nine hours" in shown
    assert "[1] x200.md" in shown


def test_a_new_tenant_sees_nothing_of_it(ingested: str, terminal: Terminal, product: Product, tmp_path: Path):
    key = product.new_tenant("elsewhere")["api_key"]
    assert Terminal(product, tmp_path, key).run("search", "battery") == "Nothing was found.\n"
