"""Small files, made from a seed, of which it is known what must become of each."""

import hashlib
import io
import random
from pathlib import Path

import msgspec

from internal.parsers.media_types import PLAIN
from internal.parsers.read import read
from internal.providers.embeddings import estimate_tokens
from internal.services import chunking
from pkg.apperr import Code
from tests.chaos.history import Wanted
from tests.scanner import SIGNATURE

WORDS = (
    "harbour lantern copper meadow winter letter bridge garden silver engine market window candle river paper"
    " station coffee orchard violin compass anchor blanket corner dinner evening feather glacier hammer island"
).split()
SENTENCE_WORDS = 14
SENTENCES_A_CHUNK = 14
BROKEN = b"%PDF-1.4\nno object, no table, no end\n"


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A file that some tenants upload. `mark` is a word of each of its passages and of no other file's."""

    name: str
    data: bytes
    tenants: tuple[int, ...]
    mark: str
    texts: list[str] = []
    refused: str = ""
    failed: str = ""

    def wanted(self, tenant: str) -> Wanted:
        """What must become of it."""
        sha = hashlib.sha256(self.data).hexdigest()
        return Wanted(
            tenant=tenant, file=self.name, sha256=sha, refused=self.refused, failed=self.failed, texts=self.texts
        )


def make(seed: int, count: int) -> list[File]:
    """`count` files: most of them texts of one to three batches, some in both tenants, a few that must be refused."""
    draw = random.Random(f"{seed}/corpus")
    files: list[File] = []
    for number in range(count):
        mark = f"zq{seed % 1000}x{number}"
        both = (0, 1) if draw.random() < 0.15 else (draw.randrange(2),)
        kind = draw.random()
        if number == 1:
            files.append(
                File(name="infected.txt", data=SIGNATURE, tenants=both, mark=mark, refused=Code.FILE_INFECTED.value)
            )
        elif kind < 0.04:
            data = BROKEN + mark.encode()
            files.append(
                File(name=f"{mark}.pdf", data=data, tenants=both, mark=mark, failed=Code.FILE_UNREADABLE.value)
            )
        else:
            chunks = draw.choice((1, 1, 1, 2, 2, 3, 4, 6, 9))
            data = _text(draw, mark, chunks * SENTENCES_A_CHUNK).encode()
            files.append(File(name=f"{mark}.txt", data=data, tenants=both, mark=mark, texts=_texts(data)))
    return files


def successor(seed: int, file: File, tenant: int) -> File:
    """The version that a tenant replaces `file` by: another text, under another mark."""
    mark = f"{file.mark}v{tenant}"
    draw = random.Random(f"{seed}/{mark}")
    data = _text(draw, mark, draw.choice((1, 2, 4)) * SENTENCES_A_CHUNK).encode()
    return File(name=f"{mark}.txt", data=data, tenants=(tenant,), mark=mark, texts=_texts(data))


def digest(text: str) -> str:
    """How a text is named in a history."""
    return hashlib.sha256(text.encode()).hexdigest()


def _text(draw: random.Random, mark: str, sentences: int) -> str:
    lines: list[str] = []
    for number in range(sentences):
        words = [draw.choice(WORDS) for _ in range(SENTENCE_WORDS)]
        lines.append(f"The {mark} number {number} is {' '.join(words)}.")
    return "\n\n".join(" ".join(lines[start : start + 4]) for start in range(0, sentences, 4)) + "\n"


def _texts(data: bytes) -> list[str]:
    """Digests of the texts that the product will embed, found by its own pure parts."""
    parsed = read(io.BytesIO(data), media_type=PLAIN, workdir=Path(), max_bytes=1 << 20, megapixels=1)
    units = chunking.units(parsed)
    pieces = chunking.assemble(
        units, [estimate_tokens(unit.text) for unit in units], title=parsed.metadata.get("title")
    )
    return [digest(chunking.embedding_text(piece)) for piece in pieces]
