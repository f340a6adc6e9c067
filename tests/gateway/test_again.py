"""Calls of one connection that begin alike: not parsed again, and each answered as if it had come alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.base import Operation
from gateway import listener
from gateway.door import Door
from gateway.guesses import MOST
from gateway.keys import hash_of, new_key
from gateway.keysfile import KeysFile
from gateway.listener import ClientConnection
from tests.backends.wire import Counted
from tests.fakes import FakeBackend, chat_events
from tests.gateway.running import CHAT, Gateway, body, request, serving
from tests.gateway.test_tls_link import client_tls, connect
from tests.gateway.test_tls_link import edge as tls

ALICE, BOB, WEAK = new_key(), new_key(), "sk-weak"
LIVE = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"
CLOSE = (b"connection", b"close")

Answer = tuple[int, dict[bytes, bytes], bytes]


class Line:
    """One client's connection, whose reads are what a test says, at the gateway's end of it."""

    def __init__(
        self, gateway: Gateway, reader: asyncio.StreamReader, connection: ClientConnection, monkeypatch: Any
    ) -> None:
        self.gateway = gateway
        self.reader = reader
        self.connection = connection
        self.parser = Counted(connection.parser)
        monkeypatch.setattr(connection, "parser", self.parser)

    async def ask(self, *reads: bytes, parsed: int | None = None) -> Answer:
        """What is answered to one request, of which the parser gets so many `reads`."""
        before = self.parser.reads
        for read in reads:
            self.connection.data_received(read)
        answer = await self.answer()
        # The connection has to know, too: an answer is on its way before its call is over.
        await self.gateway.settled()
        assert parsed is None or self.parser.reads - before == parsed
        return answer

    async def answer(self) -> Answer:
        return await answer(self.reader)

    async def status(self, *reads: bytes, parsed: int | None = None) -> int:
        return (await self.ask(*reads, parsed=parsed))[0]

    async def learns(self, sent: bytes) -> None:
        """From now on the head of `sent`, which is answered well, is known, and who has sent it."""
        for _ in range(2):
            assert await self.status(sent) == 200
        assert await self.status(sent, parsed=0) == 200


async def answer(reader: asyncio.StreamReader) -> Answer:
    head, *lines = (await reader.readuntil(b"\r\n\r\n")).strip().split(b"\r\n")
    fields = dict(line.split(b": ", 1) for line in lines)
    return int(head[9:12]), fields, await reader.readexactly(int(fields[b"content-length"]))


@asynccontextmanager
async def line(
    monkeypatch: pytest.MonkeyPatch, backend: FakeBackend | None = None, **options: Any
) -> AsyncIterator[Line]:
    async with (
        serving(backend or FakeBackend(), **options) as gateway,
        gateway.connection() as (reader, writer),
    ):
        writer.write(LIVE)
        await answer(reader)
        [connection] = gateway.state.connections
        assert isinstance(connection, ClientConnection)
        yield Line(gateway, reader, connection, monkeypatch)


def ask(text: str = "", *headers: str, path: str = CHAT, **fields: Any) -> bytes:
    """A whole request: the head is the same for any `text`."""
    payload = json.dumps(body(user=text, **fields)).encode()
    return request(payload, *headers, f"content-length: {len(payload)}", path=path)


def users(backend: FakeBackend) -> list[str]:
    return [json.loads(request.body)["user"] for request in backend.requests]


def keys(**names: Any) -> dict[str, Any]:
    known = {"alice": ALICE, "bob": BOB, "weak": WEAK}
    return {"keys": [{"name": name, "hash": hash_of(known[name]), **more} for name, more in names.items()]}


def edge(folder: Path, **names: Any) -> dict[str, Any]:
    file = folder / "keys.yaml"
    file.write_text(json.dumps(keys(**names)))
    return {"auth": {"keys_file": str(file)}}


@pytest.fixture
def admissions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whom the door has looked at."""
    seen = []
    let_in = Door.let_in

    def counted(door: Door, call: Any) -> Any:
        principal = let_in(door, call)
        seen.append(principal.name)
        return principal

    monkeypatch.setattr(Door, "let_in", counted)
    return seen


async def test_head_is_parsed_once_and_each_call_has_its_own_body(
    monkeypatch: pytest.MonkeyPatch, admissions: list[str]
) -> None:
    backend = FakeBackend()
    async with line(monkeypatch, backend) as client:
        asked = ["a", "b" * 10, "", "c" * 100, "d" * 100_000, "e"]
        for turn, text in enumerate(asked):
            status, _, content = await client.ask(ask(text), parsed=int(turn == 0))
            assert (status, json.loads(content)["object"]) == (200, "chat.completion")
        assert users(backend) == asked
        assert admissions == ["anonymous"]
        assert [line["bytes_in"] for line in client.gateway.lines()] == [
            len(ask(text).partition(b"\r\n\r\n")[2]) for text in asked
        ]
        assert len({line["request_id"] for line in client.gateway.lines()}) == len(asked)


async def test_empty_body_is_no_json_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async with line(monkeypatch) as client:
        for parsed in (1, 0, 0):
            assert await client.status(request(b""), parsed=parsed) == 400
        assert await client.status(ask("a"), parsed=0) == 200


async def test_streams_and_plain_answers_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    async with line(monkeypatch) as client:
        await client.learns(ask())
        client.connection.data_received(ask(stream=True))
        assert (await client.reader.readuntil(b"0\r\n\r\n")).count(b"data: [DONE]") == 1
        await client.gateway.settled()
        assert await client.status(ask(), parsed=0) == 200


async def test_every_other_head_is_parsed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    backend = FakeBackend()
    async with line(monkeypatch, backend, edge=edge(tmp_path, alice={}, bob={"models": ["other"]})) as client:
        alice, bob = f"x-api-key: {ALICE}", f"x-api-key: {BOB}"
        await client.learns(ask("1", alice))
        assert await client.status(ask("no", bob), parsed=1) == 403
        assert await client.status(ask("2", alice), parsed=1) == 200
        assert await client.status(ask("no"), parsed=1) == 401
        assert await client.status(ask("3", alice), parsed=1) == 200
        assert await client.status(ask("4", alice, path="/v1/completions", prompt="a"), parsed=1) == 200
        assert await client.status(ask("5", alice), parsed=1) == 200
        assert await client.status(request(b"{}", alice, "transfer-encoding: chunked")[:-2] + b"0\r\n\r\n") == 400
        assert await client.status(ask("6", alice), parsed=0) == 200
        client.connection.data_received(LIVE)
        assert (await client.answer())[0] == 200
        assert await client.status(ask("7", alice), parsed=0) == 200
        operations = [request.operation for request in backend.requests]
        assert users(backend) == ["1", "1", "1", *"234567"]
        assert [line["key"] for line in client.gateway.lines()] == [*["alice"] * 3, "bob", "alice", "", *["alice"] * 6]
        assert [turn for turn, each in enumerate(operations) if each is Operation.COMPLETION] == [5]


async def test_requests_in_one_read_are_all_answered_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FakeBackend()
    async with line(monkeypatch, backend) as client:
        await client.learns(ask("x"))
        client.connection.data_received(ask("1") + ask("2") + ask("3")[:-3])
        client.connection.data_received(ask("3")[-3:] + ask("4"))
        client.connection.data_received(ask("5"))
        assert [(await client.answer())[0] for _ in range(5)] == [200] * 5
        await client.gateway.settled()
        assert await client.status(ask("6"), parsed=0) == 200
        assert users(backend)[3:] == [*"123456"]


async def test_request_that_comes_while_another_is_answered_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    go = asyncio.Event()
    backend = FakeBackend()
    async with line(monkeypatch, backend) as client:
        await client.learns(ask("x"))
        backend.before = (go,)
        backend.called.clear()
        client.connection.data_received(ask("1"))
        await backend.called.wait()
        client.connection.data_received(ask("2"))
        assert len(client.connection.pipeline) == 1
        assert not client.connection.flow.read_paused  # else nobody would see the client leave
        go.set()
        assert [(await client.answer())[0] for _ in range(2)] == [200, 200]
        assert users(backend)[3:] == ["1", "2"]


async def test_known_head_in_pieces_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FakeBackend()
    sent = ask("whole")
    async with line(monkeypatch, backend) as client:
        await client.learns(ask("whole"))
        for cut in range(1, len(sent)):
            assert await client.status(sent[:cut], sent[cut:], parsed=2) == 200
        assert set(users(backend)) == {"whole"}


async def test_known_bytes_inside_of_another_request_are_part_of_that(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FakeBackend()
    async with line(monkeypatch, backend) as client:
        known = ask("inside")
        await client.learns(known)
        backend.requests.clear()
        assert await client.status(request(b"", f"content-length: {len(known)}"), known, parsed=2) == 400
        # Answered before its body is there.
        early = LIVE.replace(b"\r\n\r\n", b"\r\ncontent-length: %d\r\n\r\n" % len(known))
        assert await client.status(early) == 200
        client.connection.data_received(known)
        assert await client.status(ask("after"), parsed=0) == 200
        assert users(backend) == ["after"]
        # The first of its lines is the end of one that has begun.
        assert await client.status(b"GET /livez HTTP/1.1\r\nx: ", known, parsed=2) == 200
        assert users(backend) == ["after"]


async def test_body_that_looks_like_a_request_is_none_to_be_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with line(monkeypatch, edge=edge(tmp_path, alice={})) as client:
        forged = ask("", "x-api-key: nobody")
        head = request(b"", f"x-api-key: {ALICE}", f"content-length: {len(forged)}")
        assert await client.status(head, forged) == 400
        assert await client.status(forged) == 401


async def test_requests_that_are_no_calls_are_parsed_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async with line(monkeypatch) as client:
        for _ in range(3):
            assert await client.status(LIVE.replace(b"\r\n\r\n", b"\r\ncontent-length: 2\r\n\r\nhi"), parsed=1) == 200


async def test_who_waits_for_a_word_before_its_body_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FakeBackend()
    async with line(monkeypatch, backend) as client:
        await client.learns(ask("x", "expect: 100-continue"))
        head, _, content = ask("later", "expect: 100-continue").partition(b"\r\n\r\n")
        client.connection.data_received(head + b"\r\n\r\n")
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert await client.status(content) == 200
        assert users(backend)[-1] == "later"


async def test_offer_to_upgrade_is_declined_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FakeBackend()
    offer = ("connection: upgrade, http2-settings", "upgrade: h2c")
    async with line(monkeypatch, backend) as client:
        for text in "abc":
            assert await client.status(ask(text, *offer), parsed=1) == 200
        assert users(backend) == [*"abc"]


async def test_last_request_of_a_connection_is_its_last(monkeypatch: pytest.MonkeyPatch) -> None:
    async with line(monkeypatch) as client:
        await client.learns(ask())
        _, fields, _ = await client.ask(ask("", "connection: close"), parsed=1)
        assert fields[b"connection"] == b"close"
        assert await client.reader.read() == b""


async def test_drain_ends_the_connection_with_the_next_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async with line(monkeypatch) as client:
        await client.learns(ask())
        client.gateway.state.default_headers = [*client.gateway.state.default_headers, CLOSE]
        status, fields, _ = await client.ask(ask(), parsed=0)
        assert (status, fields[b"connection"]) == (200, b"close")
        assert await client.reader.read() == b""


async def test_client_that_does_not_read_is_not_answered_and_still_listened_to(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FakeBackend()
    async with line(monkeypatch, backend) as client:
        await client.learns(ask("x"))
        client.connection.pause_writing()
        client.connection.data_received(ask("later"))
        assert len(client.connection.pipeline) == 1
        assert not client.connection.flow.read_paused  # else nobody would see it leave
        client.connection.resume_writing()
        assert (await client.answer())[0] == 200
        assert users(backend)[3:] == ["later"]


async def test_line_breaks_between_requests_do_not_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "MAX_HEAD_BYTES", len(ask()))
    async with line(monkeypatch) as client:
        await client.learns(ask())
        for _ in range(len(ask())):
            client.connection.data_received(b"\r\n")
            assert await client.status(ask(), parsed=0) == 200


async def test_body_of_another_length_than_the_first_one_is_measured_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    long = ask("a" * 1500)
    async with line(monkeypatch, max_body_bytes=1024) as client:
        for parsed in (1, 0):
            status, _, content = await client.ask(long, parsed=parsed)
            assert (status, b"server.max_body_bytes" in content) == (413, True)
        for _ in range(2):
            assert await client.status(ask("a"), parsed=0) == 200
        assert await client.status(long, parsed=0) == 413
        assert await client.status(ask("a"), parsed=0) == 200


async def test_smaller_limit_of_a_reload_holds_for_what_is_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    long = ask("a" * 1500)
    async with line(monkeypatch) as client:
        await client.learns(long)
        server = client.gateway.settings.server
        await client.gateway.reload(server=server.model_copy(update={"max_body_bytes": 1024}))
        assert await client.status(ask("a"), parsed=0) == 200
        assert await client.status(long, parsed=0) == 413
        await client.gateway.reload()
        assert await client.status(long, parsed=0) == 200


async def test_hosts_of_a_reload_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    async with line(monkeypatch, allowed_hosts=("example.com",)) as client:
        named = ask().replace(b"host: localhost", b"host: example.com")
        await client.learns(named)
        server = client.gateway.settings.server
        await client.gateway.reload(server=server.model_copy(update={"allowed_hosts": ()}))
        assert await client.status(named, parsed=0) == 421
        await client.gateway.reload()
        assert await client.status(named, parsed=0) == 200


async def test_proxies_of_a_reload_hold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keys = edge(tmp_path, alice={"addresses": ["10.0.0.0/8"]})
    async with line(monkeypatch, edge=keys, trusted_proxies=("127.0.0.1",)) as client:
        named = ask("", f"x-api-key: {ALICE}", "x-forwarded-for: 10.1.2.3")
        await client.learns(named)
        server = client.gateway.settings.server
        await client.gateway.reload(server=server.model_copy(update={"trusted_proxies": ()}))
        assert await client.status(named, parsed=0) == 403


@pytest.mark.parametrize(
    ("others", "status"),
    [
        ({"bob": {}}, 401),
        ({"alice": {"models": ["other"]}}, 403),
        ({"alice": {"surfaces": ["operators"]}}, 403),
        ({"alice": {"addresses": ["10.0.0.0/8"]}}, 403),
        ({"alice": {"expires": "2020-01-01"}}, 401),
        ({"alice": {"limits": {"max_tokens_per_request": 1}}}, 400),
        ({"alice": {}, "bob": {}}, 200),
    ],
    ids=str,
)
async def test_key_that_has_changed_is_what_it_is_now(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, others: dict[str, Any], status: int, admissions: list[str]
) -> None:
    async with line(monkeypatch, edge=edge(tmp_path, alice={})) as client:
        named, gateway = ask("", f"authorization: Bearer {ALICE}"), client.gateway.app.gateway
        # It reads the file once more at first, at any moment.
        assert gateway._following is not None
        gateway._following.cancel()
        await client.learns(named)
        assert admissions == ["alice"]
        # What it does when the file has changed.
        gateway._use_keys(KeysFile.model_validate(keys(**others)))
        assert await client.status(named, parsed=0) == status


async def test_key_expires_between_two_calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with line(monkeypatch, edge=edge(tmp_path, alice={"expires": "2999-01-01"})) as client:
        named = ask("", f"authorization: Bearer {ALICE}")
        await client.learns(named)
        monkeypatch.setattr(client.gateway.app.gateway.authenticator, "_now", lambda: 40e9)
        _, _, content = await client.ask(named, parsed=0)
        assert "has expired" in json.loads(content)["error"]["message"]


async def test_keys_that_are_asked_for_since_a_reload_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with line(monkeypatch) as client:
        await client.learns(ask())
        await client.gateway.reload(**edge(tmp_path, alice={}))
        assert await client.status(ask(), parsed=0) == 401


async def test_key_that_could_be_guessed_waits_with_its_address_unless_it_is_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with line(monkeypatch, edge=edge(tmp_path, weak={})) as client:
        named = ask("", f"x-api-key: {WEAK}")
        await client.learns(named)
        for number in range(MOST + 1):
            await client.gateway.client.post(CHAT, json=body(), headers={"x-api-key": f"sk-{number}"})
        assert await client.status(named, parsed=0) == 200
        elsewhere = await client.gateway.client.post(CHAT, json=body(), headers={"x-api-key": WEAK})
        assert elsewhere.status_code == 429


async def test_refused_head_is_refused_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with line(monkeypatch, edge=edge(tmp_path, alice={})) as client:
        text = ask("", f"x-api-key: {ALICE}").replace(b"application/json", b"text/plain")
        for sent, status in ((text, 415), (ask("", "x-api-key: nobody"), 401)):
            for parsed in (1, 0, 0):
                assert await client.status(sent, parsed=parsed) == status


async def test_answer_says_what_its_own_call_is_about(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FakeBackend()
    async with line(monkeypatch, backend) as client:
        await client.learns(ask("", "x-session-id: s"))
        for text in ("a", "bb", "a" * 3000):
            backend.script = [json.dumps({"text": text}).encode()]
            _, fields, content = await client.ask(ask("", "x-session-id: s"), parsed=0)
            assert json.loads(content) == {"text": text}
            assert int(fields[b"content-length"]) == len(content)


async def test_client_that_leaves_a_known_call_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FakeBackend()
    async with line(monkeypatch, backend) as client:
        await client.learns(ask())
        backend.script = [chat_events("Hel")[0], asyncio.Event()]
        client.connection.data_received(ask(stream=True))
        await client.reader.readuntil(b"Hel")
        client.gateway.disconnect()
        await client.gateway.settled()
        assert (client.gateway.upstream.in_flight, backend.aborted) == (0, 1)


async def test_calls_over_tls_are_each_their_own(tmp_path: Path) -> None:
    backend = FakeBackend()
    client_keys = {"dns:alice.example": "alice"}
    options = {**edge(tmp_path, alice={}), **tls(tmp_path, client_auth="optional", client_keys=client_keys)}
    async with serving(backend, edge=options) as gateway, asyncio.timeout(10):
        for name, status in (("alice.example", 200), ("bob.example", 401)):
            reader, writer = await connect(gateway, client_tls(name=name))
            for text in ("a", "bb", "", "c" * 5000):
                writer.write(ask(text))
                assert (await answer(reader))[0] == status
            writer.close()
        assert users(backend) == ["a", "bb", "", "c" * 5000]


async def test_door_knows_whom_it_has_let_in_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    async with line(monkeypatch) as client:
        await client.learns(ask())
        door, head = client.gateway.app.gateway.relay._door, client.connection._last.head
        assert door.known(head) is head.principal
        assert replace(door).known(head) is None
