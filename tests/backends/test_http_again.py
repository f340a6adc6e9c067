"""Answers of one engine that begin alike: each has its own body and length, and whatever else it says is heard."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest

from tests.backends.http_fuzz import DICTIONARY
from tests.backends.peer import TRANSPORTS, Talk, Transport, answer, fetch, serve
from tests.backends.wire import Counted, Outcome, Talker, finished

JSON = b"content-type: application/json"


class Engine(Talker):
    """One connection whose parser counts."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.parser = Counted(self.connection._parser)
        self.connection._parser = self.parser  # type: ignore[assignment]

    def says(self, *pieces: bytes, parsed: int) -> Outcome:
        """The outcome of one exchange, of whose answer the parser gets so many reads."""
        before = self.parser.reads
        outcome = self.ask(pieces)
        assert self.parser.reads - before == parsed
        return outcome


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def engine(loop: asyncio.AbstractEventLoop) -> Engine:
    return Engine(loop)


def right(outcome: Outcome, body: bytes, *headers: tuple[bytes, bytes], status: int = 200) -> bool:
    said = {*headers, (b"content-length", b"%d" % len(body))}
    return (outcome.status, outcome.body, outcome.error) == (status, body, "") and (
        len(outcome.headers) == len(said) and set(outcome.headers) == said
    )


def test_head_is_parsed_once_and_each_answer_has_its_own_length_and_body(engine: Engine) -> None:
    kind = (b"content-type", b"application/json")
    for turn, body in enumerate((b"hello", b"", b"x" * 500_000, b"hi", b"HTTP/1.1 500 E\r\n\r\n")):
        outcome = engine.says(answer(body, JSON), parsed=int(turn == 0))
        assert right(outcome, body, kind)
        assert outcome.kept
        outcome.headers.clear()  # a caller's own


def test_another_head_is_heard_and_known_from_then_on(engine: Engine) -> None:
    for value in (b"1", b"2", b"1"):
        for parsed in (1, 0):
            assert right(engine.says(answer(b"hi", b"x: " + value), parsed=parsed), b"hi", (b"x", value))


@pytest.mark.parametrize("line", [b"HTTP/1.1 404 N", b"HTTP/1.1 500 E", b"HTTP/1.1 204 N"])
def test_every_other_status_is_heard_each_time(engine: Engine, line: bytes) -> None:
    body = b"" if b"204" in line else b"no"
    sent = line + b"\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    for _ in range(3):
        assert right(engine.says(answer(b"hi"), parsed=1), b"hi")
        for _ in range(2):
            assert right(engine.says(sent, parsed=1), body, status=int(line.split()[1]))
        engine.says(answer(b"", b"x: y"), parsed=1)


def test_answer_in_two_reads_is_parsed(engine: Engine) -> None:
    sent = answer(b"hello")
    for _ in range(2):
        assert right(engine.ask([sent]), b"hello")
        for cut in range(1, len(sent)):
            assert right(engine.says(sent[:cut], sent[cut:], parsed=2), b"hello")


def test_answer_behind_an_interim_one_is_parsed(engine: Engine) -> None:
    early = b"HTTP/1.1 103 E\r\n\r\n"
    for _ in range(2):
        assert right(engine.ask([answer(b"hello")]), b"hello")
        assert right(engine.says(early + answer(b"hello"), parsed=1), b"hello")
        assert right(engine.says(early, answer(b"hello"), parsed=2), b"hello")


@pytest.mark.parametrize("more", [b"\r\n", b"more", answer(b"poison")])
def test_connection_is_not_kept_behind_an_answer_with_more_than_its_body(engine: Engine, more: bytes) -> None:
    assert engine.ask([answer(b"hello")]).kept
    outcome = engine.says(answer(b"hello") + more, parsed=1)
    assert right(outcome, b"hello")
    assert outcome.kept == (more == b"\r\n")


def test_connection_is_not_kept_where_more_comes_later(engine: Engine) -> None:
    assert engine.ask([answer(b"hello")]).kept
    outcome = engine.says(answer(b"hello"), answer(b"poison"), parsed=0)
    assert right(outcome, b"hello")
    assert not outcome.kept


def test_answer_that_is_shorter_than_it_says_is_cut_short(engine: Engine) -> None:
    assert engine.ask([answer(b"hello")]).kept
    outcome = engine.says(answer(b"hello")[:-1], parsed=1)
    assert (outcome.body, outcome.kept) == (b"hell", False)
    assert "cut short" in outcome.error


def test_answer_that_comes_before_the_request_was_sent_ends_the_connection(engine: Engine) -> None:
    connection = engine.connection
    assert engine.ask([answer(b"hello")]).kept
    connection.pause_writing()
    asking = connection.exchange(b"", b"request")
    asking.send(None)
    connection.data_received(answer(b"too soon"))
    response = finished(asking)
    assert (response.status, response.whole()) == (200, b"too soon")
    response.close()
    assert engine.wire.aborted


def test_long_lived_connection_hears_what_a_new_one_hears(loop: asyncio.AbstractEventLoop) -> None:
    source = random.Random(20261122)
    old, known = Engine(loop), 0
    for _ in range(4000):
        sent = bytearray(answer(source.randbytes(source.choice((0, 1, 9, 10, 300))), JSON, b"Server: x"))
        for _ in range(source.choice((0, 0, 1, 2))):
            at = source.randrange(min(len(sent), 100) + 1)
            sent[at : at + source.choice((0, 1))] = source.choice((*DICTIONARY, b"%d" % source.randrange(12)))
        before = old.parser.reads
        once, again = Talker(loop).ask([bytes(sent)]), old.ask([bytes(sent)])
        known += old.parser.reads == before
        for outcome in (once, again):
            outcome.headers = sorted((name, value.lstrip(b"0") or b"0") for name, value in outcome.headers)
        assert once == again, bytes(sent)
        if not again.kept:
            old = Engine(loop)
    assert known > 500


@pytest.mark.parametrize("over", TRANSPORTS)
async def test_answers_over_a_real_connection_are_each_their_own(over: Transport) -> None:
    said = [(b"a" * length, b"x-of: %d" % (length // 3)) for length in range(12)]

    async def script(talk: Talk) -> None:
        for body, header in said:
            await talk.request()
            await talk.send(answer(body, header))

    async with serve(script, over) as peer:
        client = peer.client()
        for body, header in said:
            response = await client.request("POST", "/", body=b"ask")
            assert await response.read(100) == body
            assert dict(response.headers) == {
                b"x-of": header.removeprefix(b"x-of: "),
                b"content-length": b"%d" % len(body),
            }
            response.close()
        assert peer.connections == 1
        await client.aclose()


async def test_callers_of_one_engine_get_their_own_answers() -> None:
    async def script(talk: Talk) -> None:
        while True:
            _, body = await talk.request()
            await talk.send(answer(body))

    async with serve(script) as peer:
        client = peer.client(max_connections=2)
        asked = [b"%d" % number * number for number in range(60)]
        assert await asyncio.gather(*(fetch(client, body=body) for body in asked)) == asked
        await client.aclose()
