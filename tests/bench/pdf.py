"""A PDF of many pages with text of its own on each, so that no passage is embedded twice."""

import random

WORDS = (
    "account agreement annual approval archive audit balance budget building cargo century certificate change city "
    "climate collection company condition contract control cost council country credit customer data decision delivery "
    "demand department design district document energy engine estimate evidence factory field finance forest function "
    "garden growth harbour history hospital income index industry insurance interest invoice island journal language "
    "law letter library limit machine manager market material measure member memory message method minister model "
    "month morning mountain museum network notice object office operation order owner paper partner payment people "
    "period permit person picture plan plant policy population power practice price problem process product profit "
    "program project property protection province purchase quality quarter question railway rate reason record region "
    "report research reserve result review river safety salary sample school science season section security service "
    "signal society source standard station statistic storage street student study subject supply survey system target "
    "tax teacher technology term territory theory ticket title trade traffic training transfer transport treaty unit "
    "university value vehicle version village volume wage warehouse water weather weight window winter worker year"
).split()


def make_pdf(pages: int, *, words: int = 300, seed: int = 0) -> bytes:
    """`pages` pages of about `words` random words in sentences; page n holds the words `marker n` once."""
    rng = random.Random(seed)
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"", b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    kids = []
    for number in range(1, pages + 1):
        stream = _page(_sentences(rng, number, words))
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents %d 0 R"
            b" /Resources << /Font << /F1 3 0 R >> >> >>" % len(objects)
        )
        kids.append(b"%d 0 R" % len(objects))
    objects[1] = b"<< /Type /Pages /Count %d /Kids [%s] >>" % (pages, b" ".join(kids))
    return _file(objects)


def _sentences(rng: random.Random, number: int, words: int) -> list[str]:
    found, count = [f"This page has the marker {number}."], 0
    while count < words:
        length = rng.randint(7, 16)
        sentence = " ".join(rng.choices(WORDS, k=length))
        found.append(sentence.capitalize() + ".")
        count += length
    return found


def _page(sentences: list[str]) -> bytes:
    lines, line = [], ""
    for word in " ".join(sentences).split():
        if len(line) + len(word) > 85:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    shown = b"".join(b"(%s) Tj T*\n" % text.encode() for text in [*lines, line])
    return b"BT /F1 10 Tf 12 TL 50 790 Td\n" + shown + b"ET"


def _file(objects: list[bytes]) -> bytes:
    body, offsets = b"%PDF-1.4\n", []
    for number, item in enumerate(objects, 1):
        offsets.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, item)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return (
        body
        + b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n"
        % (
            len(objects) + 1,
            table,
            len(objects) + 1,
            len(body),
        )
    )
