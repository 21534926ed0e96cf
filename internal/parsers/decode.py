"""Bytes of unknown encoding to text: UTF-8, UTF-16, UTF-32, GB18030, Big5, then what charset-normalizer suggests."""

import codecs
import re
import unicodedata
from dataclasses import dataclass

from charset_normalizer import from_bytes

SAMPLE = 1 << 16
# What people still have files in, the likeliest first; the many others that fit any bytes only mislead.
OTHERS = (
    "cp1252",
    "shift_jis",
    "euc_jp",
    "euc_kr",
    "cp1251",
    "koi8_r",
    "cp1250",
    "cp1253",
    "cp1254",
    "cp1255",
    "cp1256",
)
MAX_CONTROLS = 0.002  # share of control characters that real text stays under
MIN_PLAUSIBLE = 0.7
MIN_FREQUENT = 0.12  # share of the most frequent Chinese characters
MANY_ZEROS = 0.1  # share of zero bytes that Western letters leave in UTF-16
_WESTERN = frozenset("ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜÝßàáâãäåæçèéêëìíîïñòóôõöøùúûüýÿŒœ€£§°«»¿¡·‘’“”–—…•©®™\u00a0")
# The most frequent characters of modern Chinese, simplified and traditional: a wrong decoding hardly ever hits them.
_FREQUENT = frozenset(
    "的一是不了在人有我他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可她里后小么"
    "心多天而能好都然没日于起还发成事只作当想看文无开手十用主行方又如前所本见经头面公同三已老从动两长知民样现"
    "分将外但身些与高意进把法此实回二理美点月明其种声全工己话儿者向情部正名定女问力机给等几很业最间新什打便位"
    "因重被走电四第门相次东政海口使教西再平真听世气信北少关并内加化由却代军产入先山五太水万市"
    "這來個國說們為時會著過學對裡後麼沒於還發當開無見經頭從動兩長樣現將與進實點種聲話兒問機給幾業間電門東氣關"
)
_PUNCTUATION = frozenset("，。、；：？！“”‘’（）《》【】「」『』…—　")
_DECLARED = re.compile(
    rb"charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]{2,40})|encoding\s*=\s*[\"']([A-Za-z0-9_.:-]{2,40})", re.I
)
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# What the web means by these labels is the larger set.
_WIDER = {
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "x-gbk": "gb18030",
    "big5": "cp950",
    "x-x-big5": "cp950",
    "big5-hkscs": "big5hkscs",
    "iso-8859-1": "cp1252",
    "latin-1": "cp1252",
    "us-ascii": "cp1252",
    "ascii": "cp1252",
}


@dataclass(frozen=True, slots=True)
class Decoded:
    """Text and the codec that gave it."""

    text: str
    encoding: str


def decode(data: bytes, *, declared: str | None = None) -> Decoded:
    """The text of a whole file. `declared` is what a header said; it is believed only when it fits.

    Never fails: what no codec explains is read as Windows-1252, the widest single-byte set of the West.
    """
    found = sniff(data[:SAMPLE], complete=len(data) <= SAMPLE, declared=declared) or guess(data[:SAMPLE])
    return Decoded(data.decode(found, errors="replace"), found)


def sniff(sample: bytes, *, complete: bool, declared: str | None = None) -> str | None:
    """The codec of text whose encoding can be told for sure, None for anything else (binary, rare encodings).

    `complete` is false when the sample was cut, perhaps within a character. Bounded: looks at 64 KiB.
    """
    sample = sample[:SAMPLE]
    for bom, encoding in _BOMS:
        if sample.startswith(bom):
            text = _try(sample, encoding, complete=complete)
            return encoding if text is not None and _printable(text) else None
    text = _try(sample, "utf-8", complete=complete)
    if text is not None and _printable(text):
        return "utf-8"
    if declared and (codec := _known(declared)) and not codec.startswith("utf"):
        text = _try(sample, codec, complete=complete)
        if text is not None and _printable(text):
            return codec
    if sample.count(0) > len(sample) * MANY_ZEROS:
        return _utf16_without_bom(sample)
    return _chinese(sample, complete=complete)


def declared_charset(head: bytes) -> str | None:
    """The encoding that HTML or XML names in its first kilobytes."""
    match = _DECLARED.search(head[:4096])
    return (match[1] or match[2]).decode("ascii") if match else None


def guess(sample: bytes) -> str:
    """The most probable codec of text in some other encoding (Shift JIS, KOI8-R, Windows-1252, …)."""
    best = from_bytes(sample[:16384], steps=5, chunk_size=512, cp_isolation=list(OTHERS)).best()
    if best is None or best.encoding in ("ascii", "utf_8"):
        return "cp1252"
    if best.encoding in ("cp1250", "cp1254") and _is_western(sample):
        return "cp1252"
    return best.encoding


def _is_western(sample: bytes) -> bool:
    """True when everything beyond ASCII is a letter or mark of Western Europe."""
    text = sample.decode("cp1252", errors="replace")
    return all(char.isascii() or char in _WESTERN for char in text)


def few_controls(sample: bytes) -> bool:
    """True when single bytes look like text of some encoding: no NUL, hardly any control character."""
    controls = sum(sample.count(byte) for byte in range(32) if byte not in b"\t\n\r\x0c\x1b")
    return controls <= len(sample) * MAX_CONTROLS


def _known(name: str) -> str | None:
    name = name.strip().lower()
    name = _WIDER.get(name, name)
    try:
        info = codecs.lookup(name)
    except LookupError:
        return None
    # "charset=zip" must not run a decompressor: only text encodings count.
    return info.name if getattr(info, "_is_text_encoding", False) else None


def _try(sample: bytes, encoding: str, *, complete: bool) -> str | None:
    try:
        return codecs.getincrementaldecoder(encoding)().decode(sample, complete)
    except UnicodeDecodeError:
        return None


def _printable(text: str) -> bool:
    controls = sum(1 for char in text if char < " " and char not in "\t\n\r\x0c\x1b") + text.count("\ufffe")
    return controls <= len(text) * MAX_CONTROLS


def _utf16_without_bom(sample: bytes) -> str | None:
    """UTF-16 shows by zero bytes at every second place, and by making text that people write."""
    best, best_score = None, MIN_PLAUSIBLE
    even = sample[: len(sample) // 2 * 2]
    low_first, high_first = even[1::2].count(0), even[::2].count(0)
    for encoding, zeros, others in (("utf-16-le", low_first, high_first), ("utf-16-be", high_first, low_first)):
        if zeros < others:
            continue
        text = _try(even, encoding, complete=False)
        if text is None or not text or not _printable(text):
            continue
        score = _plausible(text)
        if score > best_score:
            best, best_score = encoding, score
    return best


def _plausible(text: str) -> float:
    """Share of characters that ordinary Chinese or Western text consists of."""
    good = 0
    frequent = 0
    chinese = 0
    for char in text:
        if char.isascii():
            good += char.isalnum() or char in " \t\r\n.,;:!?()[]{}<>'\"-/=&#%*+_@$\\|`~^"
        elif "\u4e00" <= char <= "\u9fff":
            chinese += 1
            frequent += char in _FREQUENT
            good += 1
        elif char in _PUNCTUATION or unicodedata.category(char) in ("Ll", "Lu", "Lo", "Mn", "Mc", "Nd"):
            good += (
                "\u00a0" <= char < "\u2e80"
                or char in _PUNCTUATION
                or "\u3040" <= char <= "\u30ff"
                or "\uac00" <= char <= "\ud7a3"
            )
    if chinese > 4 and frequent < chinese * 0.08:
        return 0.0
    return good / len(text)


def _chinese(sample: bytes, *, complete: bool) -> str | None:
    """GB18030, Big5 or pure Chinese UTF-16, whichever gives more of the characters that Chinese is full of."""
    best, best_score = None, 0.0
    wide_too = ("utf-16-le", "utf-16-be") if len(sample) % 2 == 0 or not complete else ()
    for encoding in (*(() if 0 in sample else ("gb18030", "cp950", "big5hkscs")), *wide_too):
        text = _try(sample, encoding, complete=complete)
        if text is None or not _printable(text) or any("\ue000" <= char <= "\uf8ff" for char in text):
            continue
        wide = [char for char in text if char >= "\u0080"]
        chinese = sum(1 for char in wide if "\u4e00" <= char <= "\u9fff" or char in _PUNCTUATION)
        frequent = sum(1 for char in wide if char in _FREQUENT or char in _PUNCTUATION)
        if not wide or chinese < len(wide) * 0.8 or frequent < len(wide) * MIN_FREQUENT:
            continue
        # Over the whole text: a wrong reading hits a frequent character now and then, the right one all the time.
        if frequent / len(text) > best_score:
            best, best_score = encoding, frequent / len(text)
    return best
