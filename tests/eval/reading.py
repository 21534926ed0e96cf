"""What is read of pictures and documents, beside what stands in them."""

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path

from tests.bench.installation import Installation
from tests.eval.judge import Judge
from tests.eval.table import Score, mean
from tests.eval.tenant import new_tenant

REFERENCE = ".reference.md"
NO_TEXT = re.compile(r"<!--.*?-->|!\[[^\]]*\]\([^)]*\)|\]\([^)]*\)", re.DOTALL)
"""Of Markdown: comments, pictures, and where links lead."""
CER = "character error rate"


async def receipts(installation: Installation, judge: Judge, data: Path, limit: int | None) -> list[Score]:
    """Scanned receipts: characters, in the order of the lines' truth; lines; and fields that people look for."""
    folder = data / "photos" / "receipts"
    truth = json.loads((folder / "receipts.json").read_text(encoding="utf-8"))[:limit]
    read = await _texts(installation, "receipts", {item["id"]: folder / item["file"] for item in truth})
    errors = [_errors(judge, read.get(item["id"], ""), "\n".join(item["lines"])) for item in truth]
    lines = [judge.contains(read.get(item["id"], ""), [[line]]) for item in truth for line in item["lines"]]
    fields = [
        judge.contains(read.get(item["id"], ""), [[str(value)]])
        for item in truth
        for value in item["fields"].values()
        if value
    ]
    return [
        *mean("photos/receipts", CER, errors),
        *mean("photos/receipts", "lines read whole", lines),
        *mean("photos/receipts", "fields found", fields),
    ]


async def ocr(installation: Installation, judge: Judge, data: Path, limit: int | None) -> list[Score]:
    """Pages with their exact text, and short texts in several scripts that must be read."""
    folder = data / "photos" / "ocr"
    truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    pages = [item for item in truth if item.get("text")][:limit]
    lines = [item for item in truth if item.get("must_read")][:limit]
    read = await _texts(installation, "ocr", {item["file"]: folder / item["file"] for item in [*pages, *lines]})
    errors = [_errors(judge, read.get(item["file"], ""), item["text"]) for item in pages]
    held = [judge.contains(read.get(item["file"], ""), [[part] for part in item["must_read"]]) for item in lines]
    return [*mean("photos/ocr/pages", CER, errors), *mean("photos/ocr/lines", "read", held)]


async def documents(installation: Installation, judge: Judge, data: Path, limit: int | None) -> list[Score]:
    """Documents beside a good converter's output of them. What the product doesn't take counts as not read."""
    folder = data / "documents" / "docling"
    references = [path for path in sorted(folder.rglob(f"*{REFERENCE}")) if _source(path).is_file()][:limit]
    wanted = {str(path): plain(path.read_text(encoding="utf-8", errors="replace")) for path in references}
    read = await _texts(installation, "docling", {str(path): _source(path) for path in references})
    words: list[float] = []
    for name, reference in wanted.items():
        known = set(judge.units(read.get(name, "")))
        if units := judge.units(reference):
            words.append(sum(unit in known for unit in units) / len(units))
    errors = [_errors(judge, text, wanted[name]) for name, text in read.items() if judge.units(wanted[name])]
    return [
        *mean("documents/docling", "files taken", [float(name in read) for name in wanted]),
        *mean("documents/docling", "words of the reference", words),
        *mean("documents/docling", f"{CER}, taken", errors),
    ]


def plain(markdown: str) -> str:
    """The words that a reader of it sees; marks of the notation stay, which don't count as characters."""
    return html.unescape(NO_TEXT.sub(" ", markdown))


def _source(reference: Path) -> Path:
    return reference.with_name(reference.name.removesuffix(REFERENCE))


def _errors(judge: Judge, read: str, truth: str) -> float:
    """At most 1, as if nothing was read: what was read too much in one file must not outweigh all others."""
    return min(judge.cer(read, truth), 1.0)


async def _texts(installation: Installation, name: str, paths: Mapping[str, Path]) -> dict[str, str]:
    """What was read of each file; those that aren't taken are missing, and told."""
    texts: dict[str, str] = {}
    async with new_tenant(installation, name) as tenant:
        ids: dict[str, str] = {}
        for item, path in paths.items():
            try:
                ids[item] = (await tenant.upload(path.name, path.read_bytes()))["document_id"]
            except RuntimeError as error:
                print(f"{name}: {path.name}: {str(error)[:200]}")
        await tenant.settled()
        for item, document in ids.items():
            texts[item] = await tenant.text(document)
    return texts
