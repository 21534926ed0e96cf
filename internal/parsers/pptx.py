"""PPTX: slides as pages; titles as headings; text, tables, charts, notes and comments."""

from collections.abc import Iterator
from typing import BinaryIO
from xml.etree.ElementTree import Element

from internal.parsers.archive import Package, attribute, find, local
from internal.parsers.drawing import paragraphs, write_graphic
from internal.parsers.opc import core_properties, main_part
from internal.parsers.outline import Outline

_TITLES = ("title", "ctrTitle")
_FURNITURE = ("sldNum", "dt", "ftr", "hdr", "sldImg")


def read_pptx(file: BinaryIO, outline: Outline) -> None:
    """Reads a presentation in the order of its slides."""
    package = Package(file)
    part = main_part(package)
    core_properties(package, outline)
    relations = package.relations(part)
    listed = find(package.xml(part), "sldIdLst")
    slides = [relations.get(_relation_id(item), ("", ""))[1] for item in (listed if listed is not None else ())]
    outline.note("pages", len(slides))
    for number, slide in enumerate(slides, 1):
        if slide in package:
            outline.page = number
            outline.leave_sections()
            _Slide(package, slide, outline).write()


def _relation_id(element: Element) -> str:
    # A slide has a numeric id and a relation id; only the second has a namespace.
    return next((value for key, value in element.attrib.items() if key.endswith("}id")), "")


class _Slide:
    """One slide with what belongs to it."""

    def __init__(self, package: Package, part: str, outline: Outline) -> None:
        self._package = package
        self._root = package.xml(part)
        self._relations = package.relations(part)
        self._outline = outline

    def write(self) -> None:
        """Title first, then the shapes in their order, then notes and comments."""
        shapes = list(_shapes(self._root))
        for shape in shapes:
            if _placeholder(shape) in _TITLES:
                self._outline.heading(" ".join(paragraphs(shape)), 1)
        for shape in shapes:
            if _placeholder(shape) not in (*_TITLES, *_FURNITURE):
                self._shape(shape)
        for kind, target in self._relations.values():
            if target not in self._package:
                continue
            if kind == "notesSlide":
                self._notes(target)
            elif kind == "comments":
                for line in paragraphs(self._package.xml(target), names=("t", "text")):
                    self._outline.text(line)

    def _shape(self, shape: Element) -> None:
        if local(shape) != "graphicFrame":
            is_list = _placeholder(shape) in ("body", "obj", "") and len(list(paragraphs(shape))) > 1
            for line in paragraphs(shape):
                self._outline.text(line, "list_item" if is_list else "paragraph")
            return
        for element in shape.iter():
            if local(element) == "tbl":
                rows = [[" ".join(paragraphs(cell)) for cell in row if local(cell) == "tc"]
                        for row in element if local(row) == "tr"]  # fmt: skip
                self._outline.table(rows)
            elif local(element) in ("chart", "relIds"):
                write_graphic(self._package, self._relations, element, self._outline)

    def _notes(self, part: str) -> None:
        for shape in _shapes(self._package.xml(part)):
            if _placeholder(shape) not in _FURNITURE:
                for line in paragraphs(shape):
                    self._outline.text(line)


def _shapes(root: Element) -> Iterator[Element]:
    """Shapes and frames in document order, groups opened, fallbacks skipped."""
    for child in root:
        name = local(child)
        if name in ("sp", "graphicFrame", "cxnSp"):
            yield child
        elif name not in ("Fallback", "pic"):
            yield from _shapes(child)


def _placeholder(shape: Element) -> str | None:
    """The placeholder's type ('' when it has none), None for a free shape."""
    for element in shape.iter():
        if local(element) == "ph":
            return attribute(element, "type") or ""
        if local(element) == "txBody":
            break
    return None
