from __future__ import annotations

import asyncio
from time import perf_counter

import pytest

from backends.base import BackendResponse, BackendState, InferenceRequest, Operation
from backends.errors import BackendError, BackendOverloaded, BackendProtocolError
from backends.load import EngineLoad
from config.routing import RoutingSettings
from routing.catalog import CatalogEntry, ModelCatalog
from routing.errors import ModelNotFound, NoRoom, NotCapable, RequestRejected
from routing.policy import Plan, plan_for
from routing.router import Router
from routing.signals import Obstacle
from routing.ticket import Ticket
from routing.upstream import Upstream, UpstreamPool
from tests.fakes import FakeBackend, body_of, chat_body


def _request(model: str = "demo", *, stream: bool = False) -> InferenceRequest:
    return InferenceRequest(Operation.CHAT, model, b"{}", stream, "request-1")


def _router(backend: FakeBackend) -> tuple[Router, Upstream]:
    upstream = Upstream(backend)
    pool = UpstreamPool("demo", (upstream,))
    return Router(ModelCatalog([(CatalogEntry("demo", ("alias",)), pool)])), upstream


async def _body(response: BackendResponse) -> bytes:
    return await body_of(response)


@pytest.mark.parametrize("name", ["demo", "alias"])
async def test_request_goes_to_the_only_upstream_unchanged(name: str) -> None:
    router, upstream = _router(FakeBackend())
    request = _request(name)
    routed = await router.dispatch(request)
    assert await _body(routed.response) == chat_body()
    routed.close()
    assert (routed.upstream, routed.reason) == (upstream, "only")
    assert isinstance(upstream.backend, FakeBackend)
    assert upstream.backend.requests == [request]


async def test_unknown_model_reaches_no_backend() -> None:
    backend = FakeBackend()
    router, upstream = _router(backend)
    with pytest.raises(ModelNotFound):
        await router.dispatch(_request("other"))
    assert (upstream.in_flight, backend.requests) == (0, [])


async def test_request_is_in_flight_from_dispatch_until_close() -> None:
    hold = asyncio.Event()
    backend = FakeBackend(before=[hold])
    router, upstream = _router(backend)
    dispatching = asyncio.create_task(router.dispatch(_request()))
    await backend.called.wait()
    assert upstream.in_flight == 1, "counted before the backend has answered"
    hold.set()
    routed = await dispatching
    await _body(routed.response)
    assert upstream.in_flight == 1, "counted until closed, not until read"
    routed.close()
    assert upstream.in_flight == 0


async def test_closing_twice_gives_the_place_up_once() -> None:
    router, upstream = _router(FakeBackend())
    first, second = await router.dispatch(_request()), await router.dispatch(_request())
    first.close()
    first.close()
    assert upstream.in_flight == 1
    second.close()
    assert upstream.in_flight == 0


@pytest.mark.parametrize("error", [BackendOverloaded("full"), BackendProtocolError("reset"), OSError("unforeseen")])
async def test_failed_send_leaves_nothing_in_flight(error: Exception) -> None:
    router, upstream = _router(FakeBackend(before=[error]))
    with pytest.raises(type(error)):
        await router.dispatch(_request())
    assert upstream.in_flight == 0


async def test_cancelled_send_leaves_nothing_in_flight() -> None:
    backend = FakeBackend(before=[asyncio.Event()])
    router, upstream = _router(backend)
    dispatching = asyncio.create_task(router.dispatch(_request()))
    await backend.called.wait()
    dispatching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dispatching
    assert (upstream.in_flight, backend.cancelled) == (0, 1)


async def test_stream_left_in_the_middle_is_aborted_and_released() -> None:
    backend = FakeBackend(script=[b"data: 1\n\n", asyncio.Event(), b"data: 2\n\n"])
    router, upstream = _router(backend)
    routed = await router.dispatch(_request(stream=True))
    assert await anext(routed.response.chunks) == b"data: 1\n\n"
    routed.close()
    assert (upstream.in_flight, backend.open, backend.aborted) == (0, 0, 1)


async def test_place_is_given_up_even_when_closing_fails() -> None:
    class Sticky(FakeBackend):
        async def send(self, request: InferenceRequest) -> BackendResponse:
            response = await super().send(request)

            def close() -> None:
                raise BackendError("cannot close")

            response.close = close
            return response

    router, upstream = _router(Sticky())
    routed = await router.dispatch(_request())
    with pytest.raises(BackendError):
        routed.close()
    assert upstream.in_flight == 0


async def test_break_in_the_middle_passes_through() -> None:
    router, upstream = _router(FakeBackend(script=[b"data: 1\n\n", BackendProtocolError("cut")]))
    routed = await router.dispatch(_request(stream=True))
    with pytest.raises(BackendProtocolError) as caught:
        await _body(routed.response)
    assert caught.value.backend == "fake"
    routed.close()
    assert upstream.in_flight == 0


async def test_while_the_preferred_kind_starts_another_one_serves() -> None:
    loading, first, second = FakeBackend("gguf", state=BackendState.STARTING), FakeBackend("vllm"), FakeBackend("vllm")
    pool = UpstreamPool("demo", tuple(map(Upstream, (loading, first, second))))
    routed = await Router(ModelCatalog([(CatalogEntry("demo"), pool)])).dispatch(_request())
    routed.close()
    assert (len(loading.requests), len(first.requests) + len(second.requests)) == (0, 1)
    assert routed.reason == "bridge"


def _two_kinds(plan: Plan | None = None) -> tuple[Router, FakeBackend, FakeBackend]:
    gguf, vllm = FakeBackend("gguf"), FakeBackend("vllm")
    pool = UpstreamPool("demo", (Upstream(gguf, lacks=frozenset({"images"})), Upstream(vllm)))
    return Router(ModelCatalog([(CatalogEntry("demo"), pool)]), {"demo": plan} if plan else {}), gguf, vllm


async def test_a_model_graduates_with_its_load() -> None:
    router, gguf, vllm = _two_kinds()
    routed = [await router.dispatch(_request()) for _ in range(6)]
    assert [r.reason for r in routed] == ["quiet"] * 3 + ["busy"] * 3
    assert (len(gguf.requests), len(vllm.requests)) == (3, 3)
    for answer in routed:
        answer.close()


async def test_an_image_goes_to_the_backend_that_sees() -> None:
    router, gguf, vllm = _two_kinds()
    request = _request()._replace(body=b'{"messages":[{"content":[{"type":"image_url","image_url":{"url":"data:"}}]}]}')
    routed = await router.dispatch(request)
    routed.close()
    assert (routed.reason, len(gguf.requests), len(vllm.requests)) == ("capability", 0, 1)
    told = _request()._replace(body=b'{"messages":[{"content":"what is \\"image_url\\"?"}]}')
    routed = await router.dispatch(told)
    routed.close()
    assert routed.reason == "quiet"


async def test_a_rule_may_reject() -> None:
    rules = [{"when": {"key": "bob"}, "use": "reject"}]
    router, gguf, vllm = _two_kinds(plan_for("demo", RoutingSettings.model_validate({"rules": rules})))
    with pytest.raises(RequestRejected):
        await router.dispatch(_request(), Ticket("bob"))
    assert (gguf.requests, vllm.requests) == ([], [])
    (await router.dispatch(_request(), Ticket("alice"))).close()


async def test_what_nobody_can_is_refused_with_who_lacks_what() -> None:
    pool = UpstreamPool("demo", tuple(Upstream(FakeBackend("gguf"), lacks=frozenset({"tools"})) for _ in range(2)))
    router = Router(ModelCatalog([(CatalogEntry("demo"), pool)]))
    with pytest.raises(NotCapable, match="gguf lacks tools"):
        await router.dispatch(_request()._replace(features=frozenset({"tools"})))


async def test_whole_answers_are_measured() -> None:
    router, upstream = _router(FakeBackend())
    routed = await router.dispatch(_request(stream=True))
    routed.succeeded(routed.dispatched_at + 0.5, 4)
    routed.close()
    pace = upstream.pace
    assert pace.first_token_seconds == pytest.approx(0.5)
    assert pace.service_seconds is not None
    assert pace.measured_at >= routed.dispatched_at


async def test_what_an_engine_says_of_itself_is_corrected_by_what_it_was_sent_since() -> None:
    upstream = Upstream(FakeBackend())
    upstream.in_flight = 2
    upstream.load = EngineLoad(running=5, waiting=1, kv_cache_usage=None, taken_at=0.0)
    assert (upstream.look(0.0).outstanding, upstream.look(0.0).in_flight) == (6, 2)
    upstream.in_flight = 4
    assert upstream.look(0.0).outstanding == 8
    upstream.in_flight = 0
    assert upstream.look(0.0).outstanding == 4
    upstream.in_flight = 5
    upstream.load = EngineLoad(2, 0, None, 0.0)
    assert upstream.look(0.0).outstanding == 5, "never less than our own"


class Refused(FakeBackend):
    """One that there is no room for, and that will be tried again."""

    gave_up, refused = False, True


async def test_a_model_there_is_no_room_for_is_refused_at_once_and_served_once_there_is() -> None:
    backend = Refused("gguf", state=BackendState.FAILED)
    router, upstream = _router(backend)
    async with asyncio.timeout(10):  # a request may wait for 30 s
        with pytest.raises(NoRoom, match="no room in memory for the model 'demo'"):
            await router.dispatch(_request())
    assert upstream.look(perf_counter()).obstacle is Obstacle.NO_ROOM
    backend.state = BackendState.READY
    (await router.dispatch(_request())).close()


async def test_who_waits_hears_when_there_turns_out_to_be_no_room() -> None:
    backend = Refused("gguf", state=BackendState.STARTING)
    router, _ = _router(backend)
    waiting = asyncio.create_task(router.dispatch(_request()))
    await asyncio.sleep(0)
    assert router.waiting_for("demo") == 1
    backend.state = BackendState.FAILED
    async with asyncio.timeout(10):
        with pytest.raises(NoRoom):
            await waiting


async def test_another_kind_serves_a_model_whose_preferred_one_has_no_room() -> None:
    pool = UpstreamPool("demo", (Upstream(Refused("vllm", state=BackendState.FAILED)), Upstream(FakeBackend("gguf"))))
    plan = plan_for("demo", RoutingSettings(policy="vllm_first"))
    routed = await Router(ModelCatalog([(CatalogEntry("demo"), pool)]), {"demo": plan}).dispatch(_request())
    routed.close()
    assert routed.reason == "failover"


async def test_an_engine_that_was_started_again_is_asked_at_once() -> None:
    """Its failures are those of the process before, and nobody may have looked while it was down."""
    backend = FakeBackend()
    router, upstream = _router(backend)
    for _ in range(20):
        upstream.failed(perf_counter())
    backend.restarts += 1
    routed = await router.dispatch(_request())
    routed.close()
    assert len(backend.requests) == 1
    upstream.failed(perf_counter())
    assert upstream.breaker.failures == 1, "and counts anew"
