"""What a limit admits, what its headers say, and when a refused client may come again."""

from __future__ import annotations

import pytest

from gateway.cost import estimate_tokens
from gateway.errors import RateLimited, TooManyTokens, answer
from gateway.limits import Limits
from gateway.ratelimit_store import LimitStore
from gateway.windows import MAX_TOKENS, duration
from tests.gateway.metering import Meter, fields, left


def test_as_many_as_the_limit_come_at_once_and_the_next_when_these_have_left_the_window() -> None:
    meter = Meter(Limits(requests_per_minute=6))
    meter.clock.pass_seconds(0.25)
    assert [left(meter.reserve(), "requests") for _ in range(6)] == [5, 4, 3, 2, 1, 0]
    with pytest.raises(RateLimited) as caught:
        meter.reserve()
    # The sixty parts of a second after the one in which they came, and what is left of that.
    assert (caught.value.limit, caught.value.retry_after_seconds) == ("requests", 60.75)
    meter.clock.pass_seconds(60.749999)
    with pytest.raises(RateLimited):
        meter.reserve()
    meter.clock.pass_seconds(0.000001)
    assert [left(meter.reserve(), "requests") for _ in range(6)] == [5, 4, 3, 2, 1, 0]
    with pytest.raises(RateLimited):
        meter.reserve()


def test_requests_leave_the_window_as_they_came() -> None:
    meter = Meter(Limits(requests_per_minute=3))
    for _ in range(3):
        meter.reserve()
        meter.clock.pass_seconds(10)
    for _ in range(9):
        with pytest.raises(RateLimited) as caught:
            meter.reserve()
        meter.clock.pass_seconds(caught.value.retry_after_seconds)
        assert left(meter.reserve(), "requests") == 0


def test_a_long_pause_gives_no_more_than_the_limit() -> None:
    meter = Meter(Limits(requests_per_minute=3))
    for _ in range(2):
        assert [left(meter.reserve(), "requests") for _ in range(3)] == [2, 1, 0]
        with pytest.raises(RateLimited):
            meter.reserve()
        meter.clock.pass_seconds(86_400)


def test_headers_say_limit_rest_and_time_until_nothing_is_counted() -> None:
    meter = Meter(Limits(requests_per_minute=60, tokens_per_minute=1000))
    lines = meter.reserve(250).header_lines()
    assert fields(lines) == {
        "limit-requests": "60",
        "remaining-requests": "59",
        "reset-requests": "1m1s",
        "limit-tokens": "1000",
        "remaining-tokens": "750",
        "reset-tokens": "1m1s",
    }
    meter.clock.pass_seconds(7.5)
    # A request that takes no tokens: the last that count are those of before.
    assert fields(meter.reserve(0).header_lines()) == {
        "limit-requests": "60",
        "remaining-requests": "58",
        "reset-requests": "1m0.5s",
        "limit-tokens": "1000",
        "remaining-tokens": "750",
        "reset-tokens": "53.5s",
    }
    meter.clock.pass_seconds(53.5)
    assert fields(meter.reserve(0).header_lines())["reset-tokens"] == "0ms"


def test_headers_are_the_same_words_in_a_refusal() -> None:
    meter = Meter(Limits(requests_per_minute=1, tokens_per_minute=100))
    meter.reserve(40)
    with pytest.raises(RateLimited) as caught:
        meter.reserve(1)
    refusal = answer(caught.value, "r")
    sent = dict(refusal.headers)
    assert refusal.status == 429
    assert (sent[b"retry-after"], sent[b"retry-after-ms"]) == (b"61", b"61000")
    assert sent[b"x-ratelimit-remaining-requests"] == b"0"
    assert sent[b"x-ratelimit-remaining-tokens"] == b"60"
    assert sent[b"x-ratelimit-reset-requests"] == b"1m1s"


@pytest.mark.parametrize(
    ("limits", "names"),
    [
        (Limits(), set()),
        (Limits(concurrent=1), set()),
        (Limits(requests_per_minute=1), {"limit-requests", "remaining-requests", "reset-requests"}),
        (Limits(tokens_per_minute=1), {"limit-tokens", "remaining-tokens", "reset-tokens"}),
    ],
    ids=["nothing", "concurrent", "requests", "tokens"],
)
def test_only_what_is_limited_has_headers(limits: Limits, names: set[str]) -> None:
    assert set(fields(Meter(limits).reserve(1).header_lines())) == names


def test_nothing_is_taken_by_a_refused_request() -> None:
    meter = Meter(Limits(requests_per_minute=10, tokens_per_minute=100, concurrent=5))
    meter.reserve(60).settle(None)
    for _ in range(20):
        with pytest.raises(RateLimited):
            meter.reserve(41)
    last = meter.reserve(40)
    assert (left(last, "requests"), left(last, "tokens")) == (8, 0)


def test_of_several_limits_the_one_that_holds_longest_is_named() -> None:
    meter = Meter(Limits(requests_per_minute=2, tokens_per_minute=100, concurrent=2))
    meter.reserve(60)
    meter.clock.pass_seconds(20)
    meter.reserve(40)
    with pytest.raises(RateLimited) as caught:
        meter.reserve(70)
    assert (caught.value.limit, caught.value.retry_after_seconds) == ("tokens", 61.0)
    assert "100 tokens per minute" in caught.value.message
    with pytest.raises(RateLimited) as caught:
        meter.reserve(0)
    assert (caught.value.limit, caught.value.retry_after_seconds) == ("requests", 41.0)


@pytest.mark.parametrize(
    ("actual", "rest"),
    [(None, 400), (600, 400), (100, 900), (0, 1000), (700, 300), (1500, 0), (-5, 1000)],
    ids=["unknown keeps the estimate", "as estimated", "less", "nothing", "more", "overdrawn", "nonsense"],
)
def test_settling_takes_or_gives_the_difference(actual: int | None, rest: int) -> None:
    meter = Meter(Limits(tokens_per_minute=1000))
    meter.reserve(600).settle(actual)
    if rest:
        assert left(meter.reserve(0), "tokens") == rest
    else:
        with pytest.raises(RateLimited) as caught:
            meter.reserve(1)
        assert caught.value.retry_after_seconds == 61.0


def test_settling_twice_counts_once() -> None:
    meter = Meter(Limits(tokens_per_minute=1000, concurrent=2))
    first, _ = meter.reserve(600), meter.reserve(100)
    for actual in (100, 0, None, 900):
        first.settle(actual)
    assert left(meter.reserve(0), "tokens") == 800
    with pytest.raises(RateLimited):
        meter.reserve(0)


def test_what_is_given_back_is_given_back_where_it_was_reserved() -> None:
    meter = Meter(Limits(tokens_per_minute=100))
    first = meter.reserve(60)
    meter.clock.pass_seconds(45)
    meter.reserve(40)
    first.settle(10)
    assert left(meter.reserve(0), "tokens") == 50
    meter.clock.pass_seconds(16)
    assert left(meter.reserve(0), "tokens") == 60
    meter.clock.pass_seconds(45)
    assert left(meter.reserve(0), "tokens") == 100


def test_giving_back_what_is_not_counted_any_more_gives_nothing() -> None:
    meter = Meter(Limits(tokens_per_minute=100))
    first = meter.reserve(100)
    meter.clock.pass_seconds(61)
    meter.reserve(30)
    first.settle(0)
    assert left(meter.reserve(0), "tokens") == 70


def test_what_was_taken_beyond_the_estimate_counts_from_now_on() -> None:
    meter = Meter(Limits(tokens_per_minute=100))
    reservation = meter.reserve(10)
    meter.clock.pass_seconds(3600)
    reservation.settle(120)
    with pytest.raises(RateLimited) as caught:
        meter.reserve(0)
    assert caught.value.retry_after_seconds == 61.0
    meter.clock.pass_seconds(61)
    assert left(meter.reserve(0), "tokens") == 100


def test_request_larger_than_the_limit_is_admitted_when_nothing_is_counted() -> None:
    meter = Meter(Limits(tokens_per_minute=100))
    reservation = meter.reserve(4000)
    assert left(reservation, "tokens") == 0
    with pytest.raises(RateLimited) as caught:
        meter.reserve(4000)
    assert caught.value.retry_after_seconds == 61.0
    reservation.settle(70)
    meter.clock.pass_seconds(19)
    with pytest.raises(RateLimited) as caught:
        meter.reserve(4000)
    assert (caught.value.limit, caught.value.retry_after_seconds) == ("tokens", 42.0)
    meter.clock.pass_seconds(42)
    meter.reserve(4000)


def test_concurrent_requests_are_counted_until_they_are_settled() -> None:
    meter = Meter(Limits(concurrent=2))
    first, second = meter.reserve(), meter.reserve()
    with pytest.raises(RateLimited) as caught:
        meter.reserve()
    assert (caught.value.limit, caught.value.retry_after_seconds) == ("concurrent", 1.0)
    first.settle(None)
    third = meter.reserve()
    with pytest.raises(RateLimited):
        meter.reserve()
    second.settle(0)
    third.settle(5)
    meter.reserve()
    meter.reserve()


@pytest.mark.parametrize(
    ("limits", "limit"),
    [
        (Limits(requests_per_minute=1), "requests"),
        (Limits(concurrent=1), "concurrent"),
    ],
    ids=["requests", "concurrent"],
)
def test_looking_takes_nothing_and_says_when_nobody_comes_in(limits: Limits, limit: str) -> None:
    meter = Meter(limits)
    for _ in range(3):
        meter.limiter.look(meter.principal)
    reservation = meter.reserve(10)
    with pytest.raises(RateLimited) as caught:
        meter.limiter.look(meter.principal)
    assert caught.value.limit == limit
    reservation.settle(None)
    meter.clock.pass_seconds(90_000)
    meter.limiter.look(meter.principal)
    meter.reserve(10)


def test_looking_does_not_guess_what_a_request_costs() -> None:
    meter = Meter(Limits(tokens_per_minute=1000))
    meter.reserve(1000)
    meter.limiter.look(meter.principal)


def test_asking_for_too_much_at_once_is_a_bad_request_and_costs_nothing() -> None:
    meter = Meter(Limits(requests_per_minute=2, max_tokens_per_request=100))
    with pytest.raises(TooManyTokens, match=r"at most 100 tokens .* about 101") as caught:
        meter.reserve(101)
    assert answer(caught.value, "r").status == 400
    assert left(meter.reserve(100), "requests") == 1


def test_changed_limits_count_on_from_the_same_record() -> None:
    store = LimitStore(64)
    before = Meter(Limits(requests_per_minute=10), store)
    for _ in range(4):
        before.reserve()
    after = Meter(Limits(requests_per_minute=5, tokens_per_minute=10), store)
    reservation = after.reserve(3)
    assert (left(reservation, "requests"), left(reservation, "tokens")) == (0, 7)


def test_clock_that_goes_back_counts_nothing_away() -> None:
    meter = Meter(Limits(requests_per_minute=60, tokens_per_minute=100))
    meter.reserve(10)
    meter.clock.pass_seconds(-30)
    second = meter.reserve(10)
    assert left(second, "requests") == 58
    second.settle(0)
    assert left(meter.reserve(0), "tokens") == 90
    meter.clock.pass_seconds(90)
    assert left(meter.reserve(), "requests") == 56
    meter.clock.pass_seconds(1)
    assert left(meter.reserve(), "requests") == 58


@pytest.mark.parametrize(
    ("body_bytes", "cap", "n", "tokens"),
    [
        (400, 50, 1, 150),
        (401, 50, 1, 151),
        (0, None, 1, 256),
        (400, None, 2, 612),
        (400, 50, 3, 250),
        (400, 0, 1, 100),
        (400, -7, -7, 100),
        (10, 2**63, 10**9, MAX_TOKENS),
    ],
    ids=["plain", "rounded up", "no cap", "no cap, two", "three answers", "zero", "nonsense", "absurd"],
)
def test_estimate(body_bytes: int, cap: int | None, n: int, tokens: int) -> None:
    assert estimate_tokens(body_bytes, cap, n, 256) == tokens


def test_absurd_figures_stay_within_the_memory_of_a_record() -> None:
    meter = Meter(Limits(tokens_per_minute=1, tokens_per_day=10**9, concurrent=10**6))
    for _ in range(3):
        meter.reserve(10**18).settle(10**30)
        with pytest.raises(RateLimited):
            meter.reserve(1)
        meter.clock.pass_seconds(10**9)


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, b"0ms"),
        (999, b"999ms"),
        (1000, b"1s"),
        (8640, b"8.64s"),
        (59_999, b"59.999s"),
        (60_000, b"1m0s"),
        (72_172, b"1m12.172s"),
        (360_000, b"6m0s"),
        (7_200_010, b"120m0.01s"),
    ],
    ids=str,
)
def test_durations_are_written_as_openai_writes_them(milliseconds: int, text: bytes) -> None:
    assert duration(milliseconds) == text
