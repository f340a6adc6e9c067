"""Who is asked for numbers when, and with what a worker counts that does not answer or is no more."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client import CollectorRegistry

from gateway.workers.channel import Channel
from gateway.workers.tally import Member, Tally
from gateway.workers.totals import Family


def page(number: float) -> list[Family]:
    return [
        ["asked", "counter", "Asked.", [["asked_total", {}, number, None]]],
        ["held", "gauge", "Held.", [["held", {}, number, None]]],
    ]


def values(families: list[Family]) -> dict[str, float]:
    return {sample: value for family in families for sample, _, value, _ in family[3]}


@asynccontextmanager
async def worker(tally: Tally, index: int) -> AsyncIterator[tuple[Member, Channel]]:
    """A member of the tally and the worker's end of its channel."""
    ours, theirs = socket.socketpair()
    channel, end = await Channel.open(ours), await Channel.open(theirs)
    yield tally.join(index, channel), end
    channel.close()
    end.close()


async def question(end: Channel) -> None:
    async with asyncio.timeout(5):
        assert await end.receive() == {"ask": "numbers"}


async def test_everybody_is_asked_for_every_total() -> None:
    tally = Tally(CollectorRegistry())
    async with worker(tally, 0) as (one, end_one), worker(tally, 1) as (other, end_other):
        for round_number in (1, 2):
            total = asyncio.create_task(tally.total())
            await question(end_one)
            one.answered(page(round_number))
            await question(end_other)
            assert not total.done()
            other.answered(page(10))
            assert values(await total)["asked_total"] == 10 + round_number


async def test_worker_that_hangs_counts_with_its_last_numbers_and_is_asked_once() -> None:
    tally = Tally(CollectorRegistry(), patience_seconds=0.01)
    async with worker(tally, 0) as (hanging, end):
        first = asyncio.create_task(tally.total())
        await question(end)
        hanging.answered(page(5))
        assert values(await first)["asked_total"] == 5
        for _ in range(3):
            assert values(await tally.total())["asked_total"] == 5
        await question(end)
        hanging.answered(page(8))
        last = asyncio.create_task(tally.total())
        # The next thing that the worker is asked belongs to this total: the three before were one question.
        await question(end)
        hanging.answered(page(9))
        assert values(await last)["asked_total"] == 9


async def test_worker_that_ended_goes_on_counting_and_its_successor_is_a_restart() -> None:
    tally = Tally(CollectorRegistry())
    async with worker(tally, 0) as (member, end):
        total = asyncio.create_task(tally.total())
        await question(end)
        member.answered(page(5))
        assert values(await total)["upshift_worker_restarts_total"] == 0
        asked = asyncio.create_task(tally.total())
        await question(end)
        tally.leave(member)
        assert values(await asked).get("held") is None
    async with worker(tally, 0) as (member, end):
        total = asyncio.create_task(tally.total())
        await question(end)
        member.answered(page(1))
        found = values(await total)
    assert (found["asked_total"], found["held"], found["upshift_worker_restarts_total"]) == (6, 1, 1)


async def test_who_asks_during_a_round_shares_the_next_one() -> None:
    tally = Tally(CollectorRegistry())
    async with worker(tally, 0) as (member, end):
        first = asyncio.create_task(tally.total())
        await question(end)
        later = [asyncio.create_task(tally.total()) for _ in range(5)]
        member.answered(page(1))
        assert values(await first)["asked_total"] == 1
        await question(end)
        member.answered(page(2))
        assert [values(total)["asked_total"] for total in await asyncio.gather(*later)] == [2] * 5


async def test_only_workers_that_accept_connections_are_counted() -> None:
    tally = Tally(CollectorRegistry(), patience_seconds=0.0)
    async with worker(tally, 0), worker(tally, 1) as (member, _):
        member.serving = True
        assert values(await tally.total())["upshift_workers"] == 1


async def test_message_that_breaks_off_is_the_end() -> None:
    ours, theirs = socket.socketpair()
    channel = await Channel.open(ours)
    theirs.sendall(b'{"whole": 1}\n{"half": ')
    theirs.close()
    received: list[Any] = [await channel.receive(), await channel.receive()]
    assert received == [{"whole": 1}, None]
    channel.close()
