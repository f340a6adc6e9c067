"""Further attempts: whether, where, how many, and what the client gets in the end."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Any

import pytest

from backends.base import BackendState, InferenceRequest
from backends.errors import (
    BackendError,
    BackendLoading,
    BackendOverloaded,
    BackendProtocolError,
    BackendTimeout,
    BackendUnavailable,
    ContextLengthExceeded,
    InvalidRequest,
)
from routing.errors import Unavailable
from routing.health import BreakerState
from routing.ticket import Ticket
from routing.upstream import Upstream
from tests.fakes import FakeBackend
from tests.routing.test_admission import REQUEST, router


class Failing(FakeBackend):
    """Fails with these errors first, then answers."""

    def __init__(self, name: str, *errors: BackendError) -> None:
        super().__init__(name)
        self.errors = list(errors)

    async def send(self, request: InferenceRequest) -> Any:
        if self.errors:
            self.requests.append(request)
            raise self.errors.pop(0)
        return await super().send(request)


@pytest.mark.parametrize(
    "error", [BackendUnavailable("refused"), BackendProtocolError("reset"), BackendOverloaded("full")], ids=repr
)
async def test_a_retryable_failure_is_answered_by_the_other_backend(error: BackendError) -> None:
    gguf, vllm = Failing("gguf", error), FakeBackend("vllm")
    the_router = router(Upstream(gguf), Upstream(vllm))
    ticket = Ticket()
    routed = await the_router.dispatch(REQUEST, ticket)
    assert (routed.upstream.kind, routed.reason, ticket.attempts) == ("vllm", "failover", 2)
    assert (len(gguf.requests), len(vllm.requests)) == (1, 1)
    routed.close()
    assert [upstream.in_flight for upstream in the_router.lanes["m"].pool.upstreams] == [0, 0]


@pytest.mark.parametrize("error", [BackendTimeout("slow"), InvalidRequest("no")], ids=repr)
async def test_other_failures_are_final(error: BackendError) -> None:
    gguf, vllm = Failing("gguf", error), FakeBackend("vllm")
    with pytest.raises(type(error)):
        await router(Upstream(gguf), Upstream(vllm)).dispatch(REQUEST)
    assert vllm.requests == []


async def test_a_prompt_too_long_for_one_kind_goes_to_the_other_kind_only() -> None:
    error = ContextLengthExceeded("too long")
    first, second, vllm = Failing("gguf", error), Failing("gguf", error), FakeBackend("vllm")
    the_router = router(Upstream(first), Upstream(second), Upstream(vllm))
    routed = await the_router.dispatch(REQUEST)
    assert (routed.reason, len(first.requests) + len(second.requests), len(vllm.requests)) == ("capability", 1, 1)
    routed.close()
    both = router(Upstream(Failing("gguf", error)), Upstream(Failing("vllm", error)))
    with pytest.raises(ContextLengthExceeded):
        await both.dispatch(REQUEST)


async def test_a_request_that_resets_connections_is_sent_twice_at_most() -> None:
    backends = [Failing("vllm", *[BackendProtocolError("reset")] * 9) for _ in range(5)]
    with pytest.raises(BackendProtocolError):
        await router(*map(Upstream, backends)).dispatch(REQUEST)
    assert sum(len(backend.requests) for backend in backends) == 2


async def test_an_only_server_that_refuses_connections_is_asked_again() -> None:
    backend = Failing("vllm", BackendUnavailable("refused"), BackendUnavailable("refused"))
    ticket = Ticket()
    (await router(Upstream(backend)).dispatch(REQUEST, ticket)).close()
    assert ticket.attempts == 3


@pytest.mark.parametrize(
    "error", [BackendOverloaded("full"), BackendLoading("loading"), BackendProtocolError("x")], ids=repr
)
async def test_an_only_server_that_said_no_is_not_asked_again(error: BackendError) -> None:
    backend = Failing("vllm", error)
    with pytest.raises(type(error)):
        await router(Upstream(backend)).dispatch(REQUEST)
    assert len(backend.requests) == 1


async def test_retry_after_of_an_upstream_is_honoured() -> None:
    gguf, vllm = FakeBackend("gguf"), Failing("vllm", BackendOverloaded("full", retry_after_seconds=60))
    the_router = router(Upstream(gguf), Upstream(vllm), policy="vllm_first")
    reasons = []
    for _ in range(3):
        routed = await the_router.dispatch(REQUEST)
        reasons.append(routed.reason)
        routed.close()
    assert (reasons, len(vllm.requests)) == (["failover", "spill", "spill"], 1)


@pytest.mark.parametrize("waits", [(20, 300), (300, 20)])
async def test_of_several_that_say_when_the_client_is_told_the_soonest(waits: tuple[float, float]) -> None:
    gguf, vllm = (
        Failing(kind, BackendOverloaded("full", retry_after_seconds=seconds))
        for kind, seconds in zip(("gguf", "vllm"), waits, strict=True)
    )
    with pytest.raises(BackendOverloaded) as refused:
        await router(Upstream(gguf), Upstream(vllm)).dispatch(REQUEST)
    assert (len(gguf.requests), len(vllm.requests)) == (1, 1)
    assert 19 < (refused.value.retry_after_seconds or 0) <= 20


async def test_failures_open_the_breaker_and_then_nothing_is_sent() -> None:
    backend = Failing("vllm", *[BackendProtocolError("reset")] * 50)
    upstream = Upstream(backend)
    the_router = router(upstream, breaker={"failures": 4, "open_seconds": 600, "max_open_seconds": 600})
    for _ in range(4):
        with pytest.raises(BackendProtocolError):
            await the_router.dispatch(REQUEST)
    with pytest.raises(Unavailable) as refused:
        await the_router.dispatch(REQUEST)
    assert 500 < (refused.value.retry_after_seconds or 0) <= 600
    assert (len(backend.requests), upstream.breaker.state(0.0)) == (4, BreakerState.OPEN)


async def test_while_one_request_is_the_trial_others_are_refused() -> None:
    hold = asyncio.Event()
    backend = FakeBackend("vllm")
    upstream = Upstream(backend)
    the_router = router(upstream, breaker={"failures": 1, "open_seconds": 0.01})
    upstream.breaker.settings = the_router.lanes["m"].plan.breaker
    upstream.breaker.failed(perf_counter() - 1)
    backend.before = [hold]
    trial = asyncio.create_task(the_router.dispatch(REQUEST))
    await backend.called.wait()
    async with asyncio.timeout(10):
        with pytest.raises(Unavailable):
            await the_router.dispatch(REQUEST)
    hold.set()
    routed = await trial
    assert upstream.breaker.state(perf_counter()) is BreakerState.CLOSED
    (await the_router.dispatch(REQUEST)).close()
    routed.close()
    assert len(backend.requests) == 2


async def test_answers_that_break_off_count_as_failures() -> None:
    upstream = Upstream(FakeBackend("vllm"))
    the_router = router(upstream, breaker={"failures": 2, "open_seconds": 600, "max_open_seconds": 600})
    for _ in range(2):
        routed = await the_router.dispatch(REQUEST)
        routed.failed(BackendProtocolError("cut"))
        routed.close()
    with pytest.raises(Unavailable):
        await the_router.dispatch(REQUEST)


async def test_under_steady_failure_retries_stay_within_the_budget() -> None:
    """Every second request fails at whichever backend it meets first; the breaker must not hide it."""
    backends = [FakeBackend("vllm"), FakeBackend("vllm")]
    calls = 0

    class Flaky(FakeBackend):
        async def send(self, request: InferenceRequest) -> Any:
            nonlocal calls
            calls += 1
            if calls % 2:
                raise BackendUnavailable("refused")
            return await super().send(request)

    backends = [Flaky("vllm"), Flaky("vllm")]
    the_router = router(*map(Upstream, backends), breaker={"failures": 1000}, retry={"budget": 0.1})
    failed = 0
    for _ in range(300):
        try:
            (await the_router.dispatch(REQUEST)).close()
        except BackendUnavailable:
            failed += 1
    assert calls - 300 == the_router.lanes["m"].budget.spent <= 10 + 0.1 * 300
    assert failed > 0, "what the budget does not cover is told at once"


class Sleeping(FakeBackend):
    """Asleep until it is woken, and then up at once."""

    def __init__(self, name: str) -> None:
        super().__init__(name, state=BackendState.STOPPED)
        self.asleep = True
        self.wakes = 0

    def wake(self) -> None:
        self.wakes += 1
        self.state = BackendState.READY
        self.asleep = False


async def test_who_meets_a_gguf_engine_that_restarts_does_not_wait_for_vllm_to_wake_up() -> None:
    gguf, vllm = Failing("gguf", BackendUnavailable("restarts")), Sleeping("vllm")
    routed = await router(Upstream(gguf), Upstream(vllm)).dispatch(REQUEST)
    assert (routed.upstream.kind, vllm.wakes) == ("gguf", 0)
    routed.close()


@pytest.mark.parametrize(
    ("fails", "error", "sleeps"),
    [
        ("vllm", BackendUnavailable("restarts"), "gguf"),
        ("vllm", BackendProtocolError("reset"), "gguf"),
        ("gguf", ContextLengthExceeded("too long"), "vllm"),
    ],
    ids=["refused", "reset", "too long"],
)
async def test_one_that_sleeps_is_woken_where_it_is_quick_or_nobody_else_ever_could(
    fails: str, error: BackendError, sleeps: str
) -> None:
    failing, sleeping = Failing(fails, error), Sleeping(sleeps)
    routed = await router(Upstream(failing), Upstream(sleeping), policy=f"{fails}_first").dispatch(REQUEST)
    assert (routed.upstream.kind, sleeping.wakes) == (sleeps, 1)
    routed.close()
