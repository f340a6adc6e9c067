"""Listening, draining and exit codes; the whole process is tests/e2e's."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import gateway.listener
import gateway.server
from backends.base import BackendState
from config.edge import TlsSettings
from config.schema import GgufSettings, ModelSettings, ServerSettings, Settings
from gateway.app import create_app
from gateway.bind import ListenError, bind, bind_each
from gateway.server import GatewayServer, banner
from gateway.tls import Certificates
from tests.backends.certificates import trusting, write_files
from tests.engine import wait_for
from tests.fakes import FakeBackend, chat_events
from tests.gateway.running import body, request

EVENTS = chat_events("Hel", "lo")


def test_taken_port_is_named_with_a_way_out() -> None:
    with contextlib.closing(bind("127.0.0.1", 0)[0]) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=rf"127\.0\.0\.1:{port}.*--port"):
            bind("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_address_that_is_not_ours_is_named(host: str) -> None:
    with pytest.raises(ListenError, match=host):
        bind(host, 0)


def test_localhost_listens_on_one_port_of_every_loopback_address() -> None:
    sockets = bind("localhost", 0)
    try:
        assert len({listener.getsockname()[1] for listener in sockets}) == 1
        assert socket.AF_INET in {listener.family for listener in sockets}
    finally:
        for listener in sockets:
            listener.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_each_worker_gets_its_part_of_the_connections_on_every_address(host: str) -> None:
    workers = bind_each(host, 0, 3)
    clients = []
    try:
        assert len({listener.getsockname()[1] for mine in workers for listener in mine}) == 1
        families = [[listener.family for listener in mine] for mine in workers]
        assert families == [families[0]] * 3
        for number in range(len(families[0])):
            clients += [socket.create_connection(workers[0][number].getsockname()[:2]) for _ in range(64)]
            accepted = [_accept_all(mine[number]) for mine in workers]
            assert sum(accepted) == 64
            assert 0 not in accepted
    finally:
        for opened in (*clients, *(listener for mine in workers for listener in mine)):
            opened.close()


def test_port_that_workers_share_is_taken_for_everybody_else() -> None:
    workers = bind_each("127.0.0.1", 0, 2)
    try:
        port = workers[0][0].getsockname()[1]
        for attempt in (lambda: bind("127.0.0.1", port), lambda: bind_each("127.0.0.1", port, 2)):
            with pytest.raises(ListenError, match="--port"):
                attempt()
    finally:
        for mine in workers:
            mine[0].close()


def _accept_all(listener: socket.socket) -> int:
    for number in itertools.count():
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return number
    raise AssertionError


def test_banner_says_where_what_and_how() -> None:
    model = ModelSettings(name="m", aliases=("gpt-4o-mini",), gguf=GgufSettings(source="/x/m.gguf"))
    remote = ModelSettings(name="r", gguf=GgufSettings(openai="http://10.0.0.2:8080"))
    text = banner(Settings(models=(model, remote)), "http://127.0.0.1:8484")
    assert "http://127.0.0.1:8484/v1" in text
    assert "gpt-4o-mini" in text
    assert "/x/m.gguf" in text
    assert "http://10.0.0.2:8080" in text
    assert "curl" in text
    payload = text.partition("-d '")[2].partition("'")[0]
    assert json.loads(payload)["model"] == "m"
    assert "workers" not in text
    assert "2 workers" in banner(Settings(models=(model,)), "http://127.0.0.1:8484", workers=2)


@contextlib.asynccontextmanager
async def running(
    backend: FakeBackend, drain_seconds: float, tls: TlsSettings | None = None, delay_seconds: float = 0.0
) -> AsyncIterator[tuple[GatewayServer, int, asyncio.Task[None]]]:
    model = ModelSettings(name="fake", gguf=GgufSettings(source="demo"))
    listener = ServerSettings(port=0, drain_seconds=drain_seconds, drain_delay_seconds=delay_seconds)
    settings = Settings(server=listener, models=(model,))
    app = create_app(settings, make_backends=lambda _: [backend])
    sockets = bind("127.0.0.1", 0)
    listening = asyncio.Event()
    server = GatewayServer(settings, app, listening.set, None if tls is None else Certificates(tls))
    task = asyncio.create_task(server.serve(sockets=sockets))
    async with asyncio.timeout(20):
        await listening.wait()
        yield server, sockets[0].getsockname()[1], task
        await task


async def ask(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(json.dumps(body(stream=True)).encode()))
    await reader.readuntil(b"data: ")
    return reader, writer


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_running_answers_finish_after_a_signal(number: signal.Signals) -> None:
    more = asyncio.Event()
    backend = FakeBackend(script=[EVENTS[0], more, *EVENTS[1:]])
    async with running(backend, drain_seconds=10) as (server, port, _):
        idle, idle_writer = await asyncio.open_connection("127.0.0.1", port)
        reader, writer = await ask(port)
        os.kill(os.getpid(), number)
        assert await idle.read() == b"", "connections without a request are closed first"
        with pytest.raises(ConnectionError):
            await asyncio.open_connection("127.0.0.1", port)
        assert backend.state is BackendState.READY, "the engine outlives the answers"
        more.set()
        assert (await reader.read()).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        writer.close()
        idle_writer.close()
    assert not server.force_exit
    assert backend.finished == 1


async def test_request_that_was_on_its_way_is_answered_after_the_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.server, "LAST_CALL_SECONDS", 0.5)  # the machine may be busy
    backend = FakeBackend()
    async with running(backend, drain_seconds=10) as (server, port, task):
        connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.to_thread(wait_for, lambda: (b"connection", b"close") in server.server_state.default_headers)
        for reader, writer in connections:
            writer.write(request(json.dumps(body()).encode()))
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 200")
            assert b"connection: close" in answer
            writer.close()
        await task
    assert backend.finished == 2


async def test_client_of_a_stream_that_began_before_may_ask_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its headers did not tell it to leave."""
    monkeypatch.setattr(gateway.listener, "LAST_CALL_SECONDS", 20.0)  # the machine may be busy
    more = asyncio.Event()
    backend = FakeBackend(script=[EVENTS[0], more, *EVENTS[1:]])
    async with running(backend, drain_seconds=10) as (server, port, _):
        reader, writer = await ask(port)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.to_thread(wait_for, lambda: not any(each.is_serving() for each in server.servers))
        more.set()
        await reader.readuntil(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        backend.script = None
        writer.write(request(json.dumps(body()).encode()))
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer
        writer.close()
    assert backend.finished == 2


async def test_balancers_have_the_delay_to_see_that_it_is_not_ready() -> None:
    backend = FakeBackend()
    async with running(backend, drain_seconds=10, delay_seconds=1.0) as (server, port, task):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.to_thread(wait_for, lambda: (b"connection", b"close") in server.server_state.default_headers)
        for sent, status in (
            (request(b"", method="GET", path="/readyz"), b"503"),
            (request(json.dumps(body()).encode()), b"200"),
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 " + status)
            assert b"connection: close" in answer
            writer.close()
        await task
        with pytest.raises(ConnectionError):
            await asyncio.open_connection("127.0.0.1", port)


async def test_answers_that_take_too_long_end_with_an_error_event() -> None:
    backend = FakeBackend(script=[EVENTS[0], asyncio.Event()])
    async with running(backend, drain_seconds=0.1) as (server, port, _):
        reader, writer = await ask(port)
        os.kill(os.getpid(), signal.SIGTERM)
        rest = await reader.read()
        assert b"shutting_down" in rest
        assert b"[DONE]" not in rest
        writer.close()
    assert (backend.open, backend.aborted) == (0, 1)
    assert not server.force_exit


@pytest.mark.parametrize("delay_seconds", [0.0, 3600.0])
async def test_second_signal_ends_the_drain(delay_seconds: float) -> None:
    backend = FakeBackend(script=[EVENTS[0], asyncio.Event()])
    async with running(backend, drain_seconds=3600, delay_seconds=delay_seconds) as (server, port, task):
        _, writer = await ask(port)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        await task
        writer.close()
    assert server.force_exit


async def test_drain_over_tls_ends_handshakes_and_finishes_answers(tmp_path: Path) -> None:
    _, certificate, key = write_files(tmp_path)
    more = asyncio.Event()
    backend = FakeBackend(script=[EVENTS[0], more, *EVENTS[1:]])
    tls = TlsSettings(certificate=str(certificate), key=str(key))
    async with running(backend, 10, tls) as (_, port, _):
        stalled, stalled_writer = await asyncio.open_connection("127.0.0.1", port)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting(), server_hostname="localhost")
        writer.write(request(json.dumps(body(stream=True)).encode()))
        await reader.readuntil(b"data: ")
        os.kill(os.getpid(), signal.SIGTERM)
        assert await stalled.read() == b""
        more.set()
        assert (await reader.read()).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        for each in (writer, stalled_writer):
            each.close()
    assert backend.finished == 1
