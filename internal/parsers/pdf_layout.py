"""Lines of PDF pages to headings, paragraphs and table rows."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from internal.parsers.clean import is_cjk, join_lines, one_line
from internal.parsers.outline import CELL, MAX_HEADING, SENTENCE_ENDS, Outline

HEADING_RATIO = 1.15  # larger than body text by this much
BOLD_LEVEL = 5
MARGIN = 0.09  # share of the page height where running heads and page numbers stand
_DIGITS = re.compile(r"\d+")
_ITEM = re.compile(
    r"(?:[•●○◦▪■□◆‣⁃]|[–—*-](?=\s)|\(?\d{1,2}[.)、](?!\d)|[(（][一二三四五六七八九十\da-z]{1,3}[)）])\s*\S"
)
_LEADERS = re.compile(r"(?: ?\.){5,}|(?: ?·){5,}")
_NUMBERING = re.compile(r"(?:(?:chapter|appendix|part|section)\s+)?[\dA-Z]{1,3}(?:\.\d{1,3})*\.?\s+", re.I)
_NUMBER = re.compile(r"[(\-–—$€£¥]*\d(?:[\d,.]*\d)?%?\)?$|[—–-]$")
_SIGNS = frozenset("$€£¥%)")


@dataclass(slots=True)
class Line:
    """One line of a page. Coordinates in points from the top left; `size` is the height of its letters;
    `fixed` tells a typewriter font, which means code."""

    text: str
    x0: float
    y0: float
    x1: float
    y1: float
    size: float
    bold: bool = False
    fixed: bool = False
    cells: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Page:
    """The lines of one page in content order. Width and height in points; places on a turned page aren't told."""

    number: int
    width: float
    height: float
    lines: list[Line]
    turned: bool = False


def write_pages(pages: Sequence[Page], contents: dict[int, dict[str, int]], outline: Outline) -> None:
    """Writes pages as blocks. `contents` is the bookmarks' level by page and squeezed title."""
    for page in pages:
        page.lines = _same_line(page.lines)
    furniture = _furniture(pages)
    _forget_common_bold(pages)
    # Bookmarks tell headings best, where their titles are found on the pages at all.
    found = sum(1 for page in pages for line in page.lines if _bookmark(line, contents.get(page.number, {})))
    levels = {} if found * 2 >= sum(len(titles) for titles in contents.values()) > 0 else _levels(pages)
    for page in pages:
        outline.page = page.number
        lines = [line for line in page.lines if _furniture_key(line, page) not in furniture]
        _write_page(page, lines, levels, contents.get(page.number, {}), outline)


def squeeze(text: str) -> str:
    """Letters and digits only, for comparing a bookmark with a line."""
    return "".join(char for char in text.lower() if char.isalnum())


def _forget_common_bold(pages: Sequence[Page]) -> None:
    """Where much of the text is bold, bold means nothing."""
    lines = [line for page in pages for line in page.lines]
    if sum(len(line.text) for line in lines if line.bold) > 0.2 * sum(len(line.text) for line in lines):
        for line in lines:
            line.bold = False


def _bookmark(line: Line, contents: dict[str, int]) -> int:
    """The level of the bookmark whose title this line is, with or without its number; 0 for other lines."""
    if not contents:
        return 0
    return contents.get(squeeze(line.text), 0) or contents.get(squeeze(_NUMBERING.sub("", line.text)), 0)


def _same_line(lines: list[Line]) -> list[Line]:
    """Joins pieces that stand on one baseline, left to right, as cells of one line."""
    joined: list[Line] = []
    for line in lines:
        last = joined[-1] if joined else None
        if last is not None and _beside(last, line):
            last.cells = [*(last.cells or [last.text]), line.text]
            near = line.x0 - last.x1 < 0.5 * last.size
            last.text = join_lines(last.text, line.text) if near else f"{last.text}  {line.text}"
            last.x1 = max(last.x1, line.x1)
            last.y0, last.y1 = min(last.y0, line.y0), max(last.y1, line.y1)
            last.size = max(last.size, line.size)
        else:
            joined.append(line)
    return joined


def _beside(first: Line, second: Line) -> bool:
    overlap = min(first.y1, second.y1) - max(first.y0, second.y0)
    return overlap > 0.6 * min(first.y1 - first.y0, second.y1 - second.y0) and second.x0 >= first.x1 - 1


def _furniture_key(line: Line, page: Page) -> tuple[str, int] | None:
    """A line in the margin without its numbers, by its place; None elsewhere."""
    if MARGIN * page.height < line.y0 and line.y1 < (1 - MARGIN) * page.height:
        return None
    return (_DIGITS.sub("#", squeeze(line.text)), 0 if line.y0 < page.height / 2 else 1)


def _furniture(pages: Sequence[Page]) -> set[tuple[str, int]]:
    """Running heads and page numbers: what stands in the margin of many pages."""
    if len(pages) < 4:
        return set()
    counts = Counter(key for page in pages for key in {_furniture_key(line, page) for line in page.lines} if key)
    return {key for key, count in counts.items() if count >= max(3, 0.25 * len(pages))}


def _levels(pages: Sequence[Page]) -> dict[float, int]:
    """Heading level by letter height, for heights clearly above that of most text."""
    weights: Counter[float] = Counter()
    for page in pages:
        for line in page.lines:
            weights[_round(line.size)] += len(line.text)
    if not weights:
        return {}
    body = weights.most_common(1)[0][0]
    total = sum(weights.values())
    sizes = [size for size, weight in weights.items() if size >= body * HEADING_RATIO and weight < 0.2 * total]
    return {size: min(rank, 4) for rank, size in enumerate(sorted(sizes, reverse=True), 1)}


def _round(size: float) -> float:
    return round(size * 2) / 2


def _write_page(
    page: Page,
    lines: list[Line],
    levels: dict[float, int],
    contents: dict[str, int],
    outline: Outline,
) -> None:
    """Groups lines into paragraphs and writes them."""
    leading = _leading(lines)
    group: list[Line] = []
    group_level = 0
    jumped = True
    for line in lines:
        level = _bookmark(line, contents) or levels.get(_round(line.size), 0) or (BOLD_LEVEL if line.bold else 0)
        if group and (level != group_level or _starts_block(group, line, leading)):
            _write_group(page, group, group_level, outline, jumped=jumped)
            jumped = line.y0 < group[-1].y0
            group = []
        group.append(line)
        group_level = level
    if group:
        _write_group(page, group, group_level, outline, jumped=jumped)


def _leading(lines: list[Line]) -> float:
    """The usual distance from line to line, in points."""
    steps = [after.y0 - before.y0 for before, after in pairwise(lines)]
    good = sorted(step for step, line in zip(steps, lines, strict=False) if 0 < step < 4 * max(line.size, 1))
    return good[len(good) // 2] if good else 0.0


def _starts_block(group: list[Line], line: Line, leading: float) -> bool:
    """True when `line` doesn't continue the paragraph of `group`."""
    last = group[-1]
    step = line.y0 - last.y0
    if step < 0 or step > max(1.45 * leading, 1.6 * last.size) or abs(line.size - last.size) > 0.15 * last.size:
        return True
    if line.fixed or last.fixed:
        return line.fixed != last.fixed
    if _is_row(line) or _is_row(last) or _ITEM.match(line.text):
        return True
    left = min(item.x0 for item in group)
    right = max(item.x1 for item in group)
    indented = line.x0 > left + 0.9 * line.size and len(group) > 1 and line.x0 > group[-1].x0 + 0.9 * line.size
    short = len(group) > 1 and last.x1 < right - 0.2 * (right - left) and last.text.endswith(SENTENCE_ENDS)
    return indented or short


def _is_row(line: Line) -> bool:
    """A line of a table: several cells apart, or ending in columns of numbers."""
    words = [word for word in line.text.split() if word not in _SIGNS]
    return len(line.cells) > 2 or (len(words) > 2 and all(_NUMBER.match(word) for word in words[-2:]))


def _write_group(page: Page, group: list[Line], level: int, outline: Outline, *, jumped: bool) -> None:
    """Writes one group of lines; `jumped` tells that it begins a page or a column."""
    text = _LEADERS.sub(" …", group[0].text)
    for line in group[1:]:
        text = join_lines(text, _LEADERS.sub(" …", line.text))
    box = None if page.turned else _box(page, group)
    if level and _can_head(text, group, level):
        outline.heading(text, level)
    elif all(line.fixed for line in group):
        outline.code("\n".join(line.text for line in group))
    elif len(group) == 1 and _is_row(group[0]):
        cells = group[0].cells
        outline.table_row(CELL.join(one_line(cell) for cell in cells) if len(cells) > 1 else text, None)
    elif jumped and outline.continues(text):
        outline.extend(text, box)
    else:
        outline.text(text, "list_item" if _ITEM.match(text) and not is_cjk(text[0]) else "paragraph", box)


def _can_head(text: str, group: list[Line], level: int) -> bool:
    """Large or bookmarked text of a few lines; bold text only when it is short and no sentence or table row."""
    if (
        len(text) > MAX_HEADING
        or len(group) > (1 if level == BOLD_LEVEL else 4)
        or not any(char.isalpha() for char in text)
    ):
        return False
    if level != BOLD_LEVEL:
        return True
    starts_well = not text[0].islower() and text[0].isalnum()
    long_enough = " " in text or is_cjk(text[0])
    return (
        len(text) <= 80 and starts_well and long_enough and not text.endswith(SENTENCE_ENDS) and not _is_row(group[0])
    )


def _box(page: Page, group: list[Line]) -> tuple[float, float, float, float]:
    """Shares of the page, clipped to it."""
    shares = (
        min(line.x0 for line in group) / page.width,
        min(line.y0 for line in group) / page.height,
        max(line.x1 for line in group) / page.width,
        max(line.y1 for line in group) / page.height,
    )
    x0, y0, x1, y1 = (round(min(max(share, 0.0), 1.0), 4) for share in shares)
    return (x0, y0, x1, y1)
