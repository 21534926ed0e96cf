"""How fast an endpoint is used: what headers and refusals teach, by a clock that stands still until it is moved."""

import itertools
import math

import pytest

from internal.providers.limit_headers import Allowance, Told, retry_after_of, span, told_by
from internal.providers.pacing import LOWEST_RATE, RECOVERY_SECONDS, STEPS_SECONDS, Pace, Rate

NOTHING = Told()


def requests(limit: int, left: int, reset: float) -> Told:
    return Told(requests=Allowance(limit, left, reset))


def tokens(limit: int, left: int, reset: float) -> Told:
    return Told(tokens=Allowance(limit, left, reset))


def call(pace: Pace, told: Told, now: float, size: int = 1) -> None:
    pace.begin(size, now)
    pace.end(size)
    pace.succeed(told, now)


def refused(pace: Pace, told: Told, now: float, size: int = 1, begun: float | None = None) -> None:
    begun = now if begun is None else begun
    pace.begin(size, begun)
    pace.end(size)
    pace.refuse(told, size, begun, now)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("1m30s", 90.0),
        ("250ms", 0.25),
        ("1m30.5s", 90.5),
        ("1h2m3s", 3723.0),
        ("2s500ms", 2.5),
        ("12", 12.0),
        ("0.5", 0.5),
        ("", None),
        ("s", None),
        ("-1s", None),
        ("-1", None),
        ("nan", None),
        ("inf", None),
        ("1e9", None),
        ("30s1m", None),
        ("１s", None),
        ("9" * 400 + "s", None),
        ("soon", None),
    ],
)
def test_spans_are_read_as_openai_writes_them(text: str, seconds: float | None) -> None:
    assert span(text) == seconds


def test_all_of_openais_headers_are_read() -> None:
    headers = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-limit-tokens": "150000",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-remaining-tokens": "149984",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-reset-tokens": "1m30s",
    }
    assert told_by(headers) == Told(Allowance(60, 59, 1.0), Allowance(150_000, 149_984, 90.0))


@pytest.mark.parametrize(
    ("limit", "left", "reset", "expected"),
    [
        (None, "20", "2", Allowance(20, 20, 2.0)),  # Azure leaves the limit out
        ("100", "500", "1s", Allowance(100, 100, 1.0)),
        ("100", "0", "9999h", Allowance(100, 0, 120.0)),
        ("100", "0", None, None),
        ("100", None, "1s", None),
        ("-1", "-1", "0", None),  # Azure's word for what it doesn't count
        ("0", "0", "1s", Allowance(1, 0, 1.0)),
        ("many", "5", "1s", Allowance(5, 5, 1.0)),
        ("9" * 13, "5", "1s", Allowance(5, 5, 1.0)),
        ("100", "1e3", "1s", None),
        ("100", "50", "-5s", None),
    ],
)
def test_headers_that_make_no_sense_are_bounded_or_ignored(
    limit: str | None, left: str | None, reset: str | None, expected: Allowance | None
) -> None:
    given = {"limit": limit, "remaining": left, "reset": reset}
    headers = {f"x-ratelimit-{name}-requests": value for name, value in given.items() if value is not None}
    assert told_by(headers).requests == expected


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "-5", "retry-after": "9"}, 9.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": "999999999"}, 86_400.0),
        ({"retry-after": "nan"}, None),
        (
            {"retry-after": "Fri, 27 Nov 2026 08:00:30 GMT", "date": "Fri, 27 Nov 2026 08:00:00 GMT"},
            30.0,
        ),
        ({}, None),
    ],
)
def test_what_a_refusal_asks_for(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_of(headers) == seconds


def test_who_never_refuses_is_never_slowed() -> None:
    pace = Pace()
    for number in range(10_000):
        assert pace.wait(1000, number / 10_000) == 0
        call(pace, NOTHING, number / 10_000, 1000)
    assert pace.room(1000, 1.0) == math.inf


def test_a_call_waits_before_it_would_be_refused() -> None:
    pace = Pace()
    call(pace, requests(60, 1, 59.0), 0.0)
    assert pace.wait(1, 0.0) == 0
    pace.begin(1, 0.0)
    assert pace.wait(1, 0.0) == pytest.approx(1.0)  # one flows back a second
    assert pace.wait(1, 0.4) == pytest.approx(0.6)
    assert pace.wait(1, 1.0) == 0


def test_tokens_are_waited_for_as_requests_are() -> None:
    pace = Pace()
    call(pace, tokens(60_000, 1000, 59.0), 0.0)
    assert pace.wait(1000, 0.0) == 0
    assert pace.wait(3000, 0.0) == pytest.approx(2.0)
    assert pace.wait(3000, 0.0, tokens_ahead=1000) == pytest.approx(3.0)


def test_a_call_larger_than_the_whole_limit_waits_for_all_of_it_and_no_longer() -> None:
    pace = Pace()
    call(pace, tokens(1000, 0, 10.0), 0.0)
    assert pace.wait(50_000, 0.0) == pytest.approx(10.0)
    assert pace.wait(50_000, 10.0) == 0


def test_calls_under_way_count_against_what_an_older_answer_told() -> None:
    pace = Pace()
    for _ in range(4):
        pace.begin(1, 0.0)
    pace.end(1)
    pace.succeed(requests(60, 3, 57.0), 0.0)
    assert pace.wait(1, 0.0) > 0  # three others are under way


@pytest.mark.parametrize("told", [requests(1, 0, 120.0), requests(10**12, 0, 120.0), tokens(10**12, 0, 120.0)])
def test_no_header_holds_a_call_up_for_longer_than_two_minutes(told: Told) -> None:
    pace = Pace()
    call(pace, told, 0.0)
    assert pace.wait(1, 0.0) <= 120.0
    assert pace.wait(1, 120.0) == 0


def test_an_endpoint_that_stops_telling_is_not_held_to_its_last_word() -> None:
    pace = Pace()
    call(pace, requests(10, 0, 100.0), 0.0)
    assert pace.wait(1, 1.0) > 0
    call(pace, NOTHING, 1.0)
    assert pace.wait(1, 1.0) == 0


def test_a_window_is_waited_for_by_the_patient_once_the_endpoint_has_shown_it_counts_so() -> None:
    pace = Pace()
    call(pace, requests(20, 0, 10.0), 0.0)
    assert pace.wait(1, 0.0) == pytest.approx(0.5)
    refused(pace, requests(20, 0, 9.5), 0.5)
    assert pace.wait(1, 0.5) == pytest.approx(9.5)
    assert pace.wait(1, 0.5, patient=False) == pytest.approx(9.5 / 20)
    assert pace.wait(1, 10.0) == 0
    for _ in range(20):
        assert pace.wait(1, 10.0) == 0
        pace.begin(1, 10.0)
        pace.end(1)
    assert pace.wait(1, 10.0) > 0  # the next window is as large
    later = 10.0 + STEPS_SECONDS
    call(pace, requests(20, 0, 10.0), later)
    assert pace.wait(1, later) == pytest.approx(0.5)  # it may have changed


def test_a_refusal_that_headers_explain_does_not_slow_the_rate() -> None:
    pace = Pace()
    refused(pace, requests(20, 0, 1.0), 0.0)
    assert pace.wait(1, 1.0) == 0
    for _ in range(20):
        assert pace.wait(1, 1.0) == 0
        pace.begin(1, 1.0)


def test_a_refusal_that_headers_do_not_explain_does() -> None:
    pace = Pace()
    refused(pace, requests(20, 19, 1.0), 0.0)
    assert pace.wait(1, 0.0) > 0


def test_a_refusal_halves_the_rate_that_was_seen() -> None:
    rate = Rate()
    for number in range(100):
        rate.take(number / 10)
    rate.refuse(9.9, 10.0)
    assert rate.a_second == pytest.approx(5.0)
    assert rate.wait(0, 10.0) == pytest.approx(0.2)
    assert rate.wait(3, 10.0) == pytest.approx(0.8)


def test_refusals_of_one_burst_halve_it_once() -> None:
    rate = Rate()
    for _ in range(8):
        rate.take(0.0)
    rate.refuse(0.0, 1.0)
    once = rate.a_second
    for _ in range(7):
        rate.refuse(0.0, 1.1)
    assert rate.a_second == once
    rate.refuse(1.2, 1.3)
    assert rate.a_second == once / 2


def test_successes_give_the_lost_half_back_within_a_minute_and_go_on() -> None:
    rate = Rate()
    for number in range(100):
        rate.take(number / 10)
    rate.refuse(9.9, 10.0)
    seen = [rate.a_second]
    for number in range(1, 121):
        rate.succeed(10.0 + number * RECOVERY_SECONDS / 120)
        seen.append(rate.a_second)
    gains = [after - before for before, after in itertools.pairwise(seen)]
    assert gains == pytest.approx([gains[0]] * 120)  # additive
    assert rate.a_second == pytest.approx(10.0)
    rate.succeed(10_000.0)
    assert rate.a_second == pytest.approx(15.0)  # a pause isn't taken for successes


def test_a_limit_that_has_grown_far_is_forgotten() -> None:
    rate = Rate()
    rate.take(0.0)
    rate.refuse(0.0, 1.0)
    now = 1.0
    while rate.a_second < math.inf and now < 1000:
        now += 1.0
        rate.succeed(now)
    assert now < 500
    assert rate.wait(10, now) == 0


def test_one_a_minute_is_tried_after_however_many_refusals() -> None:
    rate = Rate()
    for number in range(100):
        rate.take(float(number))
        rate.refuse(float(number), number + 0.5)
    assert rate.a_second == pytest.approx(LOWEST_RATE)
    assert rate.wait(0, 99.5) <= 60.0
