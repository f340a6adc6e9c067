"""Waiting for a place: bounded, in turn, with a deadline, and without a trace once it is over."""

from __future__ import annotations

import asyncio
import random
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
@given(seed=st.integers(0, 2**32), limits=st.lists(st.sampled_from([1, 2, 5]), min_size=1, max_size=3))
async def test_nothing_stays_in_flight_whatever_happens(  # noqa: C901 - one story
    seed: int, limits: list[int]
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
        *upstreams, policy="graduate", queue={"max_waiting": 8, "max_wait_seconds": 5}, breaker={"open_seconds": 0.01}
    )

    async def ask(number: int) -> None:
        routed: Routed | None = None
        try:
            routed = await the_router.dispatch(REQUEST, Ticket(f"key {number % 3}"))
            for _ in range(chance.randrange(4)):
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
