"""What is sealed opens for its own secret, purpose and name alone, and shows nothing of itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkg.sealing import NONCE_BYTES, TAG_BYTES, Sealer

SEALER = Sealer("secret", "cache")


@given(st.binary(max_size=200), st.text(max_size=20))
def test_what_was_sealed_opens(data: bytes, name: str) -> None:
    sealed = SEALER.seal(name, data)
    assert Sealer("secret", "cache").open(name, sealed) == data
    assert len(sealed) == len(data) + NONCE_BYTES + TAG_BYTES


@pytest.mark.parametrize(
    ("other", "name"),
    [(Sealer("other", "cache"), "t:1:a"), (Sealer("secret", "mail"), "t:1:a"), (SEALER, "t:2:a")],
)
def test_nothing_else_opens_it(other: Sealer, name: str) -> None:
    assert other.open(name, SEALER.seal("t:1:a", b"words")) is None


def test_what_was_changed_does_not_open() -> None:
    sealed = SEALER.seal("name", b"some words of a document")
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        assert SEALER.open("name", bytes(changed)) is None
    for length in (0, 5, NONCE_BYTES + TAG_BYTES - 1, len(sealed) - 1):
        assert SEALER.open("name", sealed[:length]) is None


def test_it_shows_nothing_and_is_never_the_same() -> None:
    first, second = (SEALER.seal("name", b"kestrel") for _ in range(2))
    assert first != second
    assert b"kestrel" not in first
