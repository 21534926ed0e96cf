"""What is read of pictures and documents, beside what stands in them."""

import json
from collections.abc import Mapping
from pathlib import Path

from tests.bench.installation import Installation
from tests.eval.judge import Judge
from tests.eval.table import Score
from tests.eval.tenant import new_tenant

REFERENCE = ".reference.md"


async def receipts(installation: Installation, judge: Judge, data: Path) -> list[Score]:
    """Scanned receipts: characters, in the order of the lines' truth; and the fields that somebody would look for."""
    folder = data / "photos" / "receipts"
    truth = json.loads((folder / "receipts.json").read_text(encoding="utf-8"))
    read = await _texts(installation, "receipts", {item["id"]: folder / item["file"] for item in truth})
    lines = [line for item in truth for line in item["lines"]]
    found = [judge.contains(read[item["id"]], [[line]]) for item in truth for line in item["lines"]]
    fields = [
        judge.contains(read[item["id"]], [[str(value)]]) for item in truth for value in item["fields"].values() if value
    ]
    return [
        Score(set="photos/receipts", metric="lines read whole", value=sum(found) / len(lines), count=len(lines)),
        Score(set="photos/receipts", metric="fields found", value=sum(fields) / len(fields), count=len(fields)),
    ]


async def ocr(installation: Installation, judge: Judge, data: Path) -> list[Score]:
    """Pages with their exact text, and short texts in several scripts that must be read."""
    folder = data / "photos" / "ocr"
    truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    read = await _texts(installation, "ocr", {item["file"]: folder / item["file"] for item in truth})
    pages = [judge.cer(read[item["file"]], item["text"]) for item in truth if item.get("text")]
    lines = [
        judge.contains(read[item["file"]], [[part] for part in item["must_read"]])
        for item in truth
        if item.get("must_read")
    ]
    return [
        Score(set="photos/ocr/pages", metric="character error rate", value=sum(pages) / len(pages), count=len(pages)),
        Score(set="photos/ocr/lines", metric="read", value=sum(lines) / len(lines), count=len(lines)),
    ]


async def documents(installation: Installation, judge: Judge, data: Path) -> list[Score]:
    """Documents beside a good converter's output of them: the share of its words that was read."""
    folder = data / "documents" / "docling"
    paths = {
        str(path.relative_to(folder)): path.with_name(path.name.removesuffix(REFERENCE))
        for path in sorted(folder.rglob(f"*{REFERENCE}"))
    }
    paths = {name: path for name, path in paths.items() if path.is_file()}
    read = await _texts(installation, "docling", paths)
    shares: list[float] = []
    for name, text in read.items():
        wanted = (folder / name).read_text(encoding="utf-8", errors="replace").split()
        known = set(text.split())
        if wanted:
            shares.append(sum(word in known for word in wanted) / len(wanted))
    return [
        Score(
            set="documents/docling", metric="words of the reference", value=sum(shares) / len(shares), count=len(shares)
        )
    ]


async def _texts(installation: Installation, name: str, paths: Mapping[str, Path]) -> dict[str, str]:
    """What was read of each file; nothing of those that were refused."""
    texts = dict.fromkeys(paths, "")
    async with new_tenant(installation, name) as tenant:
        ids: dict[str, str] = {}
        for item, path in paths.items():
            try:
                ids[item] = (await tenant.upload(path.name, path.read_bytes()))["document_id"]
            except RuntimeError as error:
                print(f"{name}: {path.name}: {error}")
        await tenant.settled()
        for item, document in ids.items():
            texts[item] = await tenant.text(document)
    return texts
