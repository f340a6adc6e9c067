"""Replicas behind a DNS name that join, leave and hang while clients call: nothing that had not begun is lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import dns.rcode
import pytest

from backends.access import Access
from backends.base import Backend
from backends.discovery import Discovery, DnsLookup, Target
from backends.inquiry import openai_health
from backends.openai import OpenAIBackend
from backends.remote import Dialect, RemoteBackend, Rhythm
from config.remote import dns_name
from config.schema import ModelSettings, Settings
from tests.backends.name_server import NameServer, name_server
from tests.backends.vllm_shaped import Replica
from tests.gateway.running import CHAT, Gateway, body, serving_settings

NAME = "vllm.test."
HOSTS = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
TOKENS = 12
CLIENTS = 8
# As in production, only faster.
RHYTHM = Rhythm(steady_seconds=0.1, trouble_seconds=0.05, least_seconds=0.01, answer_seconds=0.5)


@dataclass
class Fleet:
    """Three replicas at one port, the DNS server that names some of them, and the gateway in front."""

    replicas: list[Replica]
    dns: NameServer
    gateway: Gateway

    def name(self, *replicas: Replica) -> None:
        self.dns.put(NAME, "A", *(replica.host for replica in replicas))

    def members(self) -> set[str]:
        """Hosts of those that the gateway may ask."""
        return {getattr(each.backend, "address", "").rpartition(":")[0] for _, each in self.gateway.readiness.upstreams}


@asynccontextmanager
async def three_replicas() -> AsyncIterator[list[Replica]]:
    async with AsyncExitStack() as stack:
        port, replicas = 0, []
        for host in HOSTS:
            replica = Replica("m", host=host, port=port, token_seconds=0.003)
            replicas.append(await stack.enter_async_context(replica))
            port = replica.port
        yield replicas


def backends(model: ModelSettings) -> Sequence[Backend]:
    """What the factory makes of `discover`, with RHYTHM."""
    assert model.vllm is not None
    assert model.vllm.discover is not None
    look = partial(openai_health, names=(model.name,))

    def replica(target: Target) -> Backend:
        dialect = Dialect(partial(OpenAIBackend, "vllm"), look)
        return RemoteBackend("vllm", Access(target.address), dialect, RHYTHM)

    look_up = DnsLookup(dns_name(model.vllm.discover), "http")
    return [Discovery("vllm", model.vllm.discover, look_up, replica, least_seconds=0.05)]


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with three_replicas() as replicas, name_server() as dns:
        discover = f"dns://127.0.0.1:{dns.port}/{NAME}:{replicas[0].port}"
        settings = Settings.model_validate({"models": [{"name": "m", "vllm": {"discover": discover}}]})
        async with serving_settings(settings, backends) as gateway:
            yield Fleet(replicas, dns, gateway)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


class Clients:
    """Call one after the other, streamed and not, and look at every answer; `lost` says what was wrong with some."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._stopped = False
        self.answered = 0
        self.lost: list[str] = []

    async def run(self) -> None:
        await asyncio.gather(*(self._client(bool(number % 2)) for number in range(CLIENTS)))

    def stop(self) -> None:
        self._stopped = True

    async def more(self, number: int) -> None:
        """Returns when so many further calls have been answered."""
        enough = self.answered + number
        await until(lambda: self.answered >= enough)

    async def _client(self, stream: bool) -> None:
        while not self._stopped:
            asked = body(model="m", max_tokens=TOKENS, stream=stream)
            answer = await self._gateway.client.post(CHAT, json=asked, timeout=60)
            if answer.status_code != 200 or not (
                answer.text.endswith("[DONE]\n\n") if stream else _is_whole(answer.text)
            ):
                self.lost.append(f"{answer.status_code} {answer.text[-300:]}")
            elif answer.text.count('"content"') != (TOKENS + 1 if stream else 1):
                self.lost.append(answer.text)
            self.answered += 1


def _is_whole(text: str) -> bool:
    return bool(json.loads(text)["usage"]["completion_tokens"] == TOKENS)


async def test_one_joins_one_leaves_and_one_is_cut_off_under_load(fleet: Fleet) -> None:
    first, second, third = fleet.replicas
    fleet.name(first, second)
    await until(lambda: fleet.gateway.readiness.ready)
    clients = Clients(fleet.gateway)
    calling = asyncio.create_task(clients.run())
    await clients.more(20)
    assert third.begun == 0

    fleet.name(first, second, third)
    await until(lambda: third.begun > 5)

    fleet.name(second, third)
    await until(lambda: f"http://{first.host}" not in fleet.members())
    begun = first.begun
    await clients.more(30)
    assert (first.begun, first.running) == (begun, 0)
    await first.stop()

    second.hears.clear()
    await until(lambda: second.stuck > 0)
    await clients.more(50)
    await until(lambda: second.stuck == 0)
    begun = second.begun
    second.hears.set()
    await until(lambda: second.begun > begun)

    clients.stop()
    await calling
    assert clients.lost == []
    assert await fleet.gateway.metric("upshift_backend_replicas", model="m", backend="vllm", state="ready") == 2
    assert await fleet.gateway.metric("upshift_engine_running", model="m", backend="vllm") is not None


async def test_name_that_nobody_is_behind_yet_says_so_and_serves_once_there_is(fleet: Fleet) -> None:
    await until(
        lambda: not fleet.gateway.readiness.ready and "does not exist" in str(fleet.gateway.readiness.describe())
    )
    refused = await fleet.gateway.client.post(CHAT, json=body(model="m"), timeout=60)
    assert refused.status_code == 503
    fleet.name(fleet.replicas[0])
    await until(lambda: fleet.gateway.readiness.ready)
    answer = await fleet.gateway.client.post(CHAT, json=body(model="m"), timeout=60)
    assert (answer.status_code, answer.headers["x-upshift-backend"]) == (200, "vllm")


async def test_answer_on_a_replica_that_leaves_is_finished_and_counted(fleet: Fleet) -> None:
    first, second, _ = fleet.replicas
    fleet.name(first)
    await until(lambda: fleet.gateway.readiness.ready)
    asked = body(model="m", max_tokens=300, stream=True)
    calling = asyncio.create_task(fleet.gateway.client.post(CHAT, json=asked, timeout=60))
    await until(lambda: first.running == 1)
    fleet.name(second)
    await until(lambda: fleet.members() == {f"http://{second.host}"})
    pair = {"model": "m", "backend": "vllm"}
    assert await fleet.gateway.metric("upshift_in_flight", **pair) == 1
    assert await fleet.gateway.metric("upshift_backend_replicas", **pair, state="draining") == 1
    answer = await calling
    assert answer.text.count('"content"') == 301
    assert answer.text.endswith("[DONE]\n\n")


async def test_dns_that_dies_takes_nobody_away(fleet: Fleet) -> None:
    fleet.name(*fleet.replicas)
    await until(lambda: len(fleet.members()) == 3)
    shown = (await fleet.gateway.client.get("/readyz")).json()["models"]
    assert [model["address"] for model in shown] == [replica.address for replica in fleet.replicas]
    fleet.dns.mute = True
    await until(lambda: fleet.gateway.readiness.ready)
    answer = await fleet.gateway.client.post(CHAT, json=body(model="m"), timeout=60)
    assert answer.status_code == 200
    assert len(fleet.members()) == 3


async def test_name_that_flaps_under_load_loses_nothing_and_is_followed(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leads to one replica, to nobody, to no answer, to another one, and back."""
    monkeypatch.setattr("backends.discovery.FAILED_SECONDS", 0.05)
    one, other, _ = fleet.replicas
    fleet.name(one)
    await until(lambda: fleet.gateway.readiness.ready)
    clients = Clients(fleet.gateway)
    calling = asyncio.create_task(clients.run())
    for leaving, coming in ((one, other), (other, one)):
        await clients.more(20)
        for trouble in (None, dns.rcode.SERVFAIL):
            fleet.dns.records.clear()
            fleet.dns.rcode = trouble
            asked = len(fleet.dns.asked)
            await until(partial(_has_more_than, asked + 1, fleet.dns.asked))
            begun = leaving.begun
            await clients.more(20)
            assert leaving.begun > begun, "the known one stays"
        fleet.dns.rcode = None
        fleet.name(coming)
        await until(partial(_are, {f"http://{coming.host}"}, fleet.members))
        await until(partial(_is_idle, leaving))
        begun = leaving.begun
        await clients.more(20)
        assert leaving.begun == begun, "who has left gets nothing new"
    clients.stop()
    await calling
    assert clients.lost == []
    pair = {"model": "m", "backend": "vllm"}
    assert await fleet.gateway.metric("upshift_retries_total", model="m") in (None, 0)
    assert await fleet.gateway.metric("upshift_in_flight", **pair) == 0
    assert await fleet.gateway.metric("upshift_backend_replicas", **pair, state="ready") == 1
    assert [upstream.breaker.failures for _, upstream in fleet.gateway.readiness.upstreams] == [0]


def _has_more_than(number: int, things: Sequence[object]) -> bool:
    return len(things) > number


def _are(wanted: set[str], found: Callable[[], set[str]]) -> bool:
    return found() == wanted


def _is_idle(replica: Replica) -> bool:
    return replica.running == 0
