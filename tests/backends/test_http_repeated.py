"""Heads that are known by their bytes: what is made of a message then is what a parser makes of it."""

from __future__ import annotations

from typing import Any

import httptools
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from backends.http_repeated import Repeated

FIELDS = st.sampled_from(
    [
        b"host: x", b"x: y", b"X:y", b"x:", b"x: 7", b"content-type: application/json", b"authorization: Bearer a",
        b"connection: close", b"connection: keep-alive", b"connection: upgrade", b"upgrade: h2c",
        b"content-length: 3", b"Content-Length:3", b"content-length:  3", b"content-length: 3 ", b"content-length: 03",
        b"transfer-encoding: chunked", b"transfer-encoding: gzip", b" folded", b"x-content-length: 3", b"bare\n",
        b"x: \r\n content-length: 3", b"",
    ]
)  # fmt: skip
STARTS = {
    httptools.HttpRequestParser: (
        b"POST /a HTTP/1.1",
        b"GET /a HTTP/1.1",
        b"POST /a HTTP/1.0",
        b"CONNECT a:1 HTTP/1.1",
    ),
    httptools.HttpResponseParser: (b"HTTP/1.1 200 OK", b"HTTP/1.0 200 OK", b"HTTP/1.1 404 N"),
}
KINDS = pytest.mark.parametrize("kind", STARTS, ids=["requests", "answers"])
LENGTH = b"content-length"

Fields = list[tuple[bytes, bytes]]


class Ears:
    """All that a parser tells of some bytes: (start, headers, body) of each whole message; None for what is refused or
    has an unfinished message in it."""

    def __init__(self) -> None:
        self.messages: list[tuple[list[bytes], Fields, bytes]] = []
        self.open = False

    def on_message_begin(self) -> None:
        self.open = True
        self.messages.append(([], [], b""))

    def on_url(self, url: bytes) -> None:
        self.messages[-1][0].append(url)

    def on_status(self, status: bytes) -> None:
        self.messages[-1][0].append(status)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.messages[-1][1].append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        start, headers, before = self.messages[-1]
        self.messages[-1] = start, headers, before + body

    def on_message_complete(self) -> None:
        self.open = False


def parsed(kind: Any, data: bytes) -> list[tuple[list[bytes], Fields, bytes]] | None:
    ears = Ears()
    parser = kind(ears)
    if kind is httptools.HttpRequestParser:
        parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
    try:
        parser.feed_data(data)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    return None if ears.open else ears.messages


def but_for_length(headers: Fields) -> Fields:
    return [header for header in headers if header[0] != LENGTH]


@st.composite
def messages(draw: st.DrawFn, starts: tuple[bytes, ...]) -> bytes:
    """One that may be right, with a length that may be."""
    lines = [draw(st.sampled_from(starts)), *draw(st.lists(FIELDS, max_size=4))]
    body = draw(st.sampled_from([b"", b"abc", b"0\r\n\r\n", b"\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"]))
    name = draw(st.sampled_from([LENGTH, b"Content-Length"]))
    lines.insert(draw(st.integers(1, len(lines))), b"%b: %d" % (name, len(body)))
    return b"\r\n".join([*lines, b"", body])


@st.composite
def mutants(draw: st.DrawFn, data: bytes) -> bytes:
    """The same bytes, or almost; or the same head with another length."""
    at = draw(st.integers(0, len(data) - 1))
    byte = draw(
        st.sampled_from([b"", b"\r", b"\n", b" ", b"0", b"1", b"9", b"-", b"x", b"\0", b"\r\n", data[at : at + 1]])
    )
    mutant = data[:at] + byte + data[at + draw(st.integers(0, 1)) :]
    head, end, _ = data.partition(b"\r\n\r\n")
    body = draw(st.binary(max_size=12))
    lines = [b"Content-Length: %d" % len(body) if line.lower().startswith(LENGTH + b": ") else line for line in
             head.split(b"\r\n")]  # fmt: skip
    return draw(st.sampled_from([mutant, b"\r\n".join(lines) + end + body]))


@KINDS
@settings(max_examples=500)
@given(data=st.data())
def test_what_is_known_is_what_a_parser_would_find(kind: Any, data: st.DataObject) -> None:
    pieces = data.draw(st.lists(messages(STARTS[kind]), min_size=1, max_size=2))
    learned = b"".join(pieces)
    before = parsed(kind, learned)
    assume(before is not None)
    repeated = Repeated()
    if not repeated.learn(learned):
        return
    assert before is not None
    assert len(before) == 1
    assert repeated.body_in(learned) == before[0][2]
    seen = data.draw(mutants(learned))
    body = repeated.body_in(seen)
    if body is not None:
        found = parsed(kind, seen)
        assert found is not None
        assert len(found) == 1
        start, headers, rest = found[0]
        assert (start, but_for_length(headers), rest) == (before[0][0], but_for_length(before[0][1]), body)
        assert [int(value) for name, value in headers if name == LENGTH] == [len(body)]


def message(body: bytes, *fields: bytes, length: bytes | None = None) -> bytes:
    length = b"%d" % len(body) if length is None else length
    return b"\r\n".join([b"POST / HTTP/1.1", b"Host: x", b"Content-Length: " + length, *fields, b"", body])


def test_head_is_known_with_any_length() -> None:
    repeated = Repeated()
    assert repeated.body_in(message(b"hi")) is None
    assert repeated.learn(message(b"hi", b"x: y"))
    for body in (b"", b"hi", b"x" * 100_000, message(b"hi", b"x: y")):
        assert repeated.body_in(message(body, b"x: y")) == body
    assert repeated.body_in(message(b"hi", b"x: y", length=b"002")) is None
    assert repeated.learn(message(b"", b"x: z"))
    assert repeated.body_in(message(b"hi", b"x: y")) is None
    assert repeated.body_in(message(b"hi", b"x: z")) == b"hi"


def test_no_byte_of_the_head_may_be_another_and_none_may_be_missing() -> None:
    known = message(b"hello", b"x: y")
    repeated = Repeated()
    assert repeated.learn(known)
    for at in range(len(known) - len(b"hello")):
        for byte in range(256):
            if byte != known[at]:
                assert repeated.body_in(known[:at] + bytes([byte]) + known[at + 1 :]) is None
        assert repeated.body_in(known[:at]) is None
        assert repeated.body_in(known[:at] + known[at + 1 :]) is None
        assert repeated.body_in(known[:at] + b" " + known[at:]) is None


@pytest.mark.parametrize(
    "length", [b"", b"1", b"3", b"-2", b"+2", b" 2", b"2 ", b"2,2", b"0x2", b"0000000002", b"\xb2"]
)
def test_length_has_to_be_that_of_the_body(length: bytes) -> None:
    repeated = Repeated()
    assert repeated.learn(message(b"hi"))
    assert repeated.body_in(message(b"hi", length=length)) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"POST / HTTP/1.1\r\nhost: x\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\nh",
        message(b"hi") + message(b"hi"),
        message(b"hi") + b"\r\n",
        message(b"hi", length=b"1"),
        message(b"hi", b"content-length: 2"),
        message(b"hi", b"content-length: 2", b"x: y"),
        message(b"hi", b"x: " + b"y" * 8192),
    ],
    ids=lambda data: repr(data)[:60],
)
def test_only_one_whole_message_with_one_length_is_learned(data: bytes) -> None:
    repeated = Repeated()
    assert repeated.learn(message(b"good"))
    assert not repeated.learn(data)
    assert repeated.body_in(message(b"hello")) == b"hello"


def test_heads_that_never_come_again_are_looked_at_seldom() -> None:
    repeated = Repeated()
    learned = [repeated.learn(message(b"hi", b"id: %d" % number)) for number in range(1, 65)]
    assert [number for number, done in enumerate(learned, 1) if done] == [*range(1, 17), 32, 48, 64]
    assert repeated.body_in(message(b"", b"id: 64")) == b""
    assert repeated.learn(message(b"hi", b"id: 65"))
