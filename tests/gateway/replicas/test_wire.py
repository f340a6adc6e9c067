"""Redis' answers, however they are cut into pieces."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.replicas.wire import Connection, Incomplete, RedisGone, RedisRefused, decode, encode

ANSWERS: list[tuple[bytes, Any]] = [
    (b":0\r\n", 0),
    (b":-12\r\n", -12),
    (b"+OK\r\n", b"OK"),
    (b"$5\r\na\r\nbc\r\n", b"a\r\nbc"),
    (b"$0\r\n\r\n", b""),
    (b"$-1\r\n", None),
    (b"*-1\r\n", None),
    (b"*0\r\n", []),
    (b"*3\r\n:1\r\n$1\r\nx\r\n*1\r\n+y\r\n", [1, b"x", [b"y"]]),
]


@pytest.mark.parametrize(("data", "answer"), ANSWERS, ids=lambda value: repr(value)[:24])
def test_answers_are_read_whole_and_no_further(data: bytes, answer: Any) -> None:
    assert decode(b"++" + data + b":1\r\n", 2) == (answer, 2 + len(data))
    for end in range(len(data)):
        with pytest.raises(Incomplete):
            decode(data[:end], 0)


@pytest.mark.parametrize("data", [b"HTTP/1.1 400 Bad\r\n", b":x\r\n", b"$x\r\n", b"$99999999999\r\n"], ids=repr)
def test_what_is_no_answer_is_told(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode(data, 0)


def test_commands_are_counted_in_bytes() -> None:
    assert encode((b"SET", "é".encode(), b"")) == b"*3\r\n$3\r\nSET\r\n$2\r\n\xc3\xa9\r\n$0\r\n\r\n"


class Sink:
    """A transport that keeps what is written and whether it was ended."""

    def __init__(self) -> None:
        self.written = b""
        self.ended = False

    def write(self, data: bytes) -> None:
        self.written += data

    def abort(self) -> None:
        self.ended = True


def connected() -> tuple[Connection, Sink]:
    connection, sink = Connection(), Sink()
    connection.connection_made(sink)  # type: ignore[arg-type]
    return connection, sink


@given(st.lists(st.integers(min_value=1, max_value=7), max_size=20))
async def test_answers_reach_their_calls_in_order(cuts: list[int]) -> None:
    connection, _ = connected()
    calls = [connection.call(b"PING") for _ in range(4)]
    calls[2].cancel()
    data = b":1\r\n-WRONGTYPE no\r\n$2\r\nhi\r\n*1\r\n:4\r\n"
    for cut in cuts:
        connection.data_received(data[:cut])
        data = data[cut:]
    connection.data_received(data)
    assert await calls[0] == 1
    with pytest.raises(RedisRefused, match="WRONGTYPE"):
        await calls[1]
    assert await calls[3] == [4]


async def test_lost_connection_fails_everything_that_waits_and_comes() -> None:
    connection, sink = connected()
    waiting = connection.call(b"PING")
    connection.connection_lost(ConnectionResetError("reset"))
    for call in (waiting, connection.call(b"PING")):
        with pytest.raises(RedisGone):
            await call
    assert connection.lost.done()
    assert sink.written == b""


@pytest.mark.parametrize("data", [b"HTTP/1.1 400\r\n", b":1\r\n:2\r\n"], ids=["not Redis", "answer to nothing"])
async def test_nonsense_ends_the_connection(data: bytes) -> None:
    connection, sink = connected()
    connection.call(b"PING")
    connection.data_received(data)
    assert sink.ended


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("READONLY You can't write against a read only replica.", "READONLY"),
        ("ERR unknown command", "ERR"),
        # Redis 6, Redis 7
        ("ERR Error running script (call to f_1f): @user_script:7: @user_script: 7: -READONLY You can't", "READONLY"),
        ("ERR Error running script (call to f_1f): @user_script:7: WRONGTYPE Operation against", "WRONGTYPE"),
        ("MISCONF Errors writing to the AOF file script: 1f, on @user_script:77.", "MISCONF"),
        ("ERR user_script:1: Script attempted to access a non local key READONLY x", "ERR"),
    ],
)
def test_code_of_a_refusal_is_found_in_every_version(said: str, code: str) -> None:
    assert RedisRefused(said).code == code
