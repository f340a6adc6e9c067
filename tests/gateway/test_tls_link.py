"""Clients over TLS: the handshake, its limits, both directions of a connection, and a certificate that changes."""

from __future__ import annotations

import asyncio
import json
import ssl
import warnings
from pathlib import Path
from typing import Any

import pytest
import trustme

from config.edge import TlsSettings
from gateway import listener, tls_link
from gateway.keys import hash_of, new_key
from gateway.tls import names_in
from tests.backends.certificates import authority, trusting, write_files
from tests.canary import ANSWER
from tests.engine import wait_for
from tests.fakes import FakeBackend, chat_events
from tests.gateway.running import JSON, Gateway, body, request, serving
from tests.gateway.test_tls import replace

KEY = new_key()
EVENTS = chat_events("Hel", "lo")


def edge(folder: Path, **more: Any) -> dict[str, Any]:
    ca, certificate, key = write_files(folder)
    if "client_auth" in more:
        more["client_ca"] = str(ca)
    return {"tls": {"certificate": str(certificate), "key": str(key), **more}}


def client_tls(*, name: str = "", minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2) -> ssl.SSLContext:
    """A client of our authority, with a certificate of its own for `name`."""
    context = ssl.create_default_context(cadata=authority().cert_pem.bytes().decode())
    context.minimum_version = minimum
    if name:
        authority().issue_cert(name).configure_cert(context)
    return context


async def connect(
    gateway: Gateway, context: ssl.SSLContext | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(
        "127.0.0.1", gateway.port, ssl=context or trusting(), server_hostname="localhost"
    )


async def ask(gateway: Gateway, context: ssl.SSLContext) -> bytes:
    """The status line. With TLS 1.3 a client learns that its certificate is refused only when it reads."""
    reader, writer = await connect(gateway, context)
    try:
        writer.write(request())
        return await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError as error:
        raise ConnectionResetError from error
    finally:
        writer.close()


def serial_of(writer: asyncio.StreamWriter) -> str:
    return str(writer.get_extra_info("peercert")["serialNumber"])


async def test_calls_and_control_plane_are_served_over_tls(tmp_path: Path) -> None:
    async with serving(FakeBackend(), edge=edge(tmp_path)) as gateway:
        assert (await gateway.chat()).json()["choices"][0]["message"]["content"] == ANSWER
        assert b"[DONE]" in (await gateway.chat(stream=True)).content
        assert (await gateway.client.get("/v1/models")).status_code == 200
        missing = await gateway.client.get("/nothing")
        assert (missing.status_code, missing.headers["strict-transport-security"]) == (404, "max-age=31536000")
        assert gateway.state.connections, "connections are kept"


@pytest.mark.parametrize(("version", "spoken"), [("TLSv1_1", False), ("TLSv1_2", True), ("TLSv1_3", True)])
async def test_old_versions_are_not_spoken(tmp_path: Path, version: str, spoken: bool) -> None:
    context = client_tls()
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        context.minimum_version = context.maximum_version = getattr(ssl.TLSVersion, version)
    async with serving(FakeBackend(), edge=edge(tmp_path)) as gateway:
        if spoken:
            (await connect(gateway, context))[1].close()
        else:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await connect(gateway, context)


@pytest.mark.parametrize("cipher", ["ECDHE-ECDSA-AES256-SHA384", "AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-CCM"])
async def test_weak_ciphers_are_not_spoken(tmp_path: Path, cipher: str) -> None:
    context = client_tls()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(cipher)
    async with serving(FakeBackend(), edge=edge(tmp_path)) as gateway:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await connect(gateway, context)
        assert (await gateway.chat()).status_code == 200


async def test_plain_http_is_told_to_use_https(tmp_path: Path) -> None:
    async with serving(FakeBackend(), edge=edge(tmp_path)) as gateway:
        answer = await gateway.raw(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "https_required"
        await gone(gateway)


@pytest.mark.parametrize("sent", [b"\x00" * 100, b"\x16\x03\x01\xff\xff" + b"a" * 70000, b"\x80\x2e\x01\x00\x02"])
async def test_garbage_is_no_handshake(tmp_path: Path, sent: bytes) -> None:
    async with serving(FakeBackend(), edge=edge(tmp_path)) as gateway, gateway.connection() as (reader, writer):
        writer.write(sent)
        writer.write_eof()
        assert b"HTTP" not in await reader.read()
        await gone(gateway)


async def gone(gateway: Gateway) -> None:
    await asyncio.to_thread(wait_for, lambda: not gateway.state.connections)


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01\x00"], ids=["nothing", "half a hello"])
async def test_handshake_that_stalls_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(tls_link, "HEAD_TIMEOUT_SECONDS", 0.05)
    async with serving(FakeBackend(), edge=edge(tmp_path)) as gateway, gateway.connection() as (reader, writer):
        writer.write(sent)
        assert await reader.read() == b""
        await gone(gateway)


async def test_silence_after_the_handshake_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "HEAD_TIMEOUT_SECONDS", 0.05)
    async with serving(FakeBackend(), edge=edge(tmp_path)) as gateway:
        reader, writer = await connect(gateway)
        writer.write(b"GET /livez HTTP/1.1\r\nhost: loc")
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
        writer.close()


async def test_connections_count_before_their_handshake(tmp_path: Path) -> None:
    async with serving(FakeBackend(), edge=edge(tmp_path), max_connections=2) as gateway:
        async with gateway.connection(), gateway.connection():
            await asyncio.to_thread(wait_for, lambda: len(gateway.state.connections) == 2)
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await connect(gateway)
        await gone(gateway)
        assert (await gateway.chat()).status_code == 200


async def test_large_bodies_pass_in_both_directions(tmp_path: Path) -> None:
    text = "x" * 3_000_000
    events = chat_events(text, text)
    backend = FakeBackend(script=events)
    async with serving(backend, edge=edge(tmp_path)) as gateway:
        content = json.dumps(body(stream=True, stream_options={"include_usage": True}, x=text)).encode()
        answer = await gateway.client.post("/v1/chat/completions", content=content, headers=JSON)
        assert answer.content == b"".join(events)
        assert backend.requests[0].body == content


async def test_slow_reader_gets_all_before_the_connection_closes(tmp_path: Path) -> None:
    events = chat_events("x" * 1_000_000)
    backend = FakeBackend(script=events)
    async with serving(backend, edge=edge(tmp_path)) as gateway:
        reader, writer = await connect(gateway)
        sent = json.dumps(body(stream=True)).encode()
        writer.write(request(sent, f"content-length: {len(sent)}", "connection: close"))
        await backend.called.wait()
        await gateway.settled()
        answer = await reader.read()
        assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert len(answer) > 1_000_000
        writer.close()


async def test_client_that_leaves_stops_the_engine(tmp_path: Path) -> None:
    backend = FakeBackend(script=[EVENTS[0], asyncio.Event()])
    async with serving(backend, edge=edge(tmp_path)) as gateway:
        reader, writer = await connect(gateway)
        writer.write(request(json.dumps(body(stream=True)).encode()))
        await reader.readuntil(b"data: ")
        writer.close()
        await gateway.settled()
        assert (backend.aborted, gateway.upstream.in_flight) == (1, 0)
        assert gateway.lines()[0]["status"] == 499


async def test_refused_garbage_inside_tls_is_answered(tmp_path: Path) -> None:
    async with serving(FakeBackend(), edge=edge(tmp_path)) as gateway:
        reader, writer = await connect(gateway)
        writer.write(b"GET /livez HTTP/1.1\r\nx: " + b"a" * 500_000)
        assert (await reader.read()).startswith(b"HTTP/1.1 431 ")
        writer.close()


async def test_certificate_changes_under_open_streams_and_none_is_dropped(tmp_path: Path) -> None:
    more = asyncio.Event()
    backend = FakeBackend(script=[EVENTS[0], more, *EVENTS[1:]])
    settings = edge(tmp_path)
    async with serving(backend, edge=settings) as gateway:
        assert gateway.certificates is not None
        streams = [await connect(gateway) for _ in range(200)]
        for reader, writer in streams:
            writer.write(request(json.dumps(body(stream=True)).encode()))
            await reader.readuntil(b"data: ")
        old = {serial_of(writer) for _, writer in streams}
        assert len(old) == 1
        replace(TlsSettings(**settings["tls"]))
        gateway.certificates.refresh()
        assert gateway.certificates.refresh()
        _, newcomer = await connect(gateway)
        assert serial_of(newcomer) not in old
        newcomer.close()
        more.set()
        for reader, writer in streams:
            assert b"data: [DONE]" in await reader.readuntil(b"\r\n0\r\n\r\n")
            writer.close()


@pytest.mark.parametrize("auth", ["optional", "required"])
async def test_clients_are_asked_for_a_certificate(tmp_path: Path, auth: str) -> None:
    async with serving(FakeBackend(), edge=edge(tmp_path, client_auth=auth)) as gateway:
        for name, welcome in (("", auth == "optional"), ("alice", True)):
            if welcome:
                assert (await ask(gateway, client_tls(name=name))).startswith(b"HTTP/1.1 200 ")
            else:
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    await ask(gateway, client_tls(name=name))


async def test_certificates_of_strangers_are_refused(tmp_path: Path) -> None:
    stranger = client_tls()
    trustme.CA().issue_cert("alice").configure_cert(stranger)
    async with serving(FakeBackend(), edge=edge(tmp_path, client_auth="optional")) as gateway:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await ask(gateway, stranger)
        await gone(gateway)


async def test_certificate_stands_for_a_key(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(
        json.dumps({"keys": [{"name": "nightly", "hash": hash_of(KEY)}, {"name": "x", "hash": hash_of("x")}]})
    )
    settings = edge(
        tmp_path, client_auth="optional", client_keys={"dns:alice": "nightly", "dns:both": "x", "cn:both": "gone"}
    )
    async with serving(FakeBackend(), edge={**settings, "auth": {"keys_file": str(file)}}) as gateway:
        for name, status in (("alice", b"200"), ("bob", b"401"), ("", b"401")):
            assert (await ask(gateway, client_tls(name=name))).split()[1] == status
        # Another key that is sent counts, right or wrong; the name of the field cannot be sent.
        for header, status in (
            (f"x-api-key: {KEY}", b"200"),
            ("x-api-key: nobody", b"401"),
            (":certificate: dns:alice", b"400"),
        ):
            for name in ("alice", "bob"):
                reader, writer = await connect(gateway, client_tls(name=name))
                payload = json.dumps(body()).encode()
                writer.write(request(payload, f"content-length: {len(payload)}", header))
                assert (await reader.readline()).split()[1] == status
                writer.close()
        reader, writer = await connect(gateway, client_tls(name="alice"))
        writer.write(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert (await reader.readline()).split()[1] == b"200"
        writer.close()
        keys = [line["key"] for line in gateway.lines()]
    assert keys == ["nightly", "", "", "nightly", "nightly", "", ""]


@pytest.mark.parametrize(
    ("certificate", "names"),
    [
        (None, b""),
        ({}, b""),
        ({"subject": ((("commonName", "a"),),)}, b"cn:a"),
        (
            {
                "subject": ((("organizationName", "o"),), (("commonName", "a"),)),
                "subjectAltName": (("DNS", "d"), ("URI", "spiffe://x/y"), ("email", "e@x"), ("IP Address", "1.2.3.4")),
            },
            b"dns:d\nuri:spiffe://x/y\nemail:e@x\ncn:a",
        ),
        ({"subject": ((("commonName", "a\ndns:root"),),)}, b""),
    ],
)
def test_names_of_a_certificate_say_what_kind_they_are(certificate: Any, names: bytes) -> None:
    assert names_in(certificate) == names


async def test_client_that_does_not_read_holds_back_the_engine(tmp_path: Path) -> None:
    events = chat_events(*["x" * 100_000] * 200)
    backend = FakeBackend(script=events)
    async with serving(backend, edge=edge(tmp_path)) as gateway:
        reader, writer = await connect(gateway)
        transport: Any = writer.transport
        transport.pause_reading()
        writer.write(request(json.dumps(body(stream=True)).encode()))
        await backend.called.wait()
        connection: Any = next(iter(gateway.state.connections))
        await asyncio.to_thread(wait_for, lambda: connection.flow.write_paused)
        assert connection.transport.get_write_buffer_size() < 1_000_000
        assert backend.finished == 0
        transport.resume_reading()
        answer = bytearray()
        while not answer.endswith(b"\r\n0\r\n\r\n"):
            answer += await reader.read(1 << 20)
        assert len(answer) > 20_000_000
        writer.close()
