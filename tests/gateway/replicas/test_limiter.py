"""Limits at a real Redis: the same as in memory, over several gateways, to the unit."""

from __future__ import annotations

import asyncio

import pytest

from gateway.errors import RateLimited, TooManyTokens
from gateway.limits import Account, Limits
from tests.gateway.metering import fields, left
from tests.gateway.replicas.sharing import principal, replica
from tests.redis_server import RedisServer


async def test_replicas_count_one_key_together(redis: RedisServer) -> None:
    limits = Limits(requests_per_minute=5, tokens_per_minute=1000)
    async with replica(redis.url, limits) as one, replica(redis.url, limits) as other:
        found = [left(await gateway.reserve(100), "requests") for gateway in (one, other, one, other, one)]
        assert found == [4, 3, 2, 1, 0]
        with pytest.raises(RateLimited, match="5 requests per minute") as caught:
            await other.reserve(1)
        assert 11 < caught.value.retry_after_seconds <= 12
        headers = dict(caught.value.headers)
        assert headers[b"x-ratelimit-remaining-requests"] == b"0"
        assert 500 <= int(headers[b"x-ratelimit-remaining-tokens"]) <= 520


async def test_headers_say_what_memory_says(redis: RedisServer) -> None:
    async with replica(redis.url, Limits(requests_per_minute=60, tokens_per_minute=1000)) as gateway:
        assert fields((await gateway.reserve(250)).header_lines()) == {
            "limit-requests": "60",
            "remaining-requests": "59",
            "reset-requests": "1s",
            "limit-tokens": "1000",
            "remaining-tokens": "750",
            "reset-tokens": "15s",
        }
    async with replica(redis.url, Limits(tokens_per_day=8640)) as gateway:
        lines = fields((await gateway.reserve(640, principal(gateway.key.limits, "b"))).header_lines())
        assert (lines["remaining-tokens"], lines["reset-tokens"]) == ("8000", "106m40s")


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
        # A busy machine's second pays off a sixth of a request and 17 tokens.
        assert requests <= left(after, "requests") <= requests + 1
        assert tokens <= left(after, "tokens") <= tokens + 50


async def test_refused_request_takes_nothing_from_any_account(redis: RedisServer) -> None:
    model = Account("The model 'm'", Limits(requests_per_minute=2), 1, b"m" * 32)
    async with replica(redis.url, Limits(requests_per_minute=100), shared=(model,)) as gateway:
        assert [left(await gateway.reserve(), "requests") for _ in range(2)] == [99, 98]
        for _ in range(3):
            with pytest.raises(RateLimited, match="The model 'm' is limited to 2 requests"):
                await gateway.reserve()
        debts = redis.command("HGET", f"{{upshift}}:{gateway.key.digest[:16].hex()}", "requests")
        assert int(debts) <= 2 * 60_000


async def test_longest_wait_is_named_and_true(redis: RedisServer) -> None:
    limits = Limits(requests_per_minute=100, tokens_per_minute=6000, tokens_per_day=86_400)
    async with replica(redis.url, limits) as gateway:
        await gateway.reserve(6000)
        with pytest.raises(RateLimited) as caught:
            await gateway.reserve(100)
        assert (caught.value.limit, caught.value.retry_after_seconds <= 1.0) == ("tokens", True)
        async with asyncio.timeout(20):
            await asyncio.sleep(caught.value.retry_after_seconds)
            await gateway.reserve(100)


async def test_request_larger_than_the_bucket_comes_in_when_it_is_full(redis: RedisServer) -> None:
    async with replica(redis.url, Limits(tokens_per_minute=100)) as gateway:
        assert left(await gateway.reserve(4000), "tokens") == 0
        with pytest.raises(RateLimited) as caught:
            await gateway.reserve(1)
        assert 2300 < caught.value.retry_after_seconds < 2400


async def test_figures_at_the_upper_bound_are_exact(redis: RedisServer) -> None:
    limits = Limits(tokens_per_day=1_000_000_000)
    async with replica(redis.url, limits) as gateway:
        await gateway.reserve(999_999_998)
        lines = fields((await gateway.reserve(1)).header_lines())
        # Ten thousand tokens come back each second.
        assert 1 <= int(lines["remaining-tokens"]) < 200_000
        (await gateway.reserve(0)).settle(10**30)
        with pytest.raises(RateLimited, match="try again in 172800 s"):
            await gateway.reserve(1_000_000_000)


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


async def test_nothing_is_left_of_a_key_that_owes_nothing(redis: RedisServer) -> None:
    async with replica(redis.url, Limits(requests_per_minute=60_000)) as gateway:
        (await gateway.reserve()).settle(0)
        await gateway.reserve()
        keys = redis.command("KEYS", "*")
        assert all(0 < redis.command("PTTL", key) <= 91_000 for key in keys)
        assert all(key.startswith(b"{upshift}:") for key in keys)


async def test_clock_that_was_set_back_pays_nothing_and_goes_on(redis: RedisServer) -> None:
    async with replica(redis.url, Limits(requests_per_minute=60)) as gateway:
        for _ in range(60):
            await gateway.reserve()
        bucket = f"{{upshift}}:{gateway.key.digest[:16].hex()}"
        an_hour_on = int(redis.command("HGET", bucket, "at")) + 3_600_000
        redis.command("HSET", bucket, "at", str(an_hour_on), "requests", str(60 * 60_000))
        with pytest.raises(RateLimited) as caught:
            await gateway.reserve()
        assert caught.value.retry_after_seconds <= 1.0
        redis.command("HSET", bucket, "requests", str(59 * 60_000))
        await gateway.reserve()
        assert int(redis.command("HGET", bucket, "at")) < an_hour_on


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
