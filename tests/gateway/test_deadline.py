"""A deadline that moves, on one timer."""

from __future__ import annotations

import asyncio

from gateway.deadline import Deadline


class Late:
    """A deadline and the times at which it was found late, relative to the start."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.began = self.loop.time()
        self.calls: list[tuple[str, float]] = []
        self.happened = asyncio.Event()
        self.deadline = Deadline(self.loop)

    def expect(self, seconds: float, name: str = "late") -> None:
        """Expects something, and notes under `name` that it did not happen."""
        self.deadline.expect(seconds, lambda: self._note(name))

    def _note(self, name: str) -> None:
        self.calls.append((name, self.loop.time() - self.began))
        self.happened.set()

    async def noted(self) -> tuple[str, float]:
        """The first note."""
        async with asyncio.timeout(5):
            await self.happened.wait()
        return self.calls[0]


async def test_deadline_passes_once() -> None:
    late = Late()
    late.expect(0.01)
    assert (await late.noted())[0] == "late"
    await asyncio.sleep(0.03)
    assert len(late.calls) == 1


async def test_later_and_shorter_expectation_counts() -> None:
    late = Late()
    late.expect(3600, "first")
    late.expect(0.01, "second")
    assert (await late.noted())[0] == "second"


async def test_later_and_longer_expectation_counts() -> None:
    late = Late()
    late.expect(0.01, "first")
    late.expect(0.05, "second")
    name, after = await late.noted()
    assert name == "second"
    assert after >= 0.049


async def test_progress_moves_the_deadline() -> None:
    late = Late()
    late.expect(0.05)
    for number in range(1, 4):
        late.loop.call_later(0.03 * number, late.deadline.progress)
    assert (await late.noted())[1] >= 0.09 + 0.049


async def test_what_is_forgotten_is_not_late_and_can_be_expected_again() -> None:
    late = Late()
    late.expect(0.01, "forgotten")
    late.deadline.forget()
    await asyncio.sleep(0.03)
    assert late.calls == []
    late.expect(0.01, "again")
    assert (await late.noted())[0] == "again"


async def test_many_expectations_share_a_timer() -> None:
    late = Late()
    armed = 0
    call_at = late.loop.call_at

    def counting(*arguments: object) -> asyncio.TimerHandle:
        nonlocal armed
        armed += 1
        return call_at(*arguments)  # type: ignore[arg-type]

    late.loop.call_at = counting  # type: ignore[method-assign, assignment]
    for _ in range(1000):
        late.expect(30)
        late.deadline.progress()
        late.expect(600)
        late.deadline.forget()
    assert armed == 1
    late.deadline.close()


async def test_closed_deadline_calls_nobody() -> None:
    late = Late()
    late.expect(0)
    late.deadline.close()
    late.deadline.close()
    await asyncio.sleep(0.01)
    assert late.calls == []
