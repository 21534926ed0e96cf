"""The commands for people: they talk to the API of a running DreamHub and to nothing else.

Each answers an exit code: 0, 1 when anything failed, 130 when Ctrl-C ended it.
"""

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path

import typer
from rich.console import Console

from dreamhub.client import connection
from dreamhub.client.answers import Hits, Me, NewTenant
from dreamhub.client.api import Api
from dreamhub.client.chat import Chat, talk
from dreamhub.client.connection import Connection
from dreamhub.client.errors import ClientError
from dreamhub.client.ingest import Ingest, Options
from dreamhub.client.passages import show_hits
from dreamhub.client.printable import one_line
from dreamhub.client.progress import Bars, Ending, Lines, bars, say, summarise
from dreamhub.client.uploads import Uploads

FAILED, INTERRUPTED = 1, 130


def ingest(
    paths: Sequence[Path],
    watch: bool = False,
    *,
    url: str = "",
    api_key: str = "",
    home: Path | None = None,
    collection: str = "",
    tags: Sequence[str] = (),
    visibility: str = "tenant",
    workers: int = 3,
) -> int:
    """Uploads files and folders, and waits until they can be found; `workers` files are sent at a time."""
    options = Options(collection=collection, tags=tags, visibility=visibility, workers=workers)
    return _told(lambda: asyncio.run(_ingest(connection.as_tenant(url, api_key, home), paths, options, watch=watch)))


def search(
    query: str,
    k: int = 10,
    mode: str = "hybrid",
    *,
    url: str = "",
    api_key: str = "",
    home: Path | None = None,
    collections: Sequence[str] = (),
    tags: Sequence[str] = (),
) -> int:
    """Prints the `k` best passages; `mode` is hybrid, vector or keyword."""
    filters = {name: list(value) for name, value in (("collections", collections), ("tags", tags)) if value}
    body = {"query": query, "k": k, "mode": mode, "filters": filters}
    return _told(lambda: asyncio.run(_search(connection.as_tenant(url, api_key, home), query, body)))


def chat(
    question: str = "",
    conversation: str = "",
    *,
    pictures: Sequence[Path] = (),
    url: str = "",
    api_key: str = "",
    home: Path | None = None,
) -> int:
    """Answers one question, or those of the terminal or of standard input until it ends; the first is about
    `pictures`."""
    return _told(lambda: _chat(connection.as_tenant(url, api_key, home), question, conversation, pictures))


def tenant_create(name: str, owner_email: str, *, url: str = "", home: Path | None = None) -> int:
    """Makes a tenant and prints its API key, which is never shown again."""
    return _told(lambda: asyncio.run(_tenant_create(connection.as_platform(url, home), name, owner_email)))


async def _ingest(place: Connection, paths: Sequence[Path], options: Options, *, watch: bool) -> int:
    console = Console(highlight=False)
    progress = bars(console) if console.is_terminal else None
    if progress is not None:
        progress.start()
    reporter = Lines(console) if progress is None else Bars(progress)
    try:
        async with Api(place, lambda seconds, why: reporter.note(f"{why}; again in {seconds:.0f} s")) as api:
            me = await api.get("/me", Me)
            uploads = Uploads(Path(typer.get_app_dir("dreamhub")) / "uploads.sqlite", place.url, me.tenant.id)
            work = Ingest(api, uploads, reporter, options)
            try:
                code = await _until_interrupted(work, paths, watch=watch)
            finally:
                uploads.close()
    finally:
        if progress is not None:
            progress.stop()
    summarise(console, work.outcomes)
    if code == INTERRUPTED and not watch:
        say(console, "Interrupted; the same command goes on where it stopped.")
    failed = any(outcome.ending is Ending.FAILED for outcome in work.outcomes)
    return FAILED if failed else code


async def _until_interrupted(work: Ingest, paths: Sequence[Path], *, watch: bool) -> int:
    """Ctrl-C cancels this task; what was done until then is told all the same. It ends a watch in good order."""
    try:
        await work.run(paths, watch=watch)
    except asyncio.CancelledError:
        return 0 if watch else INTERRUPTED
    return 0


async def _search(place: Connection, query: str, body: Mapping[str, object]) -> int:
    console = Console(highlight=False)
    async with Api(place, _say_pause) as api:
        found = await api.post("/search", body, Hits, patient=True)
    if not found.items:
        say(console, "Nothing was found.")
    show_hits(console, query, found.items)
    return 0


def _chat(place: Connection, question: str, conversation: str, pictures: Sequence[Path]) -> int:
    console = Console(highlight=False)
    with asyncio.Runner() as runner:
        api = Api(place, _say_pause)
        try:
            runner.run(api.get("/me", Me))
            talker = Chat(api, console, conversation)
            for picture in pictures:
                runner.run(talker.attach(picture))
            if question:
                runner.run(talker.ask(question))
                return 0
            prompt = sys.stdin.isatty()
            if prompt:
                import_module("readline")  # gives input() a line editor and a history
            return talk(runner, talker, console, prompt=prompt)
        finally:
            runner.run(api.close())


async def _tenant_create(place: Connection, name: str, owner_email: str) -> int:
    console = Console(highlight=False)
    async with Api(place, _say_pause) as api:
        made = await api.post("/tenants", {"name": name, "owner_email": owner_email}, NewTenant)
    say(console, f"tenant    {made.id}\nname      {one_line(made.name)}\nAPI key   {made.api_key}")
    if made.owner.password:
        say(console, f"owner     {one_line(made.owner.email)}\npassword  {made.owner.password}")
    print("Keep this: it is not shown again.", file=sys.stderr)
    return 0


def _say_pause(seconds: float, why: str) -> None:
    print(f"dreamhub: {why}; again in {seconds:.0f} s", file=sys.stderr)


def _told(command: Callable[[], int]) -> int:
    """Turns what can go wrong into one line on standard error."""
    try:
        return command()
    except ClientError as error:
        print(f"dreamhub: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
