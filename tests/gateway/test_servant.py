"""Who serves the calls of a connection."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from gateway.call import Call
from gateway.servant import Servant


class Work:
    """Serves by waiting until it is told to end."""

    def __init__(self) -> None:
        self.ends: list[asyncio.Event] = []
        self.by: list[asyncio.Task[Any] | None] = []

    async def __call__(self, _: Call) -> None:
        self.by.append(asyncio.current_task())
        self.ends.append(asyncio.Event())
        await self.ends[-1].wait()


def call() -> Call:
    return cast(Call, SimpleNamespace(servant=None))


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_calls_after_each_other_have_one_task_and_it_ends_with_the_connection() -> None:
    servant, work = Servant(asyncio.get_running_loop()), Work()
    for number in range(3):
        one = call()
        assert servant.begin(one, work) is one.servant
        await turns()
        assert work.by[number] is one.servant
        work.ends[number].set()
        await turns()
    assert len(set(work.by)) == 1
    task = work.by[0]
    assert task is not None
    assert not task.done()
    servant.close()
    await asyncio.wait_for(task, 5)


async def test_a_call_that_begins_before_the_last_one_is_over_has_a_task_of_its_own() -> None:
    servant, work = Servant(asyncio.get_running_loop()), Work()
    tasks = [servant.begin(call(), work), servant.begin(call(), work)]
    await turns()
    assert len(set(work.by)) == 2
    for end in work.ends:
        end.set()
    await turns()
    assert [task.done() for task in tasks] == [False, True], "one is kept for the next call"
    assert servant.begin(call(), work) is tasks[0]
    await turns()
    servant.close()
    work.ends[2].set()
    await asyncio.wait_for(tasks[0], 5)


async def test_who_is_cancelled_while_idle_does_not_hinder_the_end() -> None:
    servant, work = Servant(asyncio.get_running_loop()), Work()
    task = servant.begin(call(), work)
    await turns()
    work.ends[0].set()
    await turns()
    task.cancel()
    await asyncio.wait({task}, timeout=5)
    assert task.cancelled()
    servant.close()
