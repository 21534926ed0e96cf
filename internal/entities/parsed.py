"""What a parser read from a file: blocks of text with their places, and page images that still need OCR."""

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

BlockKind = Literal["heading", "paragraph", "list_item", "table_row", "code", "caption"]


Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


class Location(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Where a text stands in its source. `page` counts from 1; `heading` is a path "A > B"; times in milliseconds;
    `box` is (x0, y0, x1, y1) as shares of the page's width and height, origin at the top left."""

    page: int | None = None
    heading: str | None = None
    start_ms: int | None = None
    end_ms: int | None = None
    box: Box | None = None


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """What of a text stands at one place: from `start`, in characters, to where the next part starts."""

    start: int
    location: Location


class Block(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One structural piece of text. `level` is 1 to 6 for headings; `header` is the header line of a table row
    (None for the header row itself). `parts`, the first at 0, where not all of it stands at `location`."""

    kind: BlockKind
    text: str
    location: Location = Location()
    level: int = 0
    header: str | None = None
    parts: tuple[Part, ...] = ()


class PageImage(msgspec.Struct, frozen=True, kw_only=True):
    """A page or photo that needs OCR: an image file in the parser's work folder, size in pixels."""

    page: int
    path: str
    width: int
    height: int


class Parsed(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Everything read from one file, in reading order. `metadata` holds title, author, language, pages, …"""

    blocks: tuple[Block, ...] = ()
    page_images: tuple[PageImage, ...] = ()
    metadata: dict[str, str] = {}
    warnings: tuple[str, ...] = ()

    def with_pages(self, recognised: Mapping[int, Sequence[Block]]) -> "Parsed":
        """Puts the blocks that OCR read from page images at their places among the other pages."""
        merged: list[tuple[int, Block]] = []
        page = 0
        for block in self.blocks:
            page = max(page, block.location.page or page)
            merged.append((page, block))
        merged += [(number, block) for number, blocks in recognised.items() for block in blocks]
        merged.sort(key=lambda item: item[0])
        return msgspec.structs.replace(self, blocks=tuple(block for _, block in merged), page_images=())
