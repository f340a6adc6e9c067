"""A conversation through the seam: what is remembered, what is shown, what stops."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import AsyncIterator

import pytest

from backends.base import BackendState
from backends.errors import BackendProtocolError, ContextLengthExceeded
from gateway.cli.chat import Chat, ChatFailed, LoopThread, read_deltas
from tests.fakes import FakeBackend, chat_events

ANSWER = chat_events("Hel", "lo", "\n", "wörld 🙂")


def roles_and_texts(backend: FakeBackend) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in json.loads(backend.requests[-1].body)["messages"]]


async def test_conversation_is_remembered_and_forgotten() -> None:
    backend = FakeBackend(script=ANSWER)
    chat = Chat(backend, "fake", "Be brief.")
    shown: list[str] = []
    await chat.ask("Hi", shown.append)
    assert "".join(shown) == "Hello\nwörld 🙂"
    await chat.ask("And?", shown.append)
    answer = ("assistant", "Hello\nwörld 🙂")
    assert roles_and_texts(backend) == [("system", "Be brief."), ("user", "Hi"), answer, ("user", "And?")]
    chat.clear()
    await chat.ask("New", shown.append)
    assert roles_and_texts(backend) == [("system", "Be brief."), ("user", "New")]
    assert backend.open == 0


async def test_stopped_answer_is_remembered_as_far_as_it_went() -> None:
    backend = FakeBackend(script=[ANSWER[0], asyncio.Event()])
    chat = Chat(backend, "fake", None)
    begun = asyncio.Event()
    task = asyncio.create_task(chat.ask("Hi", lambda _: begun.set()))
    await begun.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (backend.open, backend.aborted) == (0, 1)
    backend.script = ANSWER
    await chat.ask("Go on", lambda _: None)
    assert roles_and_texts(backend) == [("user", "Hi"), ("assistant", "Hel"), ("user", "Go on")]


@pytest.mark.parametrize(
    "backend",
    [
        FakeBackend(before=[ContextLengthExceeded("too long")]),
        FakeBackend(script=[b'data: {"error": {"message": "too long"}}\n\n']),
    ],
    ids=["before", "within"],
)
async def test_unanswered_question_is_forgotten(backend: FakeBackend) -> None:
    chat = Chat(backend, "fake", None)
    with pytest.raises(ChatFailed, match="too long"):
        await chat.ask("Hi", lambda _: None)
    backend.before, backend.script = (), ANSWER
    await chat.ask("Again", lambda _: None)
    assert roles_and_texts(backend) == [("user", "Again")]


@pytest.mark.parametrize("script", [ANSWER[:2], [*ANSWER[:2], BackendProtocolError("reset")]], ids=["ended", "broke"])
async def test_answer_without_its_end_is_a_failure(script: list[bytes]) -> None:
    with pytest.raises(ChatFailed):
        await Chat(FakeBackend(script=script), "fake", None).ask("Hi", lambda _: None)


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_pieces_are_read_across_any_split(size: int) -> None:
    stream = b": ping\n\n" + b"".join(ANSWER).replace(b"\n\n", b"\r\n\r\n")

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(stream), size):
            yield stream[start : start + size]

    assert [piece async for piece in read_deltas(chunks())] == ["Hel", "lo", "\n", "wörld 🙂"]


async def test_start_reports_progress_and_waits() -> None:
    backend = FakeBackend(state=BackendState.STARTING)
    backend.progress = 0.5
    seen: list[float] = []

    def report(progress: float) -> None:
        seen.append(progress)
        backend.state = BackendState.READY

    await Chat(backend, "fake", None).start(report)
    assert seen == [0.5]


async def test_failed_start_says_why() -> None:
    backend = FakeBackend(state=BackendState.FAILED)
    backend.failure = "not enough memory"
    with pytest.raises(ChatFailed, match="not enough memory"):
        await Chat(backend, "fake", None).start(lambda _: None)


def test_interrupt_stops_the_call_and_leaves_the_loop_running(request: pytest.FixtureRequest) -> None:
    # Whoever started us in the background of a script has SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    cleaned = threading.Event()

    async def long() -> None:
        try:
            # A real SIGINT, once the call has begun; the main thread is the one that is waiting for it.
            asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    async def answer() -> int:
        return 7

    with LoopThread() as background:
        with pytest.raises(KeyboardInterrupt):
            background.call(long())
        assert cleaned.is_set()
        assert background.call(answer()) == 7
