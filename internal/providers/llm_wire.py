"""Reading what OpenAI-compatible endpoints really send, which differs from endpoint to endpoint."""

import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx2
import msgspec
import openai

from internal.entities.conversations import Usage
from pkg import logger

WIDE = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]")
OPENING = "<think>"
CLOSING = "</think>"
LONGEST_REASON = 200
DONE = b"data: [DONE]"


class _Ending(httpx2.AsyncByteStream):
    """The same bytes. `done` once the line that ends a stream has come by."""

    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self.done = False
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        last = b""
        async for data in self._stream:
            last = last[-len(DONE) :] + data
            self.done = self.done or DONE in last
            yield data

    async def aclose(self) -> None:
        await self._stream.aclose()


async def watch_end(response: httpx2.Response) -> None:
    """A hook for responses: the client library hides the line, which alone ends the answers of some endpoints."""
    if isinstance(response.stream, httpx2.AsyncByteStream):
        response.stream = _Ending(response.stream)


def said_done(response: httpx2.Response) -> bool:
    """Whether a watched response has said that it is whole."""
    return isinstance(response.stream, _Ending) and response.stream.done


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a stream. `thinking` when it carries reasoning that isn't shown; `finish` ends the answer."""

    text: str = ""
    thinking: bool = False
    finish: str | None = None
    usage: Usage | None = None


def read_chunk(event: Any) -> Chunk:
    """Takes an event apart. Raises ValueError for one that isn't a completion's.

    The client library doesn't validate. Seen in the wild: no choices (usage, or Azure's filter results), a delta with
    only a role, null content, reasoning in `reasoning_content` or `reasoning`.
    """
    choices = getattr(event, "choices", None)
    usage = read_usage(getattr(event, "usage", None))
    if not choices:
        if choices is None and usage is None:
            raise ValueError("an event without choices")
        return Chunk(usage=usage)
    choice = choices[0]
    delta = getattr(choice, "delta", None)
    text = getattr(delta, "content", None)
    thought = getattr(delta, "reasoning_content", None) or getattr(delta, "reasoning", None)
    finish = getattr(choice, "finish_reason", None)
    return Chunk(
        text=text if isinstance(text, str) else "",
        thinking=bool(thought),
        finish=finish if isinstance(finish, str) else None,
        usage=usage,
    )


def read_usage(usage: Any) -> Usage | None:
    """Tokens as the endpoint counted them, or None where it didn't."""
    prompt = getattr(usage, "prompt_tokens", None)
    completion = getattr(usage, "completion_tokens", None)
    if not isinstance(prompt, int) or not isinstance(completion, int):
        return None
    return Usage(prompt_tokens=max(0, prompt), completion_tokens=max(0, completion))


def estimate_tokens(text: str) -> int:
    """About how many tokens a text has: a wide character is near one, four others make one."""
    wide = len(WIDE.findall(text))
    return wide + (len(text) - wide + 3) // 4


def refusal_of(error: object, model: str, secrets: Sequence[str]) -> str:
    """What to tell a user of a request that the endpoint won't serve; no key in it."""
    if isinstance(error, openai.NotFoundError):
        return f"The endpoint has no model {model!r}; the operator should check AI__CHAT_MODEL and AI__BASE_URL."
    body = getattr(error, "body", None)
    reason = body.get("message") if isinstance(body, dict) else None
    text = logger.redact(reason) if isinstance(reason, str) else ""
    for secret in secrets:
        text = text.replace(secret, logger.BLOT)
    return f"The chat model refused the request: {' '.join(text.split())[:LONGEST_REASON] or 'it gave no reason'}"


class Thoughts:
    """Drops `<think>…</think>` from the start of an answer, where some servers leave a model's reasoning."""

    def __init__(self) -> None:
        self._held = ""
        self._state = "start"

    def feed(self, text: str) -> str:
        """What of the text so far may be shown."""
        if self._state == "answer":
            return text
        self._held += text
        if self._state == "start":
            self._state = _after_start(self._held)
        if self._state == "thinking":
            _, closed, answer = self._held.partition(CLOSING)
            self._held = answer.lstrip() if closed else self._held[-len(CLOSING) :]
            if not closed:
                return ""
            self._state = "answer"
        if self._state == "answer":
            shown, self._held = self._held, ""
            return shown
        return ""

    def finish(self) -> str:
        """What was held back, unless it is a thought without an end."""
        return "" if self._state == "thinking" else self._held


def _after_start(held: str) -> str:
    head = held.lstrip()
    if head.startswith(OPENING):
        return "thinking"
    return "start" if OPENING.startswith(head) else "answer"
