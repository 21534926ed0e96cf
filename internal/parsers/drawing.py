"""DrawingML, which slides and documents share: words of shapes, numbers of charts."""

from collections.abc import Iterator, Mapping
from xml.etree.ElementTree import Element

from internal.parsers.archive import Package, attribute, find, local
from internal.parsers.outline import Outline


def write_graphic(
    package: Package, relations: Mapping[str, tuple[str, str]], element: Element, outline: Outline
) -> None:
    """What a `chart` or `relIds` element refers to: a chart's numbers as a table, a diagram's words as paragraphs."""
    for key, value in element.attrib.items():
        kind, target = relations.get(value, ("", ""))
        if target not in package or not key.startswith("{"):
            continue
        if kind == "chart":
            _write_chart(package.xml(target), outline)
        elif kind == "diagramData":
            for line in paragraphs(package.xml(target)):
                outline.text(line)


def paragraphs(root: Element, names: tuple[str, ...] = ("t",)) -> Iterator[str]:
    """The text of each paragraph below `root`; elements with text but no paragraph give a line each."""
    inside = {id(item) for paragraph in root.iter() if local(paragraph) == "p" for item in paragraph.iter()}
    for element in root.iter():
        if local(element) == "p":
            parts = [_run(item) for item in element.iter()]
            if line := "".join(parts).strip():
                yield line
        elif local(element) in names and id(element) not in inside and (element.text or "").strip():
            yield (element.text or "").strip()


def _run(item: Element) -> str:
    name = local(item)
    return (item.text or "") if name == "t" else "\n" if name == "br" else "\t" if name == "tab" else ""


def _write_chart(root: Element, outline: Outline) -> None:
    """Series beside categories."""
    for element in root.iter():
        if local(element) == "title":
            outline.text(" ".join(paragraphs(element)), "caption")
    series = [item for item in root.iter() if local(item) == "ser"]
    if not series:
        return
    header = ["", *(" ".join(_points(item, "tx").values()) for item in series)]
    columns = [_points(item, "val") or _points(item, "yVal") for item in series]
    categories = _points(series[0], "cat") or _points(series[0], "xVal")
    indexes = sorted({index for column in (categories, *columns) for index in column})
    rows = [[categories.get(index, ""), *(column.get(index, "") for column in columns)] for index in indexes]
    outline.table([header, *rows])


def _points(series: Element, name: str) -> dict[int, str]:
    parent = find(series, name)
    found: dict[int, str] = {}
    for point in parent.iter() if parent is not None else ():
        index = attribute(point, "idx") or ""
        if local(point) == "pt" and index.isdecimal():
            value = find(point, "v")
            found[int(index)] = (value.text or "") if value is not None else ""
    return found
