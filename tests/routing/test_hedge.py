"""A second upstream for a slow first one: only then, the faster one wins, and the other is let go."""

from __future__ import annotations

import asyncio
from time import perf_counter

import pytest

from backends.errors import BackendUnavailable
from routing.router import Router
from routing.ticket import Ticket
from routing.upstream import Upstream
from tests.fakes import FakeBackend
from tests.routing.test_admission import REQUEST, router


def hedging(*backends: FakeBackend, after_seconds: float = 0.01, policy: str = "gguf_first") -> Router:
    upstreams = [Upstream(backend) for backend in backends]
    return router(*upstreams, policy=policy, retry={"hedge_after_seconds": after_seconds})


def in_flight(the_router: Router) -> list[int]:
    return [upstream.in_flight for upstream in the_router.lanes["m"].pool.upstreams]


async def test_the_second_one_answers_for_one_that_hangs() -> None:
    slow, fast = FakeBackend("gguf", before=[asyncio.Event()]), FakeBackend("vllm")
    the_router = hedging(slow, fast)
    ticket = Ticket()
    routed = await the_router.dispatch(REQUEST, ticket)
    assert (routed.upstream.kind, ticket.attempts, ticket.upstream) == ("vllm", 2, routed.upstream)
    assert (slow.cancelled, in_flight(the_router), routed.reason) == (1, [0, 1], "hedge")
    routed.close()
    assert in_flight(the_router) == [0, 0]


async def test_one_that_answers_in_time_is_the_only_one_asked() -> None:
    first, second = FakeBackend("gguf"), FakeBackend("vllm")
    the_router = hedging(first, second, after_seconds=60)
    routed = await the_router.dispatch(REQUEST)
    routed.close()
    assert (routed.upstream.kind, second.requests) == ("gguf", [])


async def test_by_speed_one_that_hangs_is_not_asked_first_again() -> None:
    slow, fast = FakeBackend("gguf", before=[asyncio.Event()]), FakeBackend("vllm")
    the_router = hedging(slow, fast, policy="fastest")
    for _ in range(3):
        routed = await the_router.dispatch(REQUEST)
        routed.succeeded(None, 0)
        routed.close()
        assert routed.upstream.kind == "vllm"
    assert (len(slow.requests), len(fast.requests)) == (1, 3)


async def test_waiting_for_less_than_is_usual_says_nothing() -> None:
    slow, fast = FakeBackend("gguf", before=[asyncio.Event()]), FakeBackend("vllm")
    the_router = hedging(slow, fast)
    upstream = the_router.lanes["m"].pool.upstreams[0]
    upstream.answered(perf_counter(), 60.0, None, 0, 1)
    usual = upstream.pace
    (await the_router.dispatch(REQUEST)).close()
    assert (slow.cancelled, upstream.pace) == (1, usual)


async def test_the_first_one_may_still_win() -> None:
    hold = asyncio.Event()
    slow, slower = FakeBackend("gguf", before=[hold]), FakeBackend("vllm", before=[asyncio.Event()])
    the_router = hedging(slow, slower)
    asking = asyncio.create_task(the_router.dispatch(REQUEST))
    await slower.called.wait()
    hold.set()
    routed = await asking
    assert (routed.upstream.kind, slower.cancelled, in_flight(the_router)) == ("gguf", 1, [1, 0])
    routed.close()


async def test_a_client_that_leaves_ends_both() -> None:
    first, second = (FakeBackend(kind, before=[asyncio.Event()]) for kind in ("gguf", "vllm"))
    the_router = hedging(first, second)
    asking = asyncio.create_task(the_router.dispatch(REQUEST))
    await second.called.wait()
    asking.cancel()
    await asyncio.wait([asking])
    assert (first.cancelled, second.cancelled, in_flight(the_router)) == (1, 1, [0, 0])


async def test_when_both_fail_the_client_gets_an_error_and_nothing_is_left() -> None:
    hold = asyncio.Event()
    first = FakeBackend("gguf", before=[hold, BackendUnavailable("first")])
    second = FakeBackend("vllm", before=[BackendUnavailable("second")])
    the_router = hedging(first, second)
    asking = asyncio.create_task(the_router.dispatch(REQUEST))
    await second.called.wait()
    hold.set()
    with pytest.raises(BackendUnavailable):
        await asking
    assert in_flight(the_router) == [0, 0]


@pytest.mark.parametrize("turns", range(9))
async def test_a_client_that_leaves_as_the_answer_comes_leaves_nothing(turns: int) -> None:
    answering = asyncio.Event()
    first, second = FakeBackend("gguf", before=[asyncio.Event()]), FakeBackend("vllm", before=[answering])
    the_router = hedging(first, second)
    asking = asyncio.create_task(the_router.dispatch(REQUEST))
    await second.called.wait()
    answering.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait([asking])
    if not asking.cancelled():
        asking.result().close()
    async with asyncio.timeout(10):
        while in_flight(the_router) != [0, 0]:  # noqa: ASYNC110 - others run until it is so
            await asyncio.sleep(0)
    assert first.open + second.open == 0
