"""How much goes into one request for embeddings, and what an endpoint says when it was too much."""

import re
from collections.abc import Sequence
from typing import Literal

import openai

WIDE = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]")

Excess = Literal["texts", "tokens"]
"""What there were too many of."""

TOO_MANY_TEXTS = re.compile(
    r"batch size is invalid, it should not be larger than \d+"  # DashScope: langchain4j issue 1140
    r"|batch size \d+ > maximum allowed batch size \d+"  # TEI, SiliconFlow: coze-studio issue 455
    r"|too many inputs(?: for model \S{1,100})?\. the max number of inputs is \d+"  # Azure: semantic-kernel issue 2099
    r"|too many inputs in request, split into more batches",  # Mistral: edgequake-llm pull request 74
    re.IGNORECASE,
)
TOO_MANY_TOKENS = re.compile(
    r"requested \d+ tokens, max \d+ tokens per request"  # OpenAI: gpt-researcher issue 1500
    r"|too many tokens in batch\. max is \d+ got \d+"  # Mistral: semantic-router issue 297
    r"|too many tokens overall, split into more batches"  # Mistral: chroma pull request 5597
    r"|maximum context length is \d+ tokens",  # OpenAI, vLLM: openai-python's error `context_length_exceeded`
    re.IGNORECASE,
)
TOKEN_CODES = frozenset({"max_tokens_per_request", "context_length_exceeded"})


class TooBigError(Exception):
    """An endpoint would take fewer texts at a time."""

    def __init__(self, excess: Excess) -> None:
        super().__init__(f"too many {excess} in a request")
        self.excess: Excess = excess


def excess_of(error: openai.APIStatusError) -> Excess | None:
    """What a refusal says there was too much of in the whole request; None where it is about anything else."""
    if error.status_code not in (400, 413, 422):
        return None
    body = error.body
    message = body.get("message") if isinstance(body, dict) else None
    said = message if isinstance(message, str) else ""
    if TOO_MANY_TEXTS.search(said):
        return "texts"
    if error.status_code == 413 or error.code in TOKEN_CODES or error.type in TOKEN_CODES:
        return "tokens"
    return "tokens" if TOO_MANY_TOKENS.search(said) else None


class BatchSize:
    """The largest request: what the settings say, or the less that an endpoint was found to take in this process."""

    def __init__(self, *, texts: int, tokens: int) -> None:
        self.texts = texts
        self.tokens = tokens

    def split(self, texts: Sequence[str]) -> list[list[str]]:
        """Texts in order, in batches of at most so many texts and about so many tokens.

        A text of more tokens is a batch of its own.
        """
        made: list[list[str]] = []
        room = 0
        for text in texts:
            cost = estimate_tokens(text)
            if not made or len(made[-1]) == self.texts or cost > room:
                made.append([])
                room = self.tokens
            made[-1].append(text)
            room -= cost
        return made

    def learn(self, excess: Excess, *taken: Sequence[str]) -> None:
        """A request was too big; its parts, `taken`, weren't."""
        if excess == "texts":
            self.texts = max(1, min(self.texts, max(map(len, taken))))
        else:
            self.tokens = max(1, min(self.tokens, max(map(tokens_of, taken))))


def estimate_tokens(text: str) -> int:
    """Rather too many: one for each wide character, one for three others."""
    wide = len(WIDE.findall(text))
    return wide + -(-(len(text) - wide) // 3)


def tokens_of(texts: Sequence[str]) -> int:
    """Of all of them together, by the same estimate."""
    return sum(map(estimate_tokens, texts))
