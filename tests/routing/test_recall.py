"""What GGUF was sent and has not begun goes to vLLM with its model; what has begun stays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf

import pytest

from backends.base import InferenceRequest, Operation
from config.routing import RoutingSettings
from routing.catalog import CatalogEntry, ModelCatalog
from routing.policy import plan_for
from routing.routed import Routed
from routing.router import Router
from routing.signals import GGUF, Stage
from routing.ticket import Ticket
from routing.upstream import Upstream, UpstreamPool
from tests.fakes import FakeBackend


async def so(condition: Callable[[], bool]) -> None:
    """Everything here happens on one event loop: a few turns of it are enough."""
    for _ in range(100):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("not so")


class Both:
    """A model behind a GGUF engine that begins no answer before `open` is set, and vLLM, which begins at once. It
    graduates at four requests."""

    def __init__(self, vllm_limit: float = inf, **routing: object) -> None:
        self.open = asyncio.Event()
        self.gguf, self.vllm = FakeBackend("gguf", before=[self.open]), FakeBackend("vllm")
        self.upstreams = Upstream(self.gguf), Upstream(self.vllm, limit=vllm_limit)
        pool = UpstreamPool("demo", self.upstreams)
        settings = {"policy": "graduate", "graduate": {"to_vllm_at": 4}, **routing}
        plan = plan_for("demo", RoutingSettings.model_validate(settings))
        self.router = Router(ModelCatalog([(CatalogEntry("demo"), pool)]), {"demo": plan})
        self.tickets: list[Ticket] = []
        self.expected = 0

    async def ask(self, times: int = 1, *, stream: bool = True) -> list[asyncio.Task[Routed]]:
        """So many more requests, each of which has been sent to somebody."""
        request = InferenceRequest(Operation.CHAT, "demo", b"{}", stream, "r")
        tasks = []
        for _ in range(times):
            self.expected = self.sent + 1
            self.tickets.append(Ticket())
            tasks.append(asyncio.create_task(self.router.dispatch(request, self.tickets[-1])))
            await so(lambda: self.sent >= self.expected)
        return tasks

    @property
    def sent(self) -> int:
        return len(self.gguf.requests) + len(self.vllm.requests)

    @property
    def in_flight(self) -> tuple[int, int]:
        return self.upstreams[0].in_flight, self.upstreams[1].in_flight


async def finish(tasks: list[asyncio.Task[Routed]]) -> list[str]:
    """The reasons of all, in order; every place is given back."""
    async with asyncio.timeout(30):
        done = await asyncio.gather(*tasks)
    for routed in done:
        routed.close()
    return [routed.reason for routed in done]


async def test_what_has_not_begun_goes_along() -> None:
    both = Both()
    tasks = await both.ask(4)
    assert await finish(tasks) == ["busy"] * 4
    assert (both.gguf.cancelled, len(both.vllm.requests), both.in_flight) == (3, 4, (0, 0))
    assert [ticket.attempts for ticket in both.tickets] == [1] * 4, "that is no retry"
    assert all(not task.cancelling() for task in tasks)


async def test_what_has_begun_stays() -> None:
    both = Both()
    both.open.set()
    begun = await both.ask(3)
    await asyncio.gather(*begun)
    both.open.clear()
    assert await finish(begun + await both.ask()) == ["quiet"] * 3 + ["busy"]
    assert both.gguf.cancelled == 0


async def test_no_more_go_than_there_is_room_for_and_the_latest_first() -> None:
    both = Both(vllm_limit=2)
    tasks = await both.ask(4)
    await so(lambda: len(both.vllm.requests) == 2)
    both.open.set()
    assert await finish(tasks) == ["quiet", "quiet", "busy", "busy"]
    assert both.in_flight == (0, 0)


@pytest.mark.parametrize(("seconds", "goes"), [(None, False), (0.0, False), (1e6, True)])
async def test_an_answer_in_one_piece_goes_along_while_it_is_new(seconds: float | None, *, goes: bool) -> None:
    both = Both()
    both.upstreams[0].pace = both.upstreams[0].pace._replace(service_seconds=seconds)
    tasks = await both.ask(3, stream=False) + await both.ask()
    both.open.set()
    assert await finish(tasks) == (["busy"] * 4 if goes else ["quiet"] * 3 + ["busy"])


async def test_what_a_rule_has_sent_stays() -> None:
    both = Both(rules=[{"when": {"key": "bob"}, "use": "gguf"}])
    request = InferenceRequest(Operation.CHAT, "demo", b"{}", True, "r")
    ruled = asyncio.create_task(both.router.dispatch(request, Ticket("bob")))
    await so(lambda: both.upstreams[0].in_flight == 1)
    others = await both.ask(3)
    assert await finish(others) == ["busy"] * 3
    both.open.set()
    assert await finish([ruled]) == ["rule"]


async def test_a_client_that_leaves_at_that_moment_is_gone() -> None:
    both = Both()
    first, *others = await both.ask(3)
    last = asyncio.create_task(
        both.router.dispatch(InferenceRequest(Operation.CHAT, "demo", b"{}", True, "r"), Ticket())
    )
    await asyncio.sleep(0)  # the model has moved; the others have not heard of it
    assert first.cancelling() == 1
    first.cancel()
    assert await finish([*others, last]) == ["busy"] * 3
    with pytest.raises(asyncio.CancelledError):
        await first
    assert both.in_flight == (0, 0)


async def test_fastest_takes_along_what_has_not_begun_on_the_same_cores() -> None:
    both = Both(policy="fastest")
    gguf, vllm = both.upstreams
    for upstream, at_four in ((gguf, 1.0), (vllm, 0.1)):
        upstream.shares_cores = True
        first = 0.01 if upstream is gguf else 0.1
        upstream.pace = upstream.pace.with_answer(0.0, first, first, 0, 1).with_answer(0.0, at_four, at_four, 0, 4)
    both.router.lanes["demo"].stage = Stage(GGUF, second=0.0)
    assert await finish(await both.ask(4)) == ["fastest"] * 4
    assert (both.gguf.cancelled, len(both.vllm.requests), both.in_flight) == (3, 4, (0, 0))


async def test_with_hardware_of_its_own_each_request_stays_where_it_is() -> None:
    both = Both(policy="fastest")
    gguf, vllm = both.upstreams
    gguf.pace = gguf.pace.with_answer(0.0, 0.01, 0.01, 0, 1)
    vllm.pace = vllm.pace.with_answer(0.0, 0.012, 0.012, 0, 1)
    tasks = await both.ask(3)
    assert both.in_flight == (2, 1)
    both.open.set()
    await finish(tasks)
    assert both.gguf.cancelled == 0
