"""Deadlines that move, and a client that leaves."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from gateway.errors import BodyTimeout, ClientGone
from gateway.watch import Watch


def too_late() -> Exception:
    return BodyTimeout("too late")


async def ended(watch: Watch) -> Exception | None:
    """Waits in the way that requests wait, until the watch ends it."""
    task = asyncio.current_task()
    assert task is not None
    try:
        async with asyncio.timeout(5):
            await asyncio.Event().wait()
    except asyncio.CancelledError:
        verdict = watch.recover()
        assert task.cancelling() == 0, "the task can go on waiting for other things"
        await asyncio.sleep(0)
        return verdict
    return None


async def test_deadline_ends_the_waiting() -> None:
    watch = Watch()
    watch.expect(0.01, too_late)
    assert isinstance(await ended(watch), BodyTimeout)


async def test_later_and_shorter_expectation_counts() -> None:
    watch = Watch()
    watch.expect(3600, ValueError)
    watch.expect(0.01, too_late)
    assert isinstance(await ended(watch), BodyTimeout)


async def test_later_and_longer_expectation_counts() -> None:
    watch = Watch()
    watch.expect(0.01, ValueError)
    watch.expect(0.05, too_late)
    assert isinstance(await ended(watch), BodyTimeout)


async def test_progress_moves_the_deadline() -> None:
    watch = Watch()
    loop = asyncio.get_running_loop()
    began = loop.time()
    watch.expect(0.05, too_late)
    for number in range(1, 4):
        loop.call_later(0.03 * number, watch.progress)
    assert isinstance(await ended(watch), BodyTimeout)
    assert loop.time() - began >= 0.09 + 0.04


@pytest.mark.parametrize("before", [0, 2], ids=["at once", "after other messages"])
async def test_client_that_leaves_ends_the_waiting(before: int) -> None:
    messages = [{"type": "http.request"}] * before + [{"type": "http.disconnect"}]

    async def receive() -> MutableMapping[str, Any]:
        return messages.pop(0)

    watch = Watch()
    watch.listen(receive)
    assert isinstance(await ended(watch), ClientGone)


async def test_end_of_an_answer_is_not_taken_for_the_clients_leaving() -> None:
    left = asyncio.Event()

    async def receive() -> MutableMapping[str, Any]:
        await left.wait()
        return {"type": "http.disconnect"}

    watch = Watch()
    watch.listen(receive)
    await asyncio.sleep(0)
    watch.stop_listening()
    left.set()
    await asyncio.sleep(0)
    assert watch.verdict is None
    watch.expect(0.01, too_late)
    assert isinstance(await ended(watch), BodyTimeout), "the deadline goes on"


async def test_closed_watch_ends_nothing() -> None:
    watch = Watch()
    watch.expect(0, too_late)
    watch.close()
    await asyncio.sleep(0.01)
    assert watch.verdict is None


async def test_cancellation_by_somebody_else_is_not_explained() -> None:
    watch = Watch()
    asyncio.get_running_loop().call_soon(asyncio.current_task().cancel)  # type: ignore[union-attr]
    with pytest.raises(asyncio.CancelledError):
        await asyncio.Event().wait()
    assert watch.recover() is None
