"""A conversation in the terminal: answers as they are written, their citations beneath."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TypeVar

import msgspec
from rich.console import Console
from rich.text import Text

from dreamhub.client.answers import Citation, Delta, Identified, Message, MessagePage, Problem, citations_of
from dreamhub.client.api import Api
from dreamhub.client.errors import ApiError, ClientError, LostError
from dreamhub.client.printable import one_line, printable
from dreamhub.client.sse import Event

T = TypeVar("T")

QUOTE_SHOWN = 160
HISTORY_PAGE = 50
HELP = (
    "/picture FILE goes with the next question · /new starts over · /history shows this conversation · /quit ends · "
    "Ctrl-C stops an answer"
)
PRIVATE = {"visibility": "private", "priority": "high"}
"""For a picture that somebody wants to ask about at once, and for nobody else."""


class Chat:
    """One conversation at a time; it is made with the first question."""

    def __init__(self, api: Api, console: Console, conversation: str = "") -> None:
        self._api = api
        self._console = console
        self.conversation = conversation
        self._pictures: list[str] = []

    async def attach(self, path: Path) -> None:
        """Uploads a picture that the next question is asked with. Raises ClientError where it isn't taken."""
        uploaded = await self._api.upload(path, PRIVATE, lambda _: None)
        self._pictures.append(uploaded.document_id)

    async def ask(self, question: str) -> None:
        """Prints the answer as it comes. Cancelling it closes the stream, which stops the model too.

        Raises ClientError for a refusal or a stream that broke off.
        """
        if not self.conversation:
            self.conversation = (await self._api.post("/conversations", {}, Identified)).id
        body: dict[str, object] = {"content": question, "stream": True}
        if self._pictures:
            body["attachment_ids"], self._pictures = self._pictures, []
        written, citations, done = False, list[Citation](), False
        async with aclosing(self._api.stream(f"/conversations/{self.conversation}/messages", body)) as stream:
            try:
                async for event in stream:
                    match event.kind:
                        case "delta":
                            self._write(_read(event, Delta).text)
                            written = True
                        case "citations":
                            citations = citations_of(msgspec.json.decode(event.data))
                        case "done":
                            message = _read(event, Message)
                            citations = message.citations or citations
                            if not written:
                                self._write(message.content)
                            written = done = True
                        case "error":
                            problem = _read(event, Problem)
                            raise ApiError(problem.status, problem.code, one_line(problem.words))
                        case _:
                            pass
            finally:
                if written:
                    self._console.print()
        if not done:
            raise LostError("the answer broke off before its end")
        show_citations(self._console, citations)

    async def history(self) -> None:
        """Prints the turns of the conversation so far."""
        if not self.conversation:
            return
        path = f"/conversations/{self.conversation}/messages"
        query: dict[str, str | int] = {"limit": HISTORY_PAGE}
        while True:
            page = await self._api.get(path, MessagePage, query)
            for message in page.items:
                mark = "> " if message.role == "user" else ""
                self._console.print(Text(mark + printable(message.content)), soft_wrap=True)
                show_citations(self._console, message.citations)
            if not page.next_cursor:
                return
            query["cursor"] = page.next_cursor

    def _write(self, text: str) -> None:
        self._console.print(Text(printable(text)), end="", soft_wrap=True)
        self._console.file.flush()


def talk(runner: asyncio.Runner, chat: Chat, console: Console, *, prompt: bool) -> int:
    """Reads questions until the input ends or `/quit`. Answers the exit code: 1 when any question failed."""
    failed = False
    if prompt:
        console.print(Text(HELP, style="dim"))
    while True:
        try:
            line = input("> " if prompt else "").strip()
        except EOFError:
            break
        except KeyboardInterrupt:
            console.print()
            if prompt:
                continue
            break
        if line == "/quit":
            break
        try:
            _obey(runner, chat, console, line)
        except KeyboardInterrupt:
            console.print(Text("(stopped)", style="dim"))
        except ClientError as error:
            failed = True
            console.print(Text(f"dreamhub: {error}", style="red"), soft_wrap=True)
    return int(failed and not prompt)


def show_citations(console: Console, citations: Sequence[Citation]) -> None:
    """One line for each: number, file, place, and the beginning of the quote."""
    for citation in citations:
        place = one_line(str(citation.location))
        quote = one_line(citation.quote)
        quote = quote if len(quote) <= QUOTE_SHOWN else f"{quote[: QUOTE_SHOWN - 1]}…"
        line = Text(f"[{citation.index}] ", style="cyan").append(one_line(citation.filename), style="bold")
        line.append(f", {place}" if place else "").append(f": “{quote}”" if quote else "", style="dim")
        console.print(line, soft_wrap=True)
    if citations:
        console.print()


def _obey(runner: asyncio.Runner, chat: Chat, console: Console, line: str) -> None:
    match line:
        case "":
            return
        case "/new":
            chat.conversation = ""
            console.print(Text("A new conversation.", style="dim"))
        case "/history":
            runner.run(chat.history())
        case "/help":
            console.print(Text(HELP, style="dim"))
        case _ if line.startswith("/picture "):
            runner.run(chat.attach(Path(line.removeprefix("/picture ").strip()).expanduser()))
            console.print(Text("It goes with the next question.", style="dim"))
        case _ if line.startswith("/"):
            console.print(Text(f"{one_line(line)} is not a command. {HELP}", style="dim"))
        case _:
            runner.run(chat.ask(line))


def _read(event: Event, want: type[T]) -> T:
    try:
        return msgspec.json.decode(event.data, type=want)
    except msgspec.DecodeError:
        raise LostError("the answer came in a form that this version doesn't know") from None
