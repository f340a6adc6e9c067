"""What is written in one turn of the loop leaves together."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from typing import cast

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from backends.outbox import FEW, LARGE_BYTES, Outbox, outbox_of


class Wire:
    """A transport that keeps each write."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return self.closed


def transport(wire: Wire) -> asyncio.Transport:
    return cast(asyncio.Transport, wire)


def busy() -> Outbox:
    outbox = Outbox()
    outbox.exchanges = FEW + 1
    return outbox


async def test_writes_wait_for_the_end_of_the_turn_and_are_one_for_each_connection() -> None:
    outbox, one, other = busy(), Wire(), Wire()
    outbox.write(transport(one), b"a")
    outbox.write(transport(other), b"x")
    outbox.write(transport(one), b"b")
    assert (one.written, other.written) == ([], [])
    await asyncio.sleep(0)
    assert (one.written, other.written) == ([b"ab"], [b"x"])
    outbox.write(transport(one), b"c")
    await asyncio.sleep(0)
    assert one.written == [b"ab", b"c"], "the next turn has an end, too"


async def test_where_little_is_under_way_nobody_waits() -> None:
    outbox, wire = busy(), Wire()
    outbox.exchanges = FEW
    outbox.write(transport(wire), b"a")
    assert wire.written == [b"a"]


async def test_nothing_overtakes_what_waits() -> None:
    outbox, wire = busy(), Wire()
    outbox.write(transport(wire), b"a")
    outbox.exchanges = 0
    outbox.write(transport(wire), b"b")
    await asyncio.sleep(0)
    assert b"".join(wire.written) == b"ab"


async def test_what_is_large_is_written_at_once_with_what_was_before_it() -> None:
    outbox, wire = busy(), Wire()
    outbox.write(transport(wire), b"a")
    outbox.write(transport(wire), b"x" * LARGE_BYTES)
    assert wire.written == [b"a" + b"x" * LARGE_BYTES]
    await asyncio.sleep(0)
    assert len(wire.written) == 1


async def test_nothing_is_written_to_who_has_been_closed_meanwhile_and_the_others_get_theirs() -> None:
    outbox, gone, here = busy(), Wire(), Wire()
    outbox.write(transport(gone), b"a")
    outbox.write(transport(here), b"b")
    gone.closed = True
    outbox.flush()
    assert (gone.written, here.written) == ([], [b"b"])


async def test_one_that_refuses_to_write_is_aborted_and_the_others_get_theirs() -> None:
    class Refusing(Wire):
        aborted = False

        def write(self, data: bytes) -> None:  # noqa: ARG002
            raise RuntimeError("Cannot call write() after write_eof()")

        def abort(self) -> None:
            self.aborted = True

    outbox, bad, good = busy(), Refusing(), Wire()
    outbox.write(transport(bad), b"a")
    outbox.write(transport(good), b"b")
    outbox.flush()
    assert bad.aborted
    assert good.written == [b"b"]


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["write", "flush", "turn", "busy", "quiet"]))))
def test_every_connection_gets_its_bytes_in_order(steps: list[tuple[int, str]]) -> None:
    async def run() -> None:
        outbox, wires, expected = busy(), [Wire(), Wire(), Wire()], [b"", b"", b""]
        for number, (which, step) in enumerate(steps):
            if step == "write":
                data = b"%d," % number * (1 + 9000 * (number % 3))
                expected[which] += data
                outbox.write(transport(wires[which]), data)
            elif step == "flush":
                outbox.flush()
            elif step == "turn":
                await asyncio.sleep(0)
            else:
                outbox.exchanges = FEW + 1 if step == "busy" else 0
        await asyncio.sleep(0)
        assert [b"".join(wire.written) for wire in wires] == expected

    asyncio.run(run())


async def test_there_is_one_for_each_loop() -> None:
    loop = asyncio.get_running_loop()
    assert outbox_of(loop) is outbox_of(loop)
    other = asyncio.new_event_loop()
    try:
        assert outbox_of(other) is not outbox_of(loop)
    finally:
        other.close()


@pytest.mark.parametrize("make", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_it_goes_with_its_loop(make: Callable[[], asyncio.AbstractEventLoop]) -> None:
    loop = make()
    gone = weakref.ref(loop)

    async def use() -> None:
        outbox = outbox_of(asyncio.get_running_loop())
        outbox.exchanges = FEW + 1
        outbox.write(transport(Wire()), b"a")

    loop.run_until_complete(use())
    loop.close()
    del loop
    gc.collect()
    assert gone() is None
