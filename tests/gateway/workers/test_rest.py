"""A keeper that puts its engine to sleep, and workers that use it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from functools import partial
from typing import Any

import pytest

from backends.base import BackendState
from backends.borrowed import BorrowedEngine
from gateway.metrics import Series
from gateway.usage import Usage
from gateway.workers.link import Link
from gateway.workers.rest import Rest
from tests.backends.supervised import LIMIT_SECONDS
from tests.fakes import body_of
from tests.gateway.workers.test_keeper import REQUEST, Kept, borrowed, is_ready, keeper, until


class Worker:
    """What a worker has: the engine, and requests that run on it."""

    def __init__(self, link: Link) -> None:
        self.engine = borrowed(link)
        self.running = 0
        usage = Usage(Series(), lambda: self.running, lambda: 0)
        self.reporting = asyncio.create_task(link.report_use({self.engine: usage}))

    async def ask(self) -> None:
        """As a request that waits for the engine to be there: nothing happens between the look and the dispatch."""
        while not is_ready(self.engine):
            self.engine.wake()
            await asyncio.sleep(0.001)
        self.running += 1
        try:
            response = await self.engine.send(REQUEST)
            assert await body_of(response) == b'{"ok": true}'
            response.close()
        finally:
            self.running -= 1


async def workers(kept: Kept, number: int = 2) -> list[Worker]:
    return [Worker(await kept.link(index)) for index in range(number)]


async def leave(crew: Collection[Worker]) -> None:
    for worker in crew:
        worker.reporting.cancel()
    await asyncio.wait([worker.reporting for worker in crew])


def sleeps(engine: BorrowedEngine) -> bool:
    return engine.state is BackendState.STOPPED and engine.asleep


async def test_every_worker_is_told_that_it_sleeps_and_any_of_them_wakes_it() -> None:
    async with keeper(idle_stop_seconds=0.02) as kept:
        crew = await workers(kept)
        for worker in crew:
            await until(partial(sleeps, worker.engine))
        await asyncio.gather(*(worker.ask() for worker in crew for _ in range(5)))
        await leave(crew)


async def test_a_request_on_one_worker_keeps_it_awake_for_all() -> None:
    async with keeper(idle_stop_seconds=0.02) as kept:
        crew = await workers(kept)
        crew[0].running = 1
        await until(partial(is_ready, crew[1].engine))
        pid = kept.process.pid
        for _ in range(20):
            await crew[1].ask()
        assert kept.process.pid == pid
        crew[0].running = 0
        await until(partial(sleeps, crew[1].engine))
        await leave(crew)


async def test_no_request_is_lost_between_the_question_and_the_stop() -> None:
    async with keeper(idle_stop_seconds=0.002) as kept:
        crew = await workers(kept)
        lives: set[int | None] = set()

        async def count() -> None:
            while True:
                await kept.process.changed()
                lives.add(kept.process.pid)

        counting = asyncio.create_task(count())

        async def use(worker: Worker) -> None:
            while len(lives) < 20:
                await worker.ask()
                await until(lambda: not is_ready(worker.engine))

        await asyncio.gather(*(use(worker) for worker in crew for _ in range(2)))
        counting.cancel()
        await leave(crew)


async def test_from_its_yes_on_a_worker_sends_nothing_until_it_hears_otherwise() -> None:
    async with keeper() as kept:
        crew = await workers(kept)
        for worker in crew:
            await until(partial(is_ready, worker.engine))
        crew[1].running = 1
        for channel in kept.keeper._channels:
            channel.send({"rest": 1})
        await until(lambda: crew[0].engine.asleep)
        assert crew[0].engine.state is BackendState.DRAINING
        assert is_ready(crew[1].engine), "it said no"
        for channel in kept.keeper._channels:
            channel.send({"engines": kept.keeper._engines.all[0].status})
        await crew[0].ask()
        await leave(crew)


async def test_a_worker_that_is_gone_keeps_nobody_awake() -> None:
    async with keeper(idle_stop_seconds=0.02) as kept:
        crew = await workers(kept)
        await until(partial(is_ready, crew[1].engine))
        crew[0].running = 1
        crew[0].reporting.cancel()
        kept.listening[0].cancel()
        await asyncio.wait(kept.listening[:1])
        del kept.listening[0]
        await until(partial(sleeps, crew[1].engine))
        await leave(crew)


class Told:
    """A channel that keeps what it was given."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any]) -> None:
        self.messages.append(message)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([("yes", 0), ("yes", 1)], True),
        ([("yes", 0), ("no", 1)], False),
        ([("no", 0)], False),
        ([("yes", 0), ("wants", 0), ("yes", 1)], False),
        ([("yes", 1), ("yes", 0), ("wants", 1)], False),
    ],
)
async def test_all_have_to_say_yes_and_nobody_may_want_it_after_that(
    answers: list[tuple[str, int]], expected: bool
) -> None:
    channels: Any = [Told(), Told()]
    rest = Rest(7, lambda: channels, lambda: {"7": "as it is"})
    asking = asyncio.create_task(rest.let_go())
    async with asyncio.timeout(LIMIT_SECONDS):
        while not channels[1].messages:  # noqa: ASYNC110 - a list tells nobody
            await asyncio.sleep(0)
        assert rest.resting
        for word, index in answers:
            if word == "wants":
                rest.want()
            else:
                rest.hear(channels[index], may=word == "yes")
        assert await asking is expected
    assert rest.resting is expected
    said = [{"rest": 7}] if expected else [{"rest": 7}, {"engines": {"7": "as it is"}}]
    assert [channel.messages for channel in channels] == [said, said]
