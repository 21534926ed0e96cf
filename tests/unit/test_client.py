"""The commands for people, over a real socket."""

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from dreamhub import client_commands
from tests.fakes.api_server import KEY, PLATFORM, FakeApi, running_api

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[FakeApi]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("DREAMHUB_URL", raising=False)
    monkeypatch.delenv("DREAMHUB_API_KEY", raising=False)
    with running_api() as server:
        yield server


@pytest.fixture
def home(api: FakeApi, tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    up = {"url": api.url, "api_key": KEY, "platform_token": PLATFORM, "tenant": {"id": "t1"}, "processes": {}}
    (folder / "up.json").write_text(json.dumps(up))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files that are read, a program, a broken one, and hidden ones."""
    root = tmp_path / "files"
    (root / "deep" / ".git").mkdir(parents=True)
    (root / "a.txt").write_text("alpha")
    (root / "deep" / "报告.txt").write_text("beta")
    (root / "setup.exe").write_bytes(b"MZ\x90")
    (root / "bad.pdf").write_text("broken pdf")
    (root / ".hidden").write_text("no")
    (root / "deep" / ".git" / "config").write_text("no")
    return root


def test_ingest_tells_what_succeeded_was_skipped_and_failed(
    api: FakeApi, home: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = client_commands.ingest([folder], home=home, collection="reports", tags=["x", "y"], visibility="private")

    shown = capsys.readouterr().out
    assert code == 1
    assert sorted(document["filename"] for document in api.documents.values()) == ["a.txt", "bad.pdf", "报告.txt"]
    assert "succeeded      2" in shown
    assert "skipped        1  (1 not a kind of file that is read)" in shown
    assert "failed         1" in shown
    assert "bad.pdf: The file is damaged; save it again." in shown
    assert "\x1b" not in shown, "no colours without a terminal"
    form = api.forms[0]
    assert form["collection"] == ["reports"]
    assert form["visibility"] == ["private"]
    assert form["tags"] == ["x,y"]


def test_a_second_run_sends_only_what_the_server_lacks(api: FakeApi, home: Path, folder: Path) -> None:
    (folder / "bad.pdf").unlink()
    (folder / "setup.exe").unlink()
    (folder / "c.txt").write_text("gamma")
    assert client_commands.ingest([folder], home=home) == 0
    assert client_commands.ingest([folder], home=home) == 0
    assert len(api.forms) == 3, "the second run sent nothing"

    gone = next(key for key, document in api.documents.items() if document["filename"] == "a.txt")
    del api.documents[gone]
    (folder / "deep" / "报告.txt").write_text("beta, changed")
    assert client_commands.ingest([folder], home=home) == 0
    assert sorted(form["name"][0] for form in api.forms[3:]) == ["a.txt", "报告.txt"]


def test_what_another_machine_uploaded_is_skipped_by_the_servers_word(
    api: FakeApi, home: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert client_commands.ingest([folder / "a.txt"], home=home) == 0
    (folder / "copy.txt").write_text("alpha")
    assert client_commands.ingest([folder / "copy.txt"], home=home) == 0
    assert "skipped        1  (1 already there)" in capsys.readouterr().out


def test_a_file_named_itself_fails_where_one_of_a_folder_is_passed_over(
    api: FakeApi, home: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert client_commands.ingest([folder / "setup.exe"], home=home) == 1
    assert "Programs are not taken." in capsys.readouterr().out


def test_several_files_are_sent_at_once_and_no_more_than_asked(api: FakeApi, home: Path, tmp_path: Path) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for number in range(12):
        (many / f"{number}.txt").write_text(f"text {number}")
    assert client_commands.ingest([many], home=home, workers=4) == 0
    assert 2 <= api.most_at_once <= 4
    assert len(api.documents) == 12
    by_id = sum(count for route, count in api.calls.items() if route.startswith("GET /api/v1/tasks/"))
    assert by_id < 12, "many tasks are asked for by the page"


def test_waits_as_long_as_the_server_asks(
    api: FakeApi, home: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.faults["POST /api/v1/documents"] = [(429, {"Retry-After": "0.3"}), (503, {"Retry-After": "0.2"})]
    began = time.monotonic()
    assert client_commands.ingest([folder / "a.txt"], home=home) == 0
    assert time.monotonic() - began >= 0.5
    assert "Come back later.; again in" in capsys.readouterr().out


def test_an_unreadable_file_fails_alone(api: FakeApi, home: Path, folder: Path) -> None:
    (folder / "bad.pdf").unlink()
    (folder / "loop").symlink_to(folder)
    (folder / "nowhere.txt").symlink_to(folder / "missing")
    assert client_commands.ingest([folder], home=home) == 0
    assert len(api.documents) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "no DreamHub is running in"),
        ({"url": "http://127.0.0.1:9"}, "no API key for http://127.0.0.1:9"),
        ({"url": "nonsense", "api_key": "k"}, "is not an address"),
        ({"url": "http://127.0.0.1:9", "api_key": "k"}, "can't be reached"),
    ],
)
def test_one_line_says_what_is_missing(
    arguments: dict[str, str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert client_commands.search("x", home=tmp_path, **arguments) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_local_key_never_goes_to_another_server(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running_api() as stranger:
        assert client_commands.search("x", home=home, url=stranger.url) == 1
        assert not stranger.calls
    assert "no API key" in capsys.readouterr().err


def test_a_refused_key_is_one_line(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    assert client_commands.search("x", url=api.url, api_key="wrong") == 1
    assert capsys.readouterr().err == "dreamhub: This key is not valid.\n"


def test_search_prints_passages_that_cannot_drive_the_terminal(
    api: FakeApi, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.hits = [
        {
            "chunk_id": "1",
            "document_id": "2",
            "filename": "evil\x1b[2J[bold]\u202e.txt",
            "source_type": "document",
            "text": "Battery \x1b]0;owned\x07 safety\n[link=x]rules[/link]",
            "score": 1.0,
            "location": {"page": 3, "heading": "Safety", "box": [0, 0, 1, 1]},
        },
        {
            "chunk_id": "3",
            "document_id": "4",
            "filename": "talk.mp3",
            "source_type": "audio",
            "text": "电池安全",
            "score": 0.5,
            "location": {"start_ms": 61_000, "end_ms": 3_723_000},
        },
    ]
    assert client_commands.search("battery", k=5, mode="keyword", collections=["reports"], home=home) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert r"1. evil\x1b[2J[bold]\u202e.txt  page 3 · Safety" in shown
    assert r"Battery \x1b]0;owned\x07 safety [link=x]rules[/link]" in shown
    assert "2. talk.mp3  01:01–1:02:03\n电池安全" in shown
    assert api.bodies == [{"query": "battery", "k": 5, "mode": "keyword", "filters": {"collections": ["reports"]}}]


def test_tenant_create_uses_the_platform_token(
    api: FakeApi, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert client_commands.tenant_create("Acme", "a@example.com", home=home) == 0
    shown = capsys.readouterr().out
    assert "API key   dh_new" in shown
    assert "password  made up" in shown
    monkeypatch.setenv("AUTH__PLATFORM_TOKEN", PLATFORM)
    assert client_commands.tenant_create("Acme", "a@example.com", url=api.url, home=tmp_path) == 0


CITATION = {
    "index": 1,
    "chunk_id": "1",
    "document_id": "2",
    "filename": "guide.pdf",
    "quote": "Charge it\nfully.",
    "location": {"page": 2},
}
DONE = {"id": "m1", "role": "assistant", "content": "Charge it. [1]", "citations": [CITATION], "model": "built-in"}


def test_one_question_prints_answer_and_citations(api: FakeApi, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    api.answer = [("delta", {"text": "Charge "}), ("delta", {"text": "it. [1]"}), ("citations", [CITATION])]
    api.answer.append(("done", DONE))
    assert client_commands.chat("How do I charge it?", home=home) == 0
    assert capsys.readouterr().out == "Charge it. [1]\n[1] guide.pdf, page 2: “Charge it fully.”\n\n"
    assert api.bodies == [
        {"path": "/api/v1/conversations/c1/messages", "content": "How do I charge it?", "stream": True}
    ]


def test_pictures_go_with_the_next_question(
    api: FakeApi, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "a receipt.png"
    picture.write_bytes(b"pixels")
    api.answer = [("done", DONE)]
    assert client_commands.chat("What is it?", pictures=[picture], home=home) == 0
    (uploaded,) = api.documents.values()
    assert uploaded["filename"] == "a receipt.png"
    assert (api.forms[0]["visibility"], api.forms[0]["priority"]) == (["private"], ["high"])
    assert api.bodies[0]["attachment_ids"] == [uploaded["id"]]

    process = run_program(
        f"chat(home=Path({str(home)!r}))", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    shown, error = process.communicate(f"/picture {picture}\none\ntwo\n/picture nowhere.png\n", timeout=30)
    assert (process.returncode, error) == (1, "")
    assert "It goes with the next question." in shown
    assert "can't be read" in shown
    assert [body.get("attachment_ids") for body in api.bodies[1:]] == [[uploaded["id"]], None]

    picture.write_bytes(b"MZ")
    assert client_commands.chat("What is it?", pictures=[picture], home=home) == 1
    assert "Programs are not taken." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([("delta", {"text": "Half"})], "the answer broke off before its end"),
        (
            [("error", {"status": 503, "code": "model.unavailable", "detail": "The model is away."})],
            "The model is away.",
        ),
        ([("delta", {"unknown": 1})], "a form that this version doesn't know"),
    ],
)
def test_a_broken_answer_is_one_line_and_an_exit_code(
    answer: list[tuple[str, object]], words: str, api: FakeApi, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.answer = answer
    assert client_commands.chat("Well?", home=home) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def run_program(arguments: str, **options: object) -> subprocess.Popen[str]:
    """A client command in a process of its own, as a shell would start it."""
    code = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'cmd')!r}]\n"
    code += f"from pathlib import Path; from dreamhub import client_commands as c; sys.exit(c.{arguments})"
    return subprocess.Popen([sys.executable, "-c", code], text=True, **options)


def test_questions_from_a_pipe_share_one_conversation(api: FakeApi, home: Path) -> None:
    api.answer = [("done", DONE)]
    process = run_program(
        f"chat(home=Path({str(home)!r}))", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    shown, error = process.communicate("one\n\ntwo\n", timeout=30)
    assert (process.returncode, error) == (0, "")
    assert shown.count("Charge it. [1]\n") == 2
    assert api.calls["POST /api/v1/conversations"] == 1


def test_ctrl_c_stops_the_answer_and_the_talk_goes_on(api: FakeApi, home: Path) -> None:
    """Over a terminal, since only there is somebody to press it."""
    api.answer = [("delta", {"text": "A long answer"})]
    api.hang_after_answer.set()
    ours, theirs = pty.openpty()
    process = run_program(
        f"chat(home=Path({str(home)!r}))", stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    screen = Screen(ours)
    try:
        assert "/quit ends" in screen.until("> ")
        os.write(ours, b"Go on\n")
        screen.until("A long answer")
        process.send_signal(signal.SIGINT)
        screen.until("(stopped)")
        assert api.reader_left.wait(10), "the server is told that nobody reads any more"
        screen.until("> ")
        api.hang_after_answer.clear()
        api.answer = [("done", DONE)]
        os.write(ours, b"/new\nAgain\n/quit\n")
        screen.until("guide.pdf")
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_watch_takes_up_a_new_file_once_and_ends_in_good_order(api: FakeApi, home: Path, tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "first.txt").write_text("first")
    process = run_program(
        f"ingest([Path({str(inbox)!r})], True, home=Path({str(home)!r}))",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    guard = threading.Timer(60, process.kill)
    guard.start()
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("Watching"):
                (inbox / "second.txt").write_text("second")
            if "second.txt" in line:
                process.send_signal(signal.SIGINT)
                break
        rest = process.stdout.read()
        assert process.wait(10) == 0
    finally:
        guard.cancel()
        process.kill()
    assert "succeeded      2" in rest
    assert [form["name"][0] for form in api.forms] == ["first.txt", "second.txt"]


class Screen:
    """What a terminal shows, taken in pieces."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._unread = ""

    def until(self, words: str) -> str:
        """All that comes up to and with `words`."""
        while words not in self._unread:
            self._unread += os.read(self._descriptor, 4096).decode(errors="replace")
        seen, _, self._unread = self._unread.partition(words)
        return seen + words
