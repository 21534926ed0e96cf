"""What to search for when a question is asked in a conversation: by rules, or in a chat model's words."""

from collections.abc import Sequence
from typing import Literal, Protocol
from uuid import UUID

import msgspec

from internal.entities.conversations import Message, Usage
from internal.entities.search import SearchHit
from internal.providers.llm import Writer
from internal.services.orders import order, read
from internal.services.prompts import leans, said, standalone
from pkg import logger
from pkg.apperr import AppError
from pkg.ctxutil import Context

SECONDS = 6.0
"""Somebody waits for the answer: after so long the rules' words do."""
MOST_QUERIES = 2
LONGEST_QUERY = 500
TURNS = 6
LONGEST_TURN = 1000
RANK = 10
"""Of reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009, who take 60 for long runs)."""

RULES = """\
You prepare searches in a user's documents. You get the last turns of a conversation and the user's question. Don't \
answer it. Reply with a JSON object:
{"question": "the question as it would be asked without the conversation: names in place of pronouns, what was left \
out put in, in the language of the question, unchanged if it can be understood alone",
"queries": ["up to two other searches that could find the answer: other words for the same, or the parts of a \
question that asks for several things; [] if none helps"]}"""


class Rewritten(msgspec.Struct, frozen=True, kw_only=True):
    """What is searched for: the whole question, and others to the same end. `usage` of `model`, where one was asked."""

    question: str
    queries: tuple[str, ...] = ()
    usage: Usage | None = None
    model: str = ""


class Rewriter(Protocol):
    """A strategy of what is searched for."""

    async def rewrite(self, ctx: Context, question: str, history: Sequence[Message]) -> Rewritten:
        """`history` are the turns before the question, oldest first. It never fails for want of a model."""
        ...


class RuleRewriter:
    """A question that leans on the one before it is searched together with that one."""

    async def rewrite(self, ctx: Context, question: str, history: Sequence[Message]) -> Rewritten:
        """At once."""
        return Rewritten(question=standalone(question, history))


class _Words(msgspec.Struct, frozen=True):
    question: str
    queries: list[str] = []


class ModelRewriter:
    """Asks a chat model; what it says is a search of the user's own documents and nothing else."""

    def __init__(self, model: Writer, when: Literal["follow-ups", "always"]) -> None:
        self._model = model
        self._when = when
        self._log = logger.get("chat")

    async def rewrite(self, ctx: Context, question: str, history: Sequence[Message]) -> Rewritten:
        """By the rules where the model isn't asked, is away, or says what can't be read."""
        plain = Rewritten(question=standalone(question, history))
        if self._when != "always" and not (history and leans(question)):
            return plain
        turns = [f"{turn.role}: {' '.join(said(turn).split())[:LONGEST_TURN]}" for turn in history[-TURNS:]]
        messages = order(RULES, [("conversation", "\n".join(turns) or "(none)"), ("question", question)])
        try:
            answer, usage = await self._model.complete(ctx, messages, seconds=SECONDS)
        except AppError as error:
            self._log.warning("question not rewritten", model=self._model.name, code=error.code.value)
            return plain
        words = read(answer, _Words)
        wanted = _bare(words.question) if words else ""
        if words is None or not wanted:
            self._log.warning("question not rewritten", model=self._model.name, code="unreadable")
            return msgspec.structs.replace(plain, usage=usage, model=self._model.name)
        others = dict.fromkeys(query for query in map(_bare, words.queries) if query and query != wanted)
        return Rewritten(question=wanted, queries=tuple(others)[:MOST_QUERIES], usage=usage, model=self._model.name)


def fused(found: Sequence[Sequence[SearchHit]]) -> list[SearchHit]:
    """The hits of several searches to one end, best first, by the sum of their reciprocal ranks."""
    if len(found) == 1:
        return list(found[0])
    shares: dict[UUID, float] = {}
    hits: dict[UUID, SearchHit] = {}
    for some in found:
        for rank, hit in enumerate(some, 1):
            hits.setdefault(hit.chunk_id, hit)
            shares[hit.chunk_id] = shares.get(hit.chunk_id, 0.0) + 1 / (RANK + rank)
    return sorted(hits.values(), key=lambda hit: -shares[hit.chunk_id])


def _bare(text: str) -> str:
    """One line that a search takes."""
    return " ".join(text.replace("\0", " ").encode(errors="ignore").decode().split())[:LONGEST_QUERY]
