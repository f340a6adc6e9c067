"""Several limits at once: a day's tokens, a model's, the whole gateway's; all pay or none, and what nobody served is
given back."""

from __future__ import annotations

import pytest

from gateway.errors import RateLimited, TooManyTokens
from gateway.limits import Account, Limits
from gateway.ratelimit_store import LimitStore
from tests.gateway.metering import Meter, fields, left


def account(store: LimitStore, limits: Limits, number: int = 1) -> Account:
    digest = bytes([number]) * 32
    return Account(f"Account {number}", limits, store.slot_of(digest), digest)


def test_a_day_holds_its_tokens_in_parts_of_24_minutes() -> None:
    meter = Meter(Limits(tokens_per_day=8640))
    # The monotonic clock's part of a day began 1000 s ago.
    first = meter.reserve(8000)
    assert fields(first.header_lines()) == {
        "limit-tokens": "8640",
        "remaining-tokens": "640",
        "reset-tokens": "1447m20s",
    }
    with pytest.raises(RateLimited, match="8640 tokens per day") as caught:
        meter.reserve(641)
    assert (caught.value.limit, caught.value.retry_after_seconds) == ("tokens_per_day", 61 * 1440 - 1000.0)
    meter.clock.pass_seconds(86_400)
    with pytest.raises(RateLimited):
        meter.reserve(641)
    meter.clock.pass_seconds(440)
    second = meter.reserve(641)
    assert left(second, "tokens") == 7999
    meter.clock.pass_seconds(86_400)
    # Of the first nothing counts any more.
    first.settle(0)
    second.settle(1)
    assert left(meter.reserve(0), "tokens") == 8639


def test_a_minute_and_a_day_hold_both_and_headers_tell_the_minute() -> None:
    meter = Meter(Limits(tokens_per_minute=100, tokens_per_day=150))
    first = meter.reserve(100)
    assert fields(first.header_lines())["limit-tokens"] == "100"
    meter.clock.pass_seconds(61)
    with pytest.raises(RateLimited) as caught:
        meter.reserve(60)
    assert caught.value.limit == "tokens_per_day"
    # Given back to the day alone: of that minute nothing counts any more.
    first.settle(20)
    assert left(meter.reserve(60), "tokens") == 40


def test_day_survives_its_own_absurd_figures() -> None:
    meter = Meter(Limits(tokens_per_day=10**9))
    meter.reserve(10**9).settle(10**30)
    with pytest.raises(RateLimited):
        meter.reserve(1)
    meter.clock.pass_seconds(61 * 1440)
    meter.reserve(10**9)


def test_all_accounts_pay_or_none() -> None:
    store = LimitStore(8)
    model = account(store, Limits(requests_per_minute=2))
    meter = Meter(Limits(requests_per_minute=10, tokens_per_minute=1000), store, shared=(model,))
    assert [left(meter.reserve(100), "requests") for _ in range(2)] == [9, 8]
    with pytest.raises(RateLimited, match="Account 1 is limited to 2 requests per minute") as caught:
        meter.reserve(100)
    # The key's own figures, untouched.
    assert dict(caught.value.headers)[b"x-ratelimit-remaining-requests"] == b"8"
    assert dict(caught.value.headers)[b"x-ratelimit-remaining-tokens"] == b"800"
    alone = Meter(Limits(requests_per_minute=10), store)
    assert left(alone.reserve(), "requests") == 7


def test_keys_share_what_the_gateway_has() -> None:
    store = LimitStore(8)
    total = account(store, Limits(tokens_per_minute=100, concurrent=3))
    meters = [Meter(Limits(), store, shared=(total,), key=key) for key in (b"a", b"b", b"c", b"d")]
    first = meters[0].reserve(60)
    meters[1].reserve(40)
    with pytest.raises(RateLimited, match="tokens per minute"):
        meters[2].reserve(1)
    first.settle(10)
    meters[2].reserve(50)
    meters[3].reserve(0)
    with pytest.raises(RateLimited) as caught:
        meters[3].reserve(0)
    assert (caught.value.limit, caught.value.headers) == ("concurrent", ())


def test_narrowest_cap_of_a_request_holds() -> None:
    store = LimitStore(8)
    model = account(store, Limits(max_tokens_per_request=50))
    meter = Meter(Limits(max_tokens_per_request=100), store, shared=(model,))
    with pytest.raises(TooManyTokens, match=r"Account 1 .*at most 50 tokens"):
        meter.reserve(51)
    with pytest.raises(TooManyTokens, match=r"This API key .*at most 100 tokens"):
        meter.reserve(101)


def test_longest_wait_of_all_accounts_is_named() -> None:
    store = LimitStore(8)
    slow, slower = account(store, Limits(requests_per_minute=1), 1), account(store, Limits(tokens_per_day=24), 2)
    meter = Meter(Limits(requests_per_minute=60), store, shared=(slow, slower))
    meter.reserve(24)
    with pytest.raises(RateLimited, match="Account 2") as caught:
        meter.reserve(24)
    assert caught.value.retry_after_seconds == 61 * 1440 - 1000


def test_request_that_nobody_served_is_given_back_by_all() -> None:
    store = LimitStore(8)
    model = account(store, Limits(requests_per_minute=1, concurrent=1))
    meter = Meter(Limits(requests_per_minute=1, tokens_per_minute=100), store, shared=(model,))
    for _ in range(5):
        meter.reserve(100).settle(0, served=False)
    meter.reserve(100).settle(0)
    with pytest.raises(RateLimited):
        meter.reserve(0)


def test_workers_pay_from_the_same_accounts() -> None:
    store = LimitStore(8, workers=2)
    total = account(store, Limits(requests_per_minute=3, concurrent=2))
    first, second = (Meter(Limits(), store, worker, shared=(total,)) for worker in range(2))
    reservation = first.reserve()
    second.reserve()
    with pytest.raises(RateLimited, match="at the same time"):
        second.reserve()
    reservation.settle(0)
    first.reserve()
    store.forget_worker(0)
    with pytest.raises(RateLimited, match="requests per minute"):
        second.reserve()
