"""Limits at a real Redis: the same as in memory, over several gateways, to the unit."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from gateway.errors import RateLimited, TooManyTokens
from gateway.limits import Account, Limits
from gateway.slot import Slot
from tests.gateway.metering import fields, left
from tests.gateway.replicas.sharing import CLOCK, Replica, principal, replica
from tests.redis_server import RedisServer

# Where in an account's counts is what (gateway/replicas/shared.lua).
BEHIND, SUMS = 1, 2


def counts(gateway: Replica) -> str:
    return f"{{upshift}}:{gateway.key.digest[:16].hex()}:counts"


def word(redis: RedisServer, gateway: Replica, place: int) -> int:
    """One of the integers that Redis keeps of the key."""
    found: int = redis.command("BITFIELD", counts(gateway), "GET", "i64", f"#{place}")[0]
    return found


async def test_replicas_count_one_key_together(redis: RedisServer) -> None:
    limits = Limits(requests_per_minute=5, tokens_per_minute=1000)
    async with replica(redis.url, limits) as one, replica(redis.url, limits) as other:
        found = [left(await gateway.reserve(100), "requests") for gateway in (one, other, one, other, one)]
        assert found == [4, 3, 2, 1, 0]
        with pytest.raises(RateLimited, match="5 requests per minute") as caught:
            await other.reserve(1)
        # A busy machine's run may take a while.
        assert 40 < caught.value.retry_after_seconds <= 61
        headers = dict(caught.value.headers)
        assert headers[b"x-ratelimit-remaining-requests"] == b"0"
        assert headers[b"x-ratelimit-remaining-tokens"] == b"500"


async def test_headers_say_what_memory_says(redis: RedisServer) -> None:
    redis.command("MSET", "clock:s", "1000", "clock:us", "250000")
    async with replica(redis.url, Limits(requests_per_minute=60, tokens_per_minute=1000), clock=CLOCK) as gateway:
        assert fields((await gateway.reserve(250)).header_lines()) == {
            "limit-requests": "60",
            "remaining-requests": "59",
            "reset-requests": "1m0.75s",
            "limit-tokens": "1000",
            "remaining-tokens": "750",
            "reset-tokens": "1m0.75s",
        }
    async with replica(redis.url, Limits(tokens_per_day=8640), clock=CLOCK) as gateway:
        lines = fields((await gateway.reserve(640, principal(gateway.key.limits, "b"))).header_lines())
        assert (lines["remaining-tokens"], lines["reset-tokens"]) == ("8000", "1447m19.75s")


@pytest.mark.parametrize("count", [1, 4])
async def test_running_requests_are_counted_until_settled(redis: RedisServer, count: int) -> None:
    limits = Limits(concurrent=count)
    async with replica(redis.url, limits) as one, replica(redis.url, limits) as other:
        leases = [await (one, other)[number % 2].reserve() for number in range(count)]
        for gateway in (one, other):
            with pytest.raises(RateLimited, match="at the same time") as caught:
                await gateway.reserve()
            assert caught.value.retry_after_seconds == 1.0
        leases[0].settle(None)
        leases[0].settle(None)
        # Over the same connection, and so after the settlement.
        await one.reserve()
        with pytest.raises(RateLimited):
            await one.reserve()


@pytest.mark.parametrize(
    ("actual", "served", "requests", "tokens"),
    [
        (None, True, 8, 400),
        (100, True, 8, 900),
        (0, True, 8, 1000),
        (0, False, 9, 1000),
        (700, True, 8, 300),
        (-5, True, 8, 1000),
    ],
    ids=["unknown", "less", "nothing", "nobody served", "more", "nonsense"],
)
async def test_settling_takes_or_gives_the_difference(
    redis: RedisServer, actual: int | None, served: bool, requests: int, tokens: int
) -> None:
    async with replica(redis.url, Limits(requests_per_minute=10, tokens_per_minute=1000)) as gateway:
        (await gateway.reserve(600)).settle(actual, served=served)
        after = await gateway.reserve(0)
        assert (left(after, "requests"), left(after, "tokens")) == (requests, tokens)


async def test_refused_request_takes_nothing_from_any_account(redis: RedisServer) -> None:
    model = Account("The model 'm'", Limits(requests_per_minute=2), Slot(b"m" * 32), b"m" * 32)
    async with replica(redis.url, Limits(requests_per_minute=100), shared=(model,)) as gateway:
        assert [left(await gateway.reserve(), "requests") for _ in range(2)] == [99, 98]
        for _ in range(3):
            with pytest.raises(RateLimited, match="The model 'm' is limited to 2 requests"):
                await gateway.reserve()
        assert word(redis, gateway, SUMS) == 2


async def test_wait_by_redis_own_clock_is_true(redis: RedisServer) -> None:
    limits = Limits(requests_per_minute=100, tokens_per_minute=6000, tokens_per_day=86_400)
    async with replica(redis.url, limits) as gateway:
        await gateway.reserve(6000)
        # As if that had been a minute ago.
        redis.command("BITFIELD", counts(gateway), "INCRBY", "i64", f"#{BEHIND}", "59500")
        with pytest.raises(RateLimited) as caught:
            await gateway.reserve(100)
        assert (caught.value.limit, caught.value.retry_after_seconds <= 1.5) == ("tokens", True)
        async with asyncio.timeout(20):
            await asyncio.sleep(caught.value.retry_after_seconds)
            await gateway.reserve(6000)


async def test_request_larger_than_the_limit_comes_in_when_nothing_is_counted(redis: RedisServer) -> None:
    async with replica(redis.url, Limits(tokens_per_minute=100)) as gateway:
        assert left(await gateway.reserve(4000), "tokens") == 0
        with pytest.raises(RateLimited) as caught:
            await gateway.reserve(4000)
        assert 40 < caught.value.retry_after_seconds <= 61


async def test_figures_at_the_upper_bound_are_exact(redis: RedisServer) -> None:
    limits = Limits(tokens_per_day=1_000_000_000)
    async with replica(redis.url, limits) as gateway:
        await gateway.reserve(999_999_998)
        assert left(await gateway.reserve(1), "tokens") == 1
        for lease in [await gateway.reserve(0) for _ in range(9)]:
            lease.settle(10**30)
        with pytest.raises(RateLimited, match="1000000000 tokens per day"):
            await gateway.reserve(0)
        assert word(redis, gateway, SUMS + 2) == 9_999_999_999


async def test_cap_of_a_request_asks_nobody(redis: RedisServer) -> None:
    async with replica(redis.url, Limits(max_tokens_per_request=10)) as gateway:
        with pytest.raises(TooManyTokens):
            await gateway.reserve(11)
        await gateway.reserve(10)
        assert redis.command("DBSIZE") == 0


async def test_gateway_that_is_gone_leaves_its_places_after_a_while(redis: RedisServer) -> None:
    async with replica(redis.url, Limits(concurrent=1)) as gateway:
        await gateway.reserve()
    leases = f"{{upshift}}:{gateway.key.digest[:16].hex()}:leases"
    assert 30_000 < redis.command("PTTL", leases) <= 90_000
    async with replica(redis.url, Limits(concurrent=1)) as successor:
        with pytest.raises(RateLimited):
            await successor.reserve()
        # As if half a minute had gone by.
        (name,) = redis.command("ZRANGE", leases, "0", "-1")
        redis.command("ZADD", leases, "1", name)
        await successor.reserve()


async def test_long_requests_keep_their_places(redis: RedisServer) -> None:
    async with replica(redis.url, Limits(concurrent=1)) as gateway:
        lease = await gateway.reserve()
        leases = f"{{upshift}}:{gateway.key.digest[:16].hex()}:leases"
        (name,) = redis.command("ZRANGE", leases, "0", "-1")
        redis.command("ZADD", leases, "1", name)
        gateway.limiter.renew()
        with pytest.raises(RateLimited):
            await gateway.reserve()
        lease.settle(0)
        await gateway.reserve()


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [(Limits(requests_per_minute=5), 121), (Limits(5, tokens_per_day=50), 61 * 1440 + 60), (Limits(concurrent=1), 90)],
    ids=["minute", "day", "concurrent"],
)
async def test_nothing_is_left_when_nothing_is_counted_any_more(
    redis: RedisServer, limits: Limits, seconds: int
) -> None:
    async with replica(redis.url, limits) as gateway:
        for _ in range(7):
            with suppress(RateLimited):
                (await gateway.reserve()).settle(0)
        with suppress(RateLimited):
            await gateway.reserve()
        kept = {key: redis.command("PTTL", key) / 1000 for key in redis.command("KEYS", "*")}
        assert all(key.startswith(b"{upshift}:") for key in kept)
        assert seconds - 40 < max(kept.values()) <= seconds
        assert min(kept.values()) > 0
        # Small, whatever has been counted.
        assert all(redis.command("STRLEN", key) <= 8 * (5 + 3 * 61) for key in kept if key.endswith(b":counts"))


async def test_giving_back_what_is_not_counted_any_more_gives_nothing(redis: RedisServer) -> None:
    async with replica(redis.url, Limits(requests_per_minute=9, tokens_per_minute=100), clock=CLOCK) as gateway:
        redis.command("MSET", "clock:s", "1000", "clock:us", "0")
        first = await gateway.reserve(100)
        # The part of now is where that one was.
        redis.command("SET", "clock:s", "1061")
        await gateway.reserve(30)
        first.settle(0, served=False)
        after = await gateway.reserve(0)
        assert (left(after, "requests"), left(after, "tokens")) == (7, 70)


async def test_clock_that_was_set_back_counts_nothing_away_and_goes_on(redis: RedisServer) -> None:
    limits = Limits(requests_per_minute=3, tokens_per_minute=100)
    async with replica(redis.url, limits, clock=CLOCK) as gateway:

        def at(seconds: float) -> None:
            redis.command("MSET", "clock:s", f"{seconds:.0f}", "clock:us", "0")

        at(5000)
        first = await gateway.reserve(50)
        at(5030)
        second = await gateway.reserve(10)
        at(1000)
        third = await gateway.reserve(10)
        assert (left(third, "requests"), left(third, "tokens")) == (0, 30)
        first.settle(5)
        third.settle(0)
        at(1030)
        with pytest.raises(RateLimited) as caught:
            await gateway.reserve(1)
        # The first came half a minute before the clock was set back.
        assert caught.value.retry_after_seconds == 1.0
        at(1031)
        fourth = await gateway.reserve(0)
        assert (left(fourth, "requests"), left(fourth, "tokens")) == (0, 90)
        # Once more, by less than a part and by little more.
        at(1030)
        second.settle(90)
        with pytest.raises(RateLimited) as caught:
            await gateway.reserve(1)
        assert caught.value.retry_after_seconds == 30.0


async def test_client_that_leaves_while_redis_is_asked_pays_nothing(redis: RedisServer) -> None:
    async with replica(redis.url, Limits(requests_per_minute=1, tokens_per_minute=100, concurrent=1)) as gateway:
        await gateway.until(up=True)
        for _ in range(20):
            asking = asyncio.ensure_future(gateway.reserve(100))
            await asyncio.sleep(0)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
        await gateway.reserve(100)
