"""The transport that answers are written to."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from backends.outbox import FEW, outbox_of
from gateway.outgoing import Outgoing


class Wire(asyncio.Transport):
    """A transport that notes what is done to it."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 1)})
        self.seen: list[Any] = []

    def write(self, data: Any) -> None:
        self.seen.append(data)

    def close(self) -> None:
        self.seen.append("close")

    def write_eof(self) -> None:
        self.seen.append("eof")

    def get_write_buffer_size(self) -> int:
        self.seen.append("size")
        return 7

    def is_closing(self) -> bool:
        return "close" in self.seen


@pytest.fixture
async def outgoing() -> Any:
    loop = asyncio.get_running_loop()
    outbox_of(loop).exchanges += FEW + 1
    wire = Wire()
    yield Outgoing(wire, loop), wire
    outbox_of(loop).exchanges -= FEW + 1


@pytest.mark.parametrize(
    ("step", "name"), [(Outgoing.close, "close"), (Outgoing.write_eof, "eof"), (Outgoing.get_write_buffer_size, "size")]
)
async def test_what_was_written_comes_before_what_ends_it(outgoing: Any, step: Any, name: str) -> None:
    transport, wire = outgoing
    transport.write(b"answer")
    assert wire.seen == []
    step(transport)
    assert wire.seen == [b"answer", name]
    await asyncio.sleep(0)
    assert len(wire.seen) == 2, "once"


async def test_nothing_is_written_after_the_end(outgoing: Any) -> None:
    transport, wire = outgoing
    transport.write(b"answer")
    transport.write_eof()
    transport.write(b"HTTP/1.1 100 Continue")
    await asyncio.sleep(0)
    assert wire.seen == [b"answer", "eof"]


async def test_it_tells_of_the_real_one(outgoing: Any) -> None:
    transport, _ = outgoing
    assert transport.get_extra_info("peername") == ("192.0.2.1", 1)
    assert not transport.is_closing()
    transport.close()
    assert transport.is_closing()
