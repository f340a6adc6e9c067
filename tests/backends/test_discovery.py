"""Names in DNS: what is asked, what is understood, and what is believed when nothing comes back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import dns.rcode
import pytest

from backends.base import BackendState, InferenceRequest, Operation
from backends.discovery import MAX_TARGETS, Answer, Discovery, DnsLookup, LookupFailed, Target
from backends.errors import BackendUnavailable
from backends.factory import create_backends
from config.remote import DnsName
from config.schema import ModelSettings
from config.vllm import VllmSettings
from tests.backends.name_server import NameServer, name_server
from tests.fakes import FakeBackend

REQUEST = InferenceRequest(Operation.CHAT, "m", b"{}", False, "r")

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])


def lookup(server: NameServer, name: str, port: int | None = None, scheme: str = "http") -> DnsLookup:
    return DnsLookup(DnsName(name, port, "127.0.0.1", server.port), scheme)


async def test_addresses_become_replicas_at_the_port_and_keep_the_name_for_tls() -> None:
    async with name_server() as server:
        server.ttl = 7
        server.put("vllm.test.", "A", "10.0.0.1", "10.0.0.2")
        server.put("vllm.test.", "AAAA", "fd00::1", "fd00::2")
        answer = await lookup(server, "vllm.test.", 8000)()
        assert answer == Answer(
            frozenset({Target("http://10.0.0.1:8000", "vllm.test"), Target("http://10.0.0.2:8000", "vllm.test")}), 7.0
        )
        server.put("vllm.test.", "A")
        answer = await lookup(server, "vllm.test.", 8000, "https")()
        assert {target.address for target in answer.targets} == {"https://[fd00::1]:8000", "https://[fd00::2]:8000"}


async def test_service_records_bring_hosts_and_ports_of_the_first_priority() -> None:
    async with name_server() as server:
        records = ("1 5 8001 pod-0.vllm.", "1 5 8002 pod-1.vllm.", "2 5 8003 spare.vllm.")
        server.put("_http._tcp.vllm.", "SRV", *records)
        answer = await lookup(server, "_http._tcp.vllm.")()
        assert answer.targets == {Target("http://pod-0.vllm:8001"), Target("http://pod-1.vllm:8002")}
        server.put("_http._tcp.vllm.", "SRV", "0 0 0 .")
        assert (await lookup(server, "_http._tcp.vllm.")()).targets == frozenset()


async def test_long_answer_comes_over_tcp() -> None:
    async with name_server() as server:
        server.put("vllm.test.", "A", *(f"10.0.0.{number}" for number in range(1, 101)))
        assert len((await lookup(server, "vllm.test.", 8000)()).targets) == 100
        assert server.over_tcp == 1


@pytest.mark.parametrize(
    ("rcode", "cause"),
    [(dns.rcode.SERVFAIL, "SERVFAIL"), (dns.rcode.REFUSED, "REFUSED"), (None, "vllm.test. does not exist")],
)
async def test_no_answer_has_a_reason(rcode: dns.rcode.Rcode | None, cause: str) -> None:
    async with name_server() as server:
        server.rcode = rcode
        with pytest.raises(LookupFailed, match=cause):
            await lookup(server, "vllm.test.", 8000)()


async def test_name_without_addresses_has_no_replicas() -> None:
    async with name_server() as server:
        server.put("vllm.test.", "TXT", '"hello"')
        assert await lookup(server, "vllm.test.", 8000)() == Answer(frozenset(), 0.0)


class Script:
    """Looks up what it is told to, one after the other, and stays with the last."""

    def __init__(self, *answers: set[str] | str) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def __call__(self) -> Answer:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, str):
            raise LookupFailed(answer)
        return Answer(frozenset(map(Target, answer)), 0.0)


@asynccontextmanager
async def discovering(script: Script) -> AsyncIterator[Discovery]:
    discovery = Discovery("vllm", "dns://vllm:1", script, lambda _: FakeBackend("vllm"), least_seconds=0.001)
    await discovery.start()
    await discovery.start()
    try:
        yield discovery
    finally:
        await discovery.stop()
        await discovery.stop()
        assert discovery.state is BackendState.STOPPED


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.001)


async def test_who_waits_for_a_change_is_told() -> None:
    script = Script({"http://a:1"}, {"http://a:1"}, {"http://b:1", "http://a:1"})
    async with discovering(script) as discovery:
        seen = []
        async with asyncio.timeout(20):
            while len(discovery.targets) < 2:
                await discovery.changed()
                seen.append([target.address for target in discovery.targets])
        assert seen == [["http://a:1"], ["http://a:1", "http://b:1"]]


async def test_seat_says_why_nobody_is_known() -> None:
    async with discovering(Script({"http://a:1"})) as discovery:
        assert discovery.state is BackendState.STARTING
        with pytest.raises(BackendUnavailable, match="DNS has not answered yet"):
            await discovery.send(REQUEST)


async def test_failure_is_shown_and_said_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.discovery.FAILED_SECONDS", 0.0)
    script = Script("vllm does not exist")
    async with discovering(script) as discovery:
        await until(lambda: script.asked > 3)
        assert (discovery.state, discovery.failure) == (BackendState.FAILED, "vllm does not exist")
        with pytest.raises(BackendUnavailable, match="No replica is known: vllm does not exist"):
            await discovery.send(REQUEST)
    assert [record.getMessage() for record in caplog.records] == [
        "replicas at dns://vllm:1 are not found: vllm does not exist"
    ]


async def test_silence_and_emptiness_take_nobody_away(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("backends.discovery.FAILED_SECONDS", 0.0)
    script = Script({"http://a:1"}, "the DNS server does not answer", set(), {"http://a:1"})
    async with discovering(script) as discovery:
        await until(lambda: script.asked > 5)
        assert discovery.targets == (Target("http://a:1"),)
    assert [record.getMessage() for record in caplog.records] == [
        "replicas at dns://vllm:1 are not found: the DNS server does not answer; the 1 known ones stay",
        "replicas at dns://vllm:1 are not found: DNS names no replica; the 1 known ones stay",
        "replicas at dns://vllm:1 are found again",
    ]


async def test_more_replicas_than_anybody_has_are_cut(caplog: pytest.LogCaptureFixture) -> None:
    async with discovering(Script({f"http://a:{port}" for port in range(1, 301)})) as discovery:
        await until(lambda: bool(discovery.targets))
        assert len(discovery.targets) == MAX_TARGETS
    assert "there are 300 replicas at dns://vllm:1, 256 are used" in caplog.text


async def test_factory_makes_replicas_with_the_models_access() -> None:
    settings = VllmSettings.model_validate({"discover": "dns://vllm:8000", "api_key": "sk-canary", "tls": {}})
    (backend,) = create_backends(ModelSettings(name="m", vllm=settings))
    assert isinstance(backend, Discovery)
    replica = backend.backend(Target("https://10.0.0.1:8000", "vllm"))
    assert (replica.name, getattr(replica, "address", "")) == ("vllm", "https://10.0.0.1:8000")
    await replica.stop()
