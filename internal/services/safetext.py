"""Makes a streamed answer harmless to whatever renders it as Markdown, however it is cut into deltas.

A poisoned document can talk a model, and an extractive answer repeats documents by design, into text that loads or
links something outside. What leaves here holds, whatever comes in: no `](` and no `]:` (so no link, image or
reference), no `<` that opens a tag or an autolink, no `://`, no `www.`, no character reference and no control
character that could hide one of them. Addresses stay readable: without scheme, in backticks.
"""

import html
import re

INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]")
REFERENCE = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
UNFINISHED = re.compile(r"&#?[A-Za-z0-9]{0,32}\Z|\\+\Z")
ESCAPE = re.compile(r"\\+(?=[:/.&<@#])")
LONGEST_REFERENCE = 34

TOKEN = re.compile(r"[A-Za-z0-9!#$%&*+,\-./:;=?@_~]+")
LONGEST_TOKEN = 4096
ADDRESS = re.compile(
    r"(?:[A-Za-z][A-Za-z0-9+.\-]*)?:/{2,}|(?<![A-Za-z0-9:/])/{2,}(?=[A-Za-z0-9])|(?<![A-Za-z0-9])www\.", re.IGNORECASE
)
MAIL = re.compile(
    r"(?:mailto:|xmpp:)?([A-Za-z0-9._+\-]+@[A-Za-z0-9._\-]+\.[A-Za-z0-9._\-]*[A-Za-z0-9]/*)", re.IGNORECASE
)
TRAILING = re.compile(r"[!*,.:;?_~]+\Z")
OPENS_TAG = re.compile(r"[A-Za-z/!?]")


class SafeText:
    """One answer on its way out. `feed` gives back what is decided; the undecided tail waits for more."""

    def __init__(self) -> None:
        self._decoder = _Decoder()
        self._held = ""
        self._last = ""
        self._dropping = False

    def feed(self, text: str) -> str:
        """More of the answer."""
        return self._scan(self._decoder.feed(text), final=False)

    def mark(self, literal: str) -> str:
        """A mark of our own between what was fed and what comes; an empty one parts them by a space."""
        rest = self._scan(self._decoder.finish(), final=True)
        if not literal:
            literal = "" if (rest or self._last or " ")[-1].isspace() else " "
        return rest + self._emit(literal)

    def finish(self) -> str:
        """What was held back, at the end."""
        return self._scan(self._decoder.finish(), final=True)

    def _scan(self, text: str, *, final: bool) -> str:
        text = self._held + text
        self._held = ""
        out: list[str] = []
        at = 0
        for match in TOKEN.finditer(text):
            out.append(self._between(text[at : match.start()]))
            at = match.end()
            if at == len(text) and not final:
                self._hold(match.group(), out)
            else:
                self._token(match.group(), out)
        out.append(self._between(text[at:]))
        if final:
            self._dropping = False
        return "".join(out)

    def _hold(self, token: str, out: list[str]) -> None:
        """The token may go on. One that never ends isn't language: it is left out instead of being kept."""
        if self._dropping:
            return
        if len(token) > LONGEST_TOKEN:
            self._dropping = True
            out.append(self._emit("…"))
        else:
            self._held = token

    def _token(self, token: str, out: list[str]) -> None:
        if not self._dropping:
            out.append(self._emit(_defanged(token, quoted=self._last == "`")))
        self._dropping = False

    def _between(self, text: str) -> str:
        if text:
            self._dropping = False
        return "".join(map(self._emit, text))

    def _emit(self, text: str) -> str:
        """Parts by a space what must not stand side by side, also where it was not fed side by side."""
        if not text:
            return ""
        before, after = self._last, text[0]
        link, tag, address = (
            before == "]" and after in "(:",
            before == "<" and OPENS_TAG.match(after),
            before + after == ":/",
        )
        self._last = text[-1]
        return f" {text}" if link or tag or address else text


class _Decoder:
    """Turns character references and needless escapes into what they stand for, so that nothing hides in them."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        decided = _decoded(self._held + text)
        tail = UNFINISHED.search(decided)
        at = tail.start() if tail else len(decided)
        self._held = decided[at:]
        return decided[:at]

    def finish(self) -> str:
        rest, self._held = self._held, ""
        return rest


def _decoded(text: str) -> str:
    """Decodes until there is nothing left to decode: what is hidden twice is found as well."""
    text = ESCAPE.sub("", INVISIBLE.sub("", text))
    at = 0
    while match := REFERENCE.search(text, at):
        plain = html.unescape(match.group())
        if plain == match.group():
            at = match.start() + 1
            continue
        text = text[: match.start()] + INVISIBLE.sub(" ", plain) + text[match.end() :]
        at = max(0, match.start() - LONGEST_REFERENCE)
    return ESCAPE.sub("", text)


def _defanged(token: str, *, quoted: bool) -> str:
    """A run of address characters without anything that makes a link of it."""
    found = ADDRESS.search(token)
    if found is None:
        return _without_mail_links(token, quoted=quoted)
    rest = token[found.end() :]
    while again := ADDRESS.search(rest):
        scheme, colon, _ = again.group().partition(":")
        rest = rest[: again.start()] + (f"{scheme}%3A%2F%2F" if colon else "") + rest[again.end() :]
    address = TRAILING.sub("", rest)
    before = _without_mail_links(token[: found.start()], quoted=quoted)
    shown = _code(address.lstrip("/") or "…", quoted=quoted and not before)
    return before + shown + rest[len(address) :]


def _without_mail_links(text: str, *, quoted: bool) -> str:
    return MAIL.sub(lambda match: _code(match.group(1), quoted=quoted and match.start() == 0), text)


def _code(text: str, *, quoted: bool) -> str:
    return text if quoted else f"`{text}`"
