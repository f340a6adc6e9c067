"""Waiting for a place: bounded, in turn, with a deadline, and without a trace once it is over."""

from __future__ import annotations

import asyncio
import random
from math import inf
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.base import BackendState, InferenceRequest, Operation
from backends.errors import (
    BackendError,
    BackendLoading,
    BackendOverloaded,
    BackendProtocolError,
    BackendUnavailable,
)
from config.routing import RoutingSettings
from routing.catalog import CatalogEntry, ModelCatalog
from routing.errors import Overloaded, Unavailable
from routing.health import BreakerState
from routing.policy import plan_for
from routing.routed import Routed
from routing.router import Router
from routing.ticket import Ticket
from routing.upstream import Upstream, UpstreamPool
from tests.fakes import FakeBackend

REQUEST = InferenceRequest(Operation.CHAT, "m", b"{}", False, "request-1")


def router(*upstreams: Upstream, **routing: Any) -> Router:
    """A router for the model "m"."""
    plan = plan_for("m", RoutingSettings.model_validate(routing))
    return Router(ModelCatalog([(CatalogEntry("m"), UpstreamPool("m", upstreams))]), {"m": plan})


async def waiting(router: Router, number: int) -> None:
    """Returns when so many wait."""
    async with asyncio.timeout(10):
        while router.waiting != [("m", number)]:  # noqa: ASYNC110 - others run until it is so
            await asyncio.sleep(0)


async def test_who_finds_no_place_waits_for_one() -> None:
    upstream = Upstream(FakeBackend(), limit=1)
    the_router = router(upstream)
    first = await the_router.dispatch(REQUEST)
    ticket = Ticket()
    second = asyncio.create_task(the_router.dispatch(REQUEST, ticket))
    await waiting(the_router, 1)
    assert upstream.in_flight == 1
    first.close()
    routed = await second
    assert (upstream.in_flight, routed.reason, ticket.attempts) == (1, "only", 1)
    assert ticket.waited_seconds > 0
    routed.close()
    assert (upstream.in_flight, the_router.waiting) == (0, [("m", 0)])


async def test_turns_go_from_key_to_key_and_priority_before_all() -> None:
    the_router = router(Upstream(FakeBackend(), limit=1), queue={"priority": {"gold": 1}})
    running = await the_router.dispatch(REQUEST)
    order: list[str] = []

    async def ask(name: str, key: str, tier: str | None = None) -> None:
        routed = await the_router.dispatch(REQUEST, Ticket(key, tier))
        order.append(name)
        routed.close()

    asked = [("a0", "a"), ("a1", "a"), ("a2", "a"), ("b0", "b"), ("g0", "g", "gold")]
    async with asyncio.TaskGroup() as group:
        for number, arguments in enumerate(asked, 1):
            group.create_task(ask(*arguments))
            await waiting(the_router, number)
        running.close()
    assert order == ["g0", "a0", "b0", "a1", "a2"]


async def test_a_full_queue_refuses_with_a_time_that_follows_from_the_load() -> None:
    upstream = Upstream(FakeBackend(), limit=2)
    the_router = router(upstream, queue={"max_waiting": 3})
    running = [await the_router.dispatch(REQUEST) for _ in range(2)]
    upstream.pace = upstream.pace.with_answer(0.0, 8.0, None, 0)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(the_router.dispatch(REQUEST)) for _ in range(3)]
        await waiting(the_router, 3)
        with pytest.raises(Overloaded) as refused:
            await the_router.dispatch(REQUEST)
        # Three wait and one more would, for two places, eight seconds each.
        assert refused.value.retry_after_seconds == pytest.approx(16)
        for task in tasks:
            task.cancel()
    await waiting(the_router, 0)
    for routed in running:
        routed.close()
    assert upstream.in_flight == 0


async def test_nobody_waits_for_one_that_wants_to_be_left_alone_for_longer() -> None:
    upstreams = [Upstream(FakeBackend(), limit=1) for _ in range(2)]
    the_router = router(*upstreams, queue={"max_wait_seconds": 10})
    upstreams[0].breaker.rest(perf_counter(), 30)
    held = await the_router.dispatch(REQUEST)
    # The other one may be free in time.
    waits = asyncio.create_task(the_router.dispatch(REQUEST))
    await waiting(the_router, 1)
    held.close()
    (await waits).close()
    upstreams[1].breaker.rest(perf_counter(), 20)
    with pytest.raises(Overloaded) as refused:
        await the_router.dispatch(REQUEST)
    assert refused.value.retry_after_seconds == pytest.approx(20, abs=1)
    assert [upstream.in_flight for upstream in upstreams] == [0, 0]


async def test_nobody_waits_longer_than_allowed() -> None:
    upstream = Upstream(FakeBackend(), limit=1)
    the_router = router(upstream, queue={"max_wait_seconds": 0.1})
    running = await the_router.dispatch(REQUEST)
    ticket = Ticket()
    with pytest.raises(Overloaded):
        await the_router.dispatch(REQUEST, ticket)
    assert (ticket.attempts, ticket.upstream, the_router.waiting) == (0, None, [("m", 0)])
    running.close()


async def test_a_model_that_loads_is_waited_for_and_then_told_with_its_progress() -> None:
    backend = FakeBackend(state=BackendState.STARTING)
    backend.progress = 0.25
    the_router = router(Upstream(backend), queue={"max_wait_seconds": 0.1})
    with pytest.raises(BackendLoading) as caught:
        await the_router.dispatch(REQUEST)
    assert (caught.value.progress, backend.requests) == (0.25, [])
    patient = router(Upstream(backend))
    asked = [asyncio.create_task(patient.dispatch(REQUEST)) for _ in range(3)]
    await waiting(patient, 3)
    backend.state = BackendState.READY
    for task in asked:
        (await task).close()
    assert len(backend.requests) == 3


async def test_what_cannot_come_back_is_not_waited_for() -> None:
    backend = FakeBackend(state=BackendState.FAILED)
    the_router = router(Upstream(backend))
    with pytest.raises(Unavailable):
        await the_router.dispatch(REQUEST)
    backend.state = BackendState.STARTING
    task = asyncio.create_task(the_router.dispatch(REQUEST))
    await waiting(the_router, 1)
    backend.state = BackendState.FAILED
    with pytest.raises(Unavailable):
        await task
    assert backend.requests == []


async def test_a_client_that_leaves_while_it_waits_costs_nothing() -> None:
    backend = FakeBackend()
    upstream = Upstream(backend, limit=1)
    the_router = router(upstream)
    running = await the_router.dispatch(REQUEST)
    task = asyncio.create_task(the_router.dispatch(REQUEST))
    await waiting(the_router, 1)
    task.cancel()
    await asyncio.wait([task])
    assert (the_router.waiting, upstream.in_flight, len(backend.requests)) == ([("m", 0)], 1, 1)
    # And one that leaves in the moment in which it is given a place gives it on.
    leaving, staying = (asyncio.create_task(the_router.dispatch(REQUEST)) for _ in range(2))
    await waiting(the_router, 2)
    running.close()
    leaving.cancel()
    routed = await staying
    assert (upstream.in_flight, len(backend.requests)) == (1, 2)
    routed.close()
    assert upstream.in_flight == 0


@pytest.mark.parametrize(("limit", "number"), [(1, 1), (1, 2), (2, 5), (1, 200)])
async def test_clients_that_leave_all_at_once_leave_nothing(limit: int, number: int) -> None:
    upstream = Upstream(FakeBackend(), limit=limit)
    the_router = router(upstream)

    async def ask() -> None:
        routed = await the_router.dispatch(REQUEST)
        try:
            await asyncio.Event().wait()
        finally:
            routed.close()

    tasks = [asyncio.create_task(ask()) for _ in range(limit + number)]
    await waiting(the_router, number)
    for task in tasks:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {asyncio.CancelledError}
    assert (upstream.in_flight, the_router.waiting) == (0, [("m", 0)])


async def test_a_trial_that_is_given_to_one_who_leaves_is_the_next_ones() -> None:
    upstreams = [Upstream(FakeBackend(), limit=1) for _ in range(2)]
    the_router = router(*upstreams, breaker={"open_seconds": 0.01, "failures": 1})
    held = await the_router.dispatch(REQUEST)
    other = next(upstream for upstream in upstreams if upstream is not held.upstream)
    other.breaker.failed(perf_counter())
    leaving = asyncio.create_task(the_router.dispatch(REQUEST))
    await waiting(the_router, 1)
    await waiting(the_router, 0)
    leaving.cancel()
    await asyncio.wait([leaving])
    assert leaving.cancelled()
    routed = await the_router.dispatch(REQUEST)
    assert (routed.upstream, other.breaker.state(perf_counter())) == (other, BreakerState.CLOSED)
    for answer in (held, routed):
        answer.close()


async def test_in_a_full_queue_the_last_of_those_with_most_make_room() -> None:
    upstream = Upstream(FakeBackend(), limit=1)
    queue = {"max_waiting": 4, "priority": {"gold": 1}}
    the_router = router(upstream, queue=queue)
    running = await the_router.dispatch(REQUEST)

    async def comes(key: str, tier: str = "", *, number: int) -> asyncio.Task[Routed]:
        task = asyncio.create_task(the_router.dispatch(REQUEST, Ticket(key, tier)))
        await waiting(the_router, number)
        return task

    many = [await comes("many", number=number) for number in range(1, 5)]
    one = await comes("one", number=4)
    with pytest.raises(Overloaded):
        await many[3]
    gold = await comes("many", "gold", number=4)
    with pytest.raises(Overloaded):
        await many[2]
    third = await comes("third", number=4)
    with pytest.raises(Overloaded):
        await many[1]
    # Everybody has one: whoever has one and comes once more would only change places.
    with pytest.raises(Overloaded):
        await the_router.dispatch(REQUEST, Ticket("one"))
    running.close()
    for task in (gold, many[0], one, third):
        (await task).close()
    assert (upstream.in_flight, the_router.waiting) == (0, [("m", 0)])


@pytest.mark.parametrize("number", [80, 200])
async def test_a_crowd_that_waits_for_another_backend_does_not_hold_up_the_rest(number: int) -> None:
    gguf, vllm = Upstream(FakeBackend("gguf"), limit=1), Upstream(FakeBackend("vllm"), limit=1)
    rules = [{"when": {"key": "far"}, "use": "vllm"}]
    the_router = router(gguf, vllm, policy="gguf_first", rules=rules, queue={"max_waiting": 200})
    held = await the_router.dispatch(REQUEST, Ticket("far"))
    crowd = [asyncio.create_task(the_router.dispatch(REQUEST, Ticket("far"))) for _ in range(number)]
    await waiting(the_router, number)
    async with asyncio.timeout(10):
        routed = await the_router.dispatch(REQUEST, Ticket("near"))
    assert (routed.upstream, len(the_router.lanes["m"].admission)) == (gguf, number)
    for task in crowd:
        task.cancel()
    await asyncio.wait(crowd)
    for answer in (held, routed):
        answer.close()
    assert (gguf.in_flight, vllm.in_flight) == (0, 0)


async def test_who_waits_is_told_the_position() -> None:
    the_router = router(Upstream(FakeBackend(), limit=1), queue={"ping_seconds": 0.01})
    running = await the_router.dispatch(REQUEST)
    told: list[list[int]] = [[], []]
    enough = asyncio.Event()

    def note(place: int, position: int) -> None:
        told[place].append(position)
        if all(len(positions) >= 2 for positions in told):
            enough.set()

    tasks = []
    for place in range(2):
        ticket = Ticket(notify=lambda position, place=place: note(place, position))  # type: ignore[misc]
        tasks.append(asyncio.create_task(the_router.dispatch(REQUEST, ticket)))
        await waiting(the_router, place + 1)
    async with asyncio.timeout(30):
        await enough.wait()
    assert (set(told[0]), set(told[1])) == ({1}, {2})
    running.close()
    for task in tasks:
        (await task).close()


async def test_one_that_waits_for_another_backend_does_not_hold_up_the_rest() -> None:
    gguf, vllm = Upstream(FakeBackend("gguf"), limit=1), Upstream(FakeBackend("vllm"), limit=1)
    rules = [{"when": {"key": "far"}, "use": "vllm"}]
    the_router = router(gguf, vllm, policy="gguf_first", rules=rules)
    held = [await the_router.dispatch(REQUEST, Ticket("far")), await the_router.dispatch(REQUEST)]
    far = asyncio.create_task(the_router.dispatch(REQUEST, Ticket("far")))
    await waiting(the_router, 1)
    near = asyncio.create_task(the_router.dispatch(REQUEST, Ticket("near")))
    await waiting(the_router, 2)
    held[1].close()
    routed = await near
    assert (routed.upstream, far.done()) == (gguf, False)
    held[0].close()
    assert (await far).upstream is vllm
    for answer in (routed, await far):
        answer.close()


OUTCOMES = [None, BackendOverloaded("busy"), BackendProtocolError("reset"), RuntimeError("unforeseen")]


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    limits=st.lists(st.sampled_from([1, 2, 5]), min_size=1, max_size=3),
    hedge_seconds=st.sampled_from([None, 0.0001]),
)
async def test_nothing_stays_in_flight_whatever_happens(  # noqa: C901 - one story
    seed: int, limits: list[int], hedge_seconds: float | None
) -> None:
    """Forty requests end, fail, break off or leave in any order, engines crash and come back; every limit holds all the
    time."""
    chance = random.Random(seed)

    class Moody(FakeBackend):
        most = 0

        async def send(self, request: InferenceRequest) -> Any:
            self.most = max(self.most, next(u.in_flight for u in upstreams if u.backend is self))
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
            if self.state is not BackendState.READY:
                raise BackendUnavailable("crashed")
            error = chance.choice(OUTCOMES)
            if error is not None:
                raise error
            return await super().send(request)

    backends = [Moody(("gguf", "vllm")[number % 2]) for number in range(len(limits))]
    upstreams = [Upstream(backend, limit=limit) for backend, limit in zip(backends, limits, strict=True)]
    the_router = router(
        *upstreams,
        policy="graduate",
        queue={"max_waiting": 8, "max_wait_seconds": 5},
        breaker={"open_seconds": 0.01, "failures": 2},
        retry={"hedge_after_seconds": hedge_seconds},
    )

    async def ask(number: int) -> None:
        routed: Routed | None = None
        try:
            routed = await the_router.dispatch(REQUEST, Ticket(f"key {number % 3}"))
            for _ in range(chance.choice([0, 1, 2, 3, 30])):
                await asyncio.sleep(0)
            if chance.random() < 0.3:
                routed.failed(BackendProtocolError("cut"))
            else:
                routed.succeeded(None, 0)
        except (BackendError, Overloaded, Unavailable, RuntimeError):
            pass
        finally:
            if routed is not None:
                routed.close()

    tasks = [asyncio.create_task(ask(number)) for number in range(40)]
    for _ in tasks:
        await asyncio.sleep(0)
        if chance.random() < 0.25:
            chance.choice(tasks).cancel()
        if chance.random() < 0.05:
            for task in tasks:
                task.cancel()
        if chance.random() < 0.1:
            engine = chance.choice(backends)
            engine.restarts += engine.state is BackendState.FAILED
            engine.state = BackendState.READY if engine.state is BackendState.FAILED else BackendState.FAILED
    async with asyncio.timeout(60):
        await asyncio.wait(tasks)
    assert [upstream.in_flight for upstream in upstreams] == [0] * len(limits)
    assert the_router.waiting == [("m", 0)]
    assert all(backend.most <= limit for backend, limit in zip(backends, limits, strict=True))
    assert sum(backend.open for backend in backends) == 0
    assert all(upstream.breaker.admits(inf) for upstream in upstreams), "a trial is still under way"
