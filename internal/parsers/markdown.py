"""Markdown: headings, paragraphs, lists, tables and code, line by line; marks that only style are dropped."""

import re
from typing import BinaryIO

from internal.parsers.decode import decode
from internal.parsers.html import write_html
from internal.parsers.outline import Outline

_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
_SETEXT = re.compile(r" {0,3}(=+|-+)[ \t]*$")
_RULE = re.compile(r" {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_ITEM = re.compile(r"[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t]+(.*)$")
_TABLE_RULE = re.compile(r"[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$")
_QUOTE = re.compile(r"\A {0,3}>[ \t]?")
_HTML_BLOCK = re.compile(
    r" {0,3}</?(?:table|thead|tbody|tr|td|th|div|p|ul|ol|li|dl|section|article|details|center|h[1-6]|pre|blockquote)\b",
    re.I,
)
_COMMENT = re.compile(r"<!--.*?-->", re.S)
_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*\n", re.S)
_FIELD = re.compile(r"(title|author|date|lang(?:uage)?)[ \t]*:[ \t]*(.+)$", re.M)
_IMAGE = re.compile(r"!\[([^\]\n]{0,500})\]\([^)\n]{0,2000}\)")
_LINK = re.compile(r"\[([^\]\n]{1,500})\]\(([^)\n]{0,2000})\)")
_STRONG = re.compile(r"(\*\*|__)(?=\S)(.{1,2000}?\S|\S)\1")
_EMPHASIS = re.compile(r"(?<![\w*])(\*|_)(?=[^\s*_])([^*_\n]{1,2000})(?<=\S)\1(?![\w*])")
_CODE = re.compile(r"(`+)(.{1,2000}?)\1")
_ESCAPE = re.compile(r"\\([\\`*_{}\[\]()#+\-.!|<>~])")
_TAG = re.compile(r"</?[A-Za-z][^<>\n]{0,300}>")
_UNESCAPED_BAR = re.compile(r"(?<!\\)\|")


def read_markdown(file: BinaryIO, outline: Outline) -> None:
    """Reads a Markdown file."""
    decoded = decode(file.read())
    outline.note("encoding", decoded.encoding)
    text = _COMMENT.sub("", decoded.text.lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n"))
    if front := _FRONT_MATTER.match(text):
        for key, value in _FIELD.findall(front[1]):
            outline.note(key, value.strip("\"' "))
        text = text[front.end() :]
    _Reader(outline).read(text.split("\n"))


def plain(text: str) -> str:
    """Inline Markdown without its marks; the words of links and images stay."""
    codes: list[str] = []

    def keep(match: re.Match[str]) -> str:
        codes.append(match[2])
        return f"\x00{len(codes) - 1}\x00"

    text = _CODE.sub(keep, text)
    text = _IMAGE.sub(r"\1", text)
    text = _LINK.sub(r"\1", text)
    text = _STRONG.sub(r"\2", text)
    text = _EMPHASIS.sub(r"\2", text)
    text = _TAG.sub("", text)
    text = _ESCAPE.sub(r"\1", text)
    return re.sub("\x00(\\d+)\x00", lambda match: codes[int(match[1])], text)


class _Reader:
    """Walks the lines once; `_lines` holds the paragraph or list item being gathered."""

    def __init__(self, outline: Outline) -> None:
        self._outline = outline
        self._lines: list[str] = []
        self._in_item = False

    def read(self, lines: list[str]) -> None:
        position = 0
        while position < len(lines):
            position = self._step(lines, position)
        self._flush()

    def _step(self, lines: list[str], position: int) -> int:
        """Reads the block that begins at `position`; returns where the next begins."""
        line = _QUOTE.sub("", lines[position], count=1).replace("\x00", "")
        if fence := _FENCE.match(line):
            return self._fence(lines, position, fence[1])
        if heading := _ATX.match(line):
            self._flush()
            self._outline.heading(plain(heading[2] or ""), len(heading[1]))
        elif self._lines and not self._in_item and len(self._lines) == 1 and (rule := _SETEXT.match(line)):
            title = self._lines.pop()
            self._outline.heading(plain(title), 1 if rule[1][0] == "=" else 2)
        elif not self._lines and _HTML_BLOCK.match(line):
            return self._html(lines, position)
        elif (
            "|" in line
            and position + 1 < len(lines)
            and "-" in lines[position + 1]
            and _TABLE_RULE.match(lines[position + 1])
        ):
            return self._table(lines, position)
        elif not line.strip() or _RULE.match(line):
            self._flush()
        elif item := _ITEM.match(line):
            self._flush()
            self._in_item = True
            self._lines.append(item[1])
        else:
            self._lines.append(line.strip())
        return position + 1

    def _fence(self, lines: list[str], position: int, mark: str) -> int:
        self._flush()
        end = position + 1
        while end < len(lines) and not lines[end].strip().startswith(mark):
            end += 1
        self._outline.code("\n".join(lines[position + 1 : end]))
        return end + 1

    def _html(self, lines: list[str], position: int) -> int:
        """HTML in Markdown reaches to the next empty line."""
        end = position
        while end < len(lines) and lines[end].strip():
            end += 1
        write_html("\n".join(lines[position:end]), self._outline)
        return end

    def _table(self, lines: list[str], position: int) -> int:
        self._flush()
        rows = [_cells(lines[position])]
        end = position + 2
        while end < len(lines) and "|" in lines[end]:
            rows.append(_cells(lines[end]))
            end += 1
        self._outline.table(rows)
        return end

    def _flush(self) -> None:
        if self._lines:
            self._outline.text(plain("\n".join(self._lines)), "list_item" if self._in_item else "paragraph")
        self._lines = []
        self._in_item = False


def _cells(line: str) -> list[str]:
    line = line.strip()
    line = line[1:] if line.startswith("|") else line
    line = line[:-1] if line.endswith("|") and not line.endswith("\\|") else line
    return [plain(cell.strip()) for cell in _UNESCAPED_BAR.split(line)]
