"""The scripts at a real Redis against the model that memory has to agree with, to the unit and the millisecond."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings

from gateway.auth import Principal
from gateway.limits import Limits
from gateway.ratelimit import Reservation
from gateway.replicas.limiter import Lease
from tests.gateway.metering import Clock
from tests.gateway.replicas.sharing import CLOCK, Replica, principal, replica
from tests.gateway.window_model import LIMITS, SECOND_US, STEPS, WALKED, Admitted, Bench, Step, walk
from tests.redis_server import RedisServer

NOBODY = principal(Limits(concurrent=10**6), "nobody")


class AtRedis:
    """A worker whose loop runs only while it is asked, and Redis' clock with it."""

    def __init__(self, redis: RedisServer, runner: asyncio.Runner, gateway: Replica, clock: Clock) -> None:
        self._redis = redis
        self._runner = runner
        self._gateway = gateway
        self._clock = clock

    def reserve(self, principal: Principal, estimated_tokens: int) -> Admitted:
        return AtRedisAdmitted(self, self._runner.run(self._reserve(principal, estimated_tokens)))

    def settle(self, lease: Lease | Reservation, actual_tokens: int | None, *, served: bool) -> None:
        self._runner.run(self._settle(lease, actual_tokens, served))

    async def _reserve(self, principal: Principal, estimated_tokens: int) -> Lease | Reservation:
        self._tell_time()
        return await self._gateway.reserve(estimated_tokens, principal)

    async def _settle(self, lease: Lease | Reservation, actual_tokens: int | None, served: bool) -> None:
        self._tell_time()
        lease.settle(actual_tokens, served=served)
        # Over the same connection, and so answered later.
        await self._gateway.reserve(0, NOBODY)

    def _tell_time(self) -> None:
        seconds, microseconds = divmod(self._clock.now_us, 1_000_000)
        self._redis.command("MSET", "clock:s", str(seconds), "clock:us", str(microseconds))
        # As a gateway does it every ten seconds.
        self._gateway.limiter.renew()


class AtRedisAdmitted:
    """A lease that is settled at once."""

    def __init__(self, worker: AtRedis, lease: Lease | Reservation) -> None:
        self._worker = worker
        self._lease = lease

    def header_lines(self) -> bytes:
        return self._lease.header_lines()

    def settle(self, actual_tokens: int | None, *, served: bool = True) -> None:
        self._worker.settle(self._lease, actual_tokens, served=served)


@contextmanager
def bench_of(redis: RedisServer, limits: Limits) -> Iterator[Bench]:
    redis.command("FLUSHALL")
    with asyncio.Runner() as runner:
        connecting = replica(redis.url, limits, clock=CLOCK)
        gateway = runner.run(connecting.__aenter__())
        try:
            runner.run(gateway.until(up=True))
            clock = Clock()
            yield Bench(gateway.key, [AtRedis(redis, runner, gateway, clock)], clock)
        finally:
            runner.run(connecting.__aexit__(None, None, None))


@given(LIMITS.filter(lambda limits: not limits.counts_nothing), STEPS)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_decision_figure_and_wait_is_the_models(
    redis: RedisServer, limits: Limits, steps: Sequence[Step]
) -> None:
    with bench_of(redis, limits) as bench:
        for step in steps:
            bench.step(*step)


@pytest.mark.parametrize("part_us", [SECOND_US, 1440 * SECOND_US], ids=["minutes", "days"])
def test_long_walk_is_the_models(redis: RedisServer, part_us: int) -> None:
    with bench_of(redis, WALKED) as bench:
        for step in walk(5, part_us, 300):
            bench.step(*step)
