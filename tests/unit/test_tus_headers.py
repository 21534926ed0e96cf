"""Headers of tus as clients write them."""

import base64
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internal.entities.documents import Visibility
from internal.handlers.tus_headers import http_date, read_checksum, read_metadata, read_request
from pkg.apperr import AppError, Code


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@given(st.dictionaries(st.from_regex(r"[a-zA-Z0-9_-]{1,20}", fullmatch=True), st.text(max_size=30)))
def test_metadata_comes_back(fields: dict[str, str]):
    fields = {key: value.replace("\x00", "") for key, value in fields.items()}
    try:
        header = ",".join(f"{key} {encoded(value)}" for key, value in fields.items())
    except UnicodeEncodeError:
        return
    assert read_metadata(header) == fields


def test_a_key_may_have_no_value_and_blanks_may_stand_around():
    assert read_metadata(f"is_confidential, filename {encoded('a.txt')}") == {
        "is_confidential": "",
        "filename": "a.txt",
    }
    assert read_metadata("") == {}


def test_what_is_missing_is_what_a_form_would_have():
    request = read_request(f"filename {encoded('报告.pdf')},filetype {encoded('text/html')},tags {encoded('a,, b')}")
    assert (request.filename, request.tags, request.priority) == ("报告.pdf", ["a", " b"], None)
    assert (request.collection, request.visibility) == (None, Visibility.TENANT)


@pytest.mark.parametrize("header", [",", "a,a", "filename %%", "filename /w==", "filename é", "x" * 40_000])
def test_metadata_that_makes_no_sense(header: str):
    with pytest.raises(AppError) as raised:
        read_metadata(header)
    assert raised.value.code is Code.REQUEST_INVALID


def test_checksums():
    found = read_checksum("sha1 2jmj7l5rSw0yVb/vlWAYkK/YBwk=")
    assert found is not None
    assert (found.algorithm, found.digest.hex()[:8]) == ("sha1", "da39a3ee")
    assert read_checksum(None) is None
    for wrong in ("", "sha1", "md5 1B2M2Y8AsgTpgAmy7PhCfg==", "sha256 2jmj7l5rSw0yVb/vlWAYkK/YBwk="):
        with pytest.raises(AppError):
            read_checksum(wrong)


def test_times_are_in_gmt():
    moment = datetime(2024, 2, 29, 1, 2, 3, tzinfo=timezone(timedelta(hours=2)))
    assert http_date(moment) == "Wed, 28 Feb 2024 23:02:03 GMT"
    assert http_date(moment.astimezone(UTC)) == http_date(moment)
