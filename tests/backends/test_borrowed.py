"""BorrowedEngine: what callers meet in each state that it is told, and that it leaves the engine alone."""

from __future__ import annotations

import pytest

from backends.base import BackendState, InferenceRequest, Operation
from backends.borrowed import BorrowedEngine
from backends.errors import BackendError, BackendLoading, BackendUnavailable
from backends.launch import EnginePlan
from backends.lifecycle import EngineStatus
from tests.backends.supervised import LIMIT_SECONDS, Make, ask
from tests.fakes import body_of

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])

PLAN = EnginePlan("gguf", "demo/gguf", lambda _: ())
REQUEST = InferenceRequest(Operation.CHAT, "demo", b'{"model": "demo"}', False, "request-1")


def nothing() -> None:
    """Its owner is nobody."""


async def test_engine_of_somebody_else_answers_and_outlives_its_borrower(make: Make) -> None:
    process = make()
    borrowed = BorrowedEngine(PLAN, process.status, nothing, nothing)
    await borrowed.start()
    with pytest.raises(BackendUnavailable, match="stopped"):
        await borrowed.send(REQUEST)
    await process.start()
    await process.wait_ready(LIMIT_SECONDS)
    borrowed.tell(process.status)
    assert (borrowed.name, borrowed.state, borrowed.progress, borrowed.failure) == ("gguf", BackendState.READY, 1.0, "")
    response = await borrowed.send(REQUEST)
    assert await body_of(response) == b'{"ok": true}'
    response.close()
    await borrowed.stop()
    await borrowed.stop()
    assert process.state is BackendState.READY
    assert await ask(process, "GET", "/health") == 200


@pytest.mark.parametrize(
    ("status", "error", "said"),
    [
        (EngineStatus("unix:/x", BackendState.STARTING, progress=0.5), BackendLoading, "loading"),
        (EngineStatus("unix:/x", BackendState.STOPPED, progress=0.5, asleep=True), BackendLoading, "loading"),
        (EngineStatus("unix:/x", BackendState.FAILED, failure="no memory"), BackendUnavailable, "failed: no memory"),
        (EngineStatus("unix:/x", BackendState.DRAINING), BackendUnavailable, "draining: not running"),
        (EngineStatus("unix:/nowhere", BackendState.READY), BackendUnavailable, "No connection"),
    ],
    ids=["starting", "asleep", "failed", "draining", "gone since"],
)
async def test_call_that_makes_no_sense_is_refused(status: EngineStatus, error: type[BackendError], said: str) -> None:
    borrowed = BorrowedEngine(PLAN, status, nothing, nothing)
    with pytest.raises(error, match=said) as caught:
        await borrowed.send(REQUEST)
    assert caught.value.backend == "gguf"
    assert getattr(caught.value, "progress", 0.5) == 0.5
    await borrowed.stop()


async def test_its_owner_is_asked_once_to_wake_it() -> None:
    asked: list[str] = []
    asleep = EngineStatus("unix:/x", BackendState.STOPPED, asleep=True)
    borrowed = BorrowedEngine(PLAN, asleep, nothing, lambda: asked.append("wake"))
    for _ in range(3):
        borrowed.wake()
    assert (asked, borrowed.asleep) == (["wake"], True)
    # After news of it, an earlier question may be forgotten.
    borrowed.tell(asleep)
    borrowed.wake()
    assert asked == ["wake", "wake"]
    borrowed.tell(EngineStatus("unix:/x", BackendState.READY))
    borrowed.wake()
    assert asked == ["wake", "wake"]
    await borrowed.stop()
