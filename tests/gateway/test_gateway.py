"""From one configuration to the next: what stays, what goes, and that nobody is cut off by it."""

from __future__ import annotations

import asyncio
import json

import pytest

from backends.base import BackendState
from config.errors import ConfigError
from config.routing import RoutingSettings
from config.schema import ModelSettings, ServerSettings, Settings
from tests.fakes import FakeBackend, chat_events
from tests.gateway.running import CHAT, Gateway, body, served_model, serving, serving_settings


async def until_stopped(backend: FakeBackend) -> None:
    async with asyncio.timeout(10):
        while backend.state is not BackendState.STOPPED:  # noqa: ASYNC110 - a fake tells nobody
            await asyncio.sleep(0.01)


def with_alias(alias: str) -> tuple[ModelSettings, ...]:
    """Another artifact of the model: its engine has to know the name."""
    return (served_model("fake", alias),)


async def test_what_did_not_change_is_not_touched() -> None:
    async with serving(FakeBackend(), FakeBackend("other")) as gateway:
        before = gateway.readiness.upstreams
        await gateway.reload(server={"port": 0, "idle_timeout_seconds": 9.0})
        assert gateway.readiness.upstreams == before
        assert (await gateway.chat()).status_code == 200
        assert gateway.backends["fake"].state is BackendState.READY


async def test_models_come_and_go_and_running_streams_stay() -> None:
    more = asyncio.Event()
    events = chat_events("a", "b")
    leaving = FakeBackend(script=[events[0], more, *events[1:]])
    async with serving(leaving) as gateway:
        gateway.backends["new"] = FakeBackend("new", state=BackendState.STOPPED)
        async with gateway.client.stream("POST", CHAT, json=body(stream=True)) as stream:
            chunks = stream.aiter_raw()
            first = await anext(chunks)
            await gateway.reload(models=(served_model("new"),))
            assert (await gateway.chat()).status_code == 404
            assert (await gateway.chat(model="new")).status_code == 200
            listed = (await gateway.client.get("/v1/models")).json()["data"]
            assert [model["id"] for model in listed] == ["new"]
            assert leaving.state is BackendState.READY, "somebody is still on it"
            more.set()
            assert first + b"".join([chunk async for chunk in chunks]) == b"".join(events)
        await until_stopped(leaving)
        assert leaving.aborted == 0


async def test_a_changed_model_is_served_by_the_old_engine_until_the_new_one_can() -> None:
    old, new = FakeBackend(), FakeBackend(state=BackendState.STARTING)
    async with serving(old) as gateway:
        gateway.backends["fake"] = new
        await gateway.reload(models=with_alias("renamed"))
        assert (await gateway.chat(model="renamed")).status_code == 200
        assert (len(old.requests), len(new.requests)) == (1, 0)
        new.state = BackendState.READY
        await until_stopped(old)
        assert (await gateway.chat()).status_code == 200
        assert (len(old.requests), len(new.requests)) == (1, 1)
        assert [upstream.backend for _, upstream in gateway.readiness.upstreams] == [new]


def of_both_kinds(url: str) -> tuple[ModelSettings, ...]:
    vllm = {"urls": [url]}
    return (ModelSettings.model_validate({"name": "m", "gguf": {"source": "demo"}, "vllm": vllm}),)


async def answered_by(gateway: Gateway) -> str:
    return (await gateway.chat(model="m")).headers["x-upshift-backend"]


@pytest.mark.parametrize("comes_up", [True, False])
async def test_the_other_kind_is_no_successor_unless_there_is_no_room_for_one(*, comes_up: bool) -> None:
    gguf, old, new = FakeBackend("gguf"), FakeBackend("vllm"), FakeBackend("vllm", state=BackendState.STARTING)
    of_vllm = [old, new]
    settings = Settings(
        server=ServerSettings(port=0),
        models=of_both_kinds("http://127.0.0.1:1"),
        routing=RoutingSettings(policy="vllm_first"),
    )
    make = lambda artifact: [gguf if artifact.gguf is not None else of_vllm.pop(0)]  # noqa: E731
    async with serving_settings(settings, make) as gateway:
        await gateway.reload(models=of_both_kinds("http://127.0.0.1:2"))
        assert await answered_by(gateway) == "vllm"
        assert await answered_by(gateway) == "vllm"
        assert (len(old.requests), old.state) == (2, BackendState.READY)
        if comes_up:
            new.state = BackendState.READY
        else:
            new.refused, new.state = True, BackendState.FAILED  # type: ignore[attr-defined]
        await until_stopped(old)
        assert await answered_by(gateway) == ("vllm" if comes_up else "gguf")
        assert (len(old.requests), len(new.requests)) == (2, comes_up)


async def test_who_comes_back_in_time_goes_on_with_the_same_engine() -> None:
    old, never = FakeBackend(), FakeBackend(state=BackendState.STARTING)
    async with serving(old) as gateway:
        gateway.backends["fake"] = never
        await gateway.reload(models=with_alias("renamed"))
        await gateway.reload()
        await until_stopped(never)
        assert (await gateway.chat()).status_code == 200
        assert (old.state, len(old.requests)) == (BackendState.READY, 1)


async def test_the_end_of_the_gateway_is_the_end_of_what_was_leaving() -> None:
    old, new = FakeBackend(), FakeBackend(state=BackendState.STARTING)
    async with serving(old) as gateway:
        gateway.backends["fake"] = new
        await gateway.reload(models=with_alias("renamed"))
    assert (old.state, new.state) == (BackendState.STOPPED, BackendState.STOPPED)


async def test_a_configuration_that_cannot_be_used_changes_nothing() -> None:
    async with serving(FakeBackend()) as gateway:
        before = gateway.app.gateway.relay
        with pytest.raises(ConfigError, match="cannot be read"):
            await gateway.reload(models=(served_model("other"),), auth={"keys_file": "/nowhere/keys.yaml"})
        assert gateway.app.gateway.relay is before
        assert (await gateway.chat()).status_code == 200


async def test_metrics_have_the_series_of_a_new_model_and_keep_those_of_an_old_one() -> None:
    async with serving(FakeBackend()) as gateway:
        await gateway.chat()
        gateway.backends["new"] = FakeBackend("new")
        await gateway.reload(models=(served_model("new"),))
        assert await gateway.metric("upshift_backend_up", model="new", backend="new") == 1
        assert await gateway.metric("upshift_backend_up", model="fake", backend="fake") is None
        labels = {"model": "fake", "backend": "fake", "operation": "chat", "code": "200"}
        assert await gateway.metric("upshift_requests_total", **labels) == 1
        assert json.loads((await gateway.client.get("/readyz")).text)["models"][0]["model"] == "new"


async def test_what_routing_knows_of_a_model_outlives_a_reload() -> None:
    async with serving(FakeBackend()) as gateway:
        router = gateway.app.gateway.relay._router
        lane = router.lanes["fake"]
        await gateway.reload(routing={"policy": "gguf_first"})
        assert router.lanes["fake"] is lane
        assert gateway.app.gateway.served.catalog.resolve("fake") is lane.pool
