"""The keeper with fake engines and the workers' links, in one event loop, over the sockets that they have in real."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import pytest
from prometheus_client import CollectorRegistry, Counter

from backends.base import BackendState, InferenceRequest, Operation
from backends.borrowed import BorrowedEngine
from backends.engine import EngineBackend
from backends.errors import BackendLoading, BackendUnavailable
from backends.process import EngineProcess
from config.load import Loaded
from config.schema import GgufSettings, ModelSettings, Settings
from gateway.reload import Source
from gateway.workers.keeper import Keeper
from gateway.workers.link import KeeperGone, Link
from gateway.workers.supervisor import END, HOPELESS
from tests.backends.supervised import LIMIT_SECONDS, TIMING, fake_argv, is_gone
from tests.fakes import body_of

MODEL = ModelSettings(name="m", gguf=GgufSettings(source="demo"))
LOADED = Loaded(Settings(models=(MODEL,)), {}, None)
REQUEST = InferenceRequest(Operation.CHAT, "m", b'{"model": "m"}', False, "request-1")


@dataclass
class Kept:
    """A running keeper. `task` ends with its exit code."""

    keeper: Keeper
    processes: list[EngineProcess]
    control: socket.socket
    task: asyncio.Task[int]
    serving: asyncio.Event
    listening: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def process(self) -> EngineProcess:
        """The first engine's."""
        return self.processes[0]

    async def apply(self, settings: Settings) -> None:
        """As after a change of the file."""
        await self.keeper._apply(settings)  # what its Reloader calls

    async def link(self, index: int) -> Link:
        """What a new worker of that index has."""
        ours, theirs = socket.socketpair()
        with ours:
            socket.send_fds(self.control, [b"%d" % index], [ours.fileno()])
        link = await Link.open(theirs)
        self.listening.append(asyncio.create_task(link.listen()))
        return link

    async def end(self) -> int | None:
        """The exit code; None when the test has killed it."""
        if not self.task.done():
            self.control.send(END)
        await asyncio.wait({self.task})
        self.control.close()
        await asyncio.gather(*self.listening)
        return None if self.task.cancelled() else self.task.result()


@asynccontextmanager
async def keeper(*modes: str, idle_stop_seconds: float | None = None) -> AsyncIterator[Kept]:
    processes: list[EngineProcess] = []

    def make(artifact: ModelSettings) -> list[EngineBackend]:
        assert artifact.launched
        processes.append(EngineProcess("m/gguf", lambda path: fake_argv(path, *modes), timing=TIMING))
        return [EngineBackend("gguf", processes[-1], idle_stop_seconds)]

    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    serving = asyncio.Event()
    source = Source(lambda: LOADED, LOADED)
    kept = Keeper(source, 2, serving.set, make)
    async with asyncio.timeout(LIMIT_SECONDS):
        with theirs:
            running = Kept(kept, processes, control, asyncio.create_task(kept.run(theirs)), serving)
            yield running
            await running.end()


def borrowed(link: Link, model: ModelSettings = MODEL) -> BorrowedEngine:
    """The engine as this worker sees it."""
    (backend,) = link.backends(model)
    assert isinstance(backend, BorrowedEngine)
    return backend


def is_ready(engine: BorrowedEngine) -> bool:
    return engine.state is BackendState.READY


async def until(condition: Callable[[], bool]) -> None:
    """Polls: what an engine is becomes known without an event."""
    while not condition():  # noqa: ASYNC110 - as said
        await asyncio.sleep(0.001)


async def test_every_worker_calls_the_one_engine() -> None:
    async with keeper() as kept:
        engines = [borrowed(await kept.link(index)) for index in range(2)]
        for engine in engines:
            await until(partial(is_ready, engine))
            response = await engine.send(REQUEST)
            assert await body_of(response) == b'{"ok": true}'
            response.close()
            await engine.stop()
        pid = kept.process.pid
        assert pid is not None
        assert await kept.end() == 0
        assert is_gone(pid)


async def test_workers_are_told_how_far_an_engine_is_and_why_it_ended() -> None:
    async with keeper("loading") as kept:
        engine = borrowed(await kept.link(0))
        await until(lambda: engine.progress == 0.42)
        with pytest.raises(BackendLoading) as caught:
            await engine.send(REQUEST)
        assert caught.value.progress == 0.42
        assert kept.process.pid is not None
        os.kill(kept.process.pid, signal.SIGKILL)
        await until(lambda: engine.state is BackendState.FAILED)
        with pytest.raises(BackendUnavailable, match="SIGKILL"):
            await engine.send(REQUEST)
        # One that comes later knows it from the beginning.
        assert borrowed(await kept.link(1)).failure == engine.failure
        await engine.stop()


async def test_what_runs_elsewhere_is_no_business_of_the_keeper() -> None:
    async with keeper() as kept:
        engine = borrowed(await kept.link(0))
        elsewhere = GgufSettings(openai="http://127.0.0.1:1")
        for number in range(3):
            remote = ModelSettings(name=f"remote-{number}", gguf=elsewhere)
            await kept.apply(Settings(models=(MODEL, remote)))
        assert len(kept.processes) == 1, "its backends were built"
        await until(partial(is_ready, engine))


async def test_total_is_of_all_workers_whoever_asks() -> None:
    async with keeper() as kept:
        links = [await kept.link(index) for index in range(2)]
        for number, link in enumerate(links, start=1):
            registry = CollectorRegistry()
            Counter("asked", "Asked.", registry=registry).inc(number)
            link.share(registry)
        for link in links:
            shown = await link.total()
            assert shown.get_sample_value("asked_total") == 3
            cpu = shown.get_sample_value("process_cpu_seconds_total")
            assert cpu, "the keeper counts as well"


async def test_numbers_that_a_worker_leaves_are_kept() -> None:
    async with keeper() as kept:
        leaving, staying = [await kept.link(index) for index in range(2)]
        registry = CollectorRegistry()
        Counter("asked", "Asked.", registry=registry).inc(7)
        leaving.share(registry)
        leaving.send_numbers()
        kept.listening[0].cancel()
        await asyncio.wait(kept.listening[:1])
        del kept.listening[0]
        assert (await staying.total()).get_sample_value("asked_total") == 7


async def test_serving_is_said_once_when_every_worker_does() -> None:
    async with keeper() as kept:
        links = [await kept.link(index) for index in range(2)]
        links[0].serving()
        await links[0].total()  # has crossed by now
        assert not kept.serving.is_set()
        links[1].serving()
        await links[1].total()
        assert kept.serving.is_set()
        kept.serving.clear()
        links[1].serving()
        await links[1].total()
        assert not kept.serving.is_set()


async def test_keeper_whose_supervisor_was_killed_leaves_the_engine_to_its_own_end() -> None:
    """An engine that it stopped would leave its folder behind, for the keeper is killed as well before it is done."""
    async with keeper() as kept:
        link = await kept.link(0)
        await until(partial(is_ready, borrowed(link)))
        kept.control.shutdown(socket.SHUT_WR)
        await link.total()
        assert kept.process.state is BackendState.READY
        kept.task.cancel()
        await asyncio.wait({kept.task})


async def test_keeper_without_a_model_that_loads_ends() -> None:
    async with keeper("fail=1") as kept:
        assert await kept.task == HOPELESS


async def test_without_its_keeper_a_worker_has_no_engine_and_no_totals() -> None:
    async with keeper() as kept:
        link = await kept.link(0)
        engine = borrowed(link)
        await until(partial(is_ready, engine))
        await kept.end()
        with pytest.raises(BackendUnavailable, match="keeper"):
            await engine.send(REQUEST)
        with pytest.raises(KeeperGone):
            await link.total()


async def test_link_without_a_keeper_is_not_opened() -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    with pytest.raises(KeeperGone):
        await Link.open(theirs)


async def test_an_engine_that_is_replaced_ends_when_every_worker_has_let_go() -> None:
    async with keeper() as kept:
        links = [await kept.link(index) for index in range(2)]
        old = [borrowed(link) for link in links]
        for link in links:
            link.on_settings(_nothing)
        for engine in old:
            await until(partial(is_ready, engine))
        changed = ModelSettings(name="m", aliases=("also",), gguf=GgufSettings(source="demo"))
        await kept.apply(Settings(models=(changed,)))
        for link in links:
            await until(partial(serves, link, changed))
        new = [borrowed(link, changed) for link in links]
        for engine in new:
            await until(partial(is_ready, engine))
        assert [engine.state for engine in old] == [BackendState.READY] * 2
        await old[0].stop()
        await links[0].total()
        assert old[1].state is BackendState.READY, "the other worker may have requests on it"
        await old[1].stop()
        async with asyncio.timeout(LIMIT_SECONDS):
            while kept.processes[0].state is not BackendState.STOPPED:
                await kept.processes[0].changed()
        assert kept.processes[1].state is BackendState.READY
        for engine in new:
            await engine.stop()


def serves(link: Link, model: ModelSettings) -> bool:
    return link.settings.models == (model,)


async def _nothing(_: Settings) -> None:
    """A worker that uses what it borrowed for as long as the test says."""
