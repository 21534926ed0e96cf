"""EML: subject, people, date, body and the names of attachments."""

from collections.abc import Iterator
from email import message_from_binary_file
from email.errors import HeaderParseError
from email.header import decode_header
from email.message import Message
from typing import BinaryIO

from internal.parsers.decode import decode
from internal.parsers.html import write_html
from internal.parsers.outline import Outline

MAX_PARTS = 2000
MAX_HEADER = 4000
_SHOWN = ("From", "To", "Cc", "Date")


def read_eml(file: BinaryIO, outline: Outline) -> None:
    """Reads an e-mail; forwarded mails inside it are read as sections."""
    _mail(message_from_binary_file(file), outline, level=1)


def _mail(message: Message, outline: Outline, *, level: int) -> None:
    subject = _header(message, "Subject")
    outline.note("title", subject)
    outline.note("author", _header(message, "From"))
    outline.note("created", _header(message, "Date"))
    outline.heading(subject, level)
    for name in _SHOWN:
        if value := _header(message, name):
            outline.text(f"{name}: {value}")
    names: list[str] = []
    _part(message, outline, names, level=level)
    if names:
        outline.text("Attachments: " + ", ".join(names))


def _part(part: Message, outline: Outline, names: list[str], *, level: int) -> None:
    """Writes a body part, or the best of its alternatives, or notes the name of an attachment."""
    kind = part.get_content_type()
    name = part.get_filename()
    if name or part.get_content_disposition() == "attachment":
        names.append(_words(name) if name else kind)
    elif kind == "multipart/alternative":
        choices = list(_children(part))
        # HTML keeps headings and tables; plain text is the fallback.
        best = next((item for item in choices if item.get_content_type() != "text/plain"), None)
        if best is not None or choices:
            _part(best or choices[0], outline, names, level=level)
    elif kind == "message/rfc822":
        for inner in _children(part):
            _mail(inner, outline, level=min(level + 1, 6))
    elif part.is_multipart():
        for inner in _children(part):
            _part(inner, outline, names, level=level)
    elif kind in ("text/plain", "text/html"):
        _body(part, kind, outline)


def _body(part: Message, kind: str, outline: Outline) -> None:
    payload = part.get_payload(decode=True)
    charset = part.get_param("charset")
    declared = charset if isinstance(charset, str) else None
    text = decode(payload if isinstance(payload, bytes) else b"", declared=declared).text
    if kind == "text/html":
        write_html(text, outline)
        return
    for paragraph in text.replace("\r\n", "\n").split("\n\n"):
        outline.text(paragraph)


def _children(part: Message) -> Iterator[Message]:
    payload = part.get_payload()
    for number, item in enumerate(payload if isinstance(payload, list) else ()):
        if number < MAX_PARTS and isinstance(item, Message):
            yield item


def _header(message: Message, name: str) -> str:
    # get() would replace raw 8-bit bytes by question marks.
    value = next((value for key, value in message.raw_items() if key.lower() == name.lower()), None)
    return _words(str(value)[:MAX_HEADER]) if value is not None else ""


def _words(value: str) -> str:
    """A header with its encoded words decoded; raw 8-bit bytes are read as the body would be."""
    value = decode(value.encode("utf-8", "surrogateescape")).text
    try:
        words = decode_header(value)
    except HeaderParseError:
        return value
    return "".join(decode(word, declared=charset).text if isinstance(word, bytes) else word for word, charset in words)
