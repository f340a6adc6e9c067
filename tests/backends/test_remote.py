"""RemoteBackend before real servers: what it believes of them, and what calls meet meanwhile."""

from __future__ import annotations

import asyncio
import logging
import socket as socket_module
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from backends.access import Access, access_to
from backends.base import BackendState, InferenceRequest, Operation
from backends.errors import BackendOverloaded, BackendProtocolError, BackendUnavailable
from backends.inquiry import openai_health
from backends.openai import OpenAIBackend
from backends.remote import Dialect, RemoteBackend, Rhythm
from config.remote import ClientTlsSettings, RemoteSettings
from tests.backends.certificates import authority, serving
from tests.backends.vllm_shaped import Replica
from tests.fakes import body_of

LIMIT_SECONDS = 20.0
QUICK = Rhythm(steady_seconds=0.02, trouble_seconds=0.01, least_seconds=0.005)
RARE = Rhythm(steady_seconds=3600, trouble_seconds=3600, least_seconds=0.001)
REQUEST = InferenceRequest(Operation.CHAT, "llama3", b'{"model": "llama3", "messages": []}', False, "request-1")

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])


@asynccontextmanager
async def watching(access: Access, rhythm: Rhythm = QUICK) -> AsyncIterator[RemoteBackend]:
    look = partial(openai_health, names=("llama3",))
    backend = RemoteBackend("vllm", access, Dialect(partial(OpenAIBackend, "vllm"), look), rhythm)
    await backend.start()
    try:
        yield backend
    finally:
        await backend.stop()
        assert backend.state is BackendState.STOPPED


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_SECONDS):
        while not condition():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.005)


async def reaches(backend: RemoteBackend, state: BackendState) -> None:
    await until(lambda: backend.state is state)


async def ask(backend: RemoteBackend) -> bytes:
    response = await backend.send(REQUEST)
    try:
        return await body_of(response)
    finally:
        response.close()


async def test_endpoint_that_serves_the_model_is_ready() -> None:
    async with Replica("llama3") as replica, watching(Access(replica.address)) as backend:
        assert backend.state is BackendState.STARTING
        await reaches(backend, BackendState.READY)
        assert (backend.name, backend.address, backend.failure) == ("vllm", replica.address, "")
        assert b'"usage"' in await ask(backend)


async def test_calls_may_come_before_the_first_look() -> None:
    async with Replica("llama3") as replica, watching(Access(replica.address)) as backend:
        assert b'"usage"' in await ask(backend)


async def test_wrong_model_is_a_failure_with_its_reason_until_it_is_served() -> None:
    async with Replica("other") as replica, watching(Access(replica.address)) as backend:
        await reaches(backend, BackendState.FAILED)
        assert backend.failure == "it does not serve llama3; it serves other"
        with pytest.raises(BackendUnavailable, match="it does not serve llama3") as caught:
            await ask(backend)
        assert (caught.value.backend, replica.begun) == ("vllm", 0)
        replica.models = ["llama3"]
        await reaches(backend, BackendState.READY)
        assert backend.failure == ""


async def test_call_that_finds_nobody_has_it_looked_at_at_once() -> None:
    async with Replica("llama3") as replica, watching(Access(replica.address), RARE) as backend:
        await reaches(backend, BackendState.READY)
        await replica.stop()
        with pytest.raises(BackendUnavailable):
            await ask(backend)
        await reaches(backend, BackendState.FAILED)
        assert backend.failure == "No connection to it: Connection refused"


async def test_endpoint_that_comes_back_is_taken_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with Replica("llama3") as replica, watching(Access(replica.address)) as backend:
        for _ in range(2):
            await reaches(backend, BackendState.READY)
            await replica.die()
            await reaches(backend, BackendState.FAILED)
            await replica.start()
        await reaches(backend, BackendState.READY)
    said = [record.getMessage().partition(" at ")[2].split(" ", 1)[1] for record in caplog.records]
    assert [text.split(":")[0] for text in said if "available" in text or "again" in text] == [
        "is not available",
        "is ready again",
    ] * 2


async def test_one_slow_answer_changes_nothing_and_two_do() -> None:
    rhythm = replace(QUICK, answer_seconds=0.1)
    async with Replica("llama3") as replica, watching(Access(replica.address), rhythm) as backend:
        await reaches(backend, BackendState.READY)
        replica.hears.clear()
        await until(lambda: backend._slow_looks == 1)
        assert backend.state is BackendState.READY
        await reaches(backend, BackendState.FAILED)
        assert "was not answered within 0.1 s" in backend.failure
        replica.hears.set()
        await reaches(backend, BackendState.READY)


async def test_hanging_endpoint_gives_back_who_waits_for_a_first_byte_and_nobody_else() -> None:
    rhythm = replace(QUICK, answer_seconds=0.1)
    async with Replica("llama3", token_seconds=0.01) as replica, watching(Access(replica.address), rhythm) as backend:
        await reaches(backend, BackendState.READY)
        body = b'{"model": "llama3", "messages": [], "stream": true, "max_tokens": 100}'
        begun = await backend.send(REQUEST._replace(body=body, stream=True))
        await anext(begun.chunks)
        replica.hears.clear()
        with pytest.raises(BackendProtocolError, match="hangs: GET /health was not answered") as caught:
            await ask(backend)
        assert caught.value.retryable
        assert (await body_of(begun)).endswith(b"data: [DONE]\n\n")
        begun.close()


async def test_kernel_is_told_to_notice_that_a_host_is_gone() -> None:
    async with Replica("llama3") as replica, watching(Access(replica.address)) as backend:
        assert b'"usage"' in await ask(backend)
        (connection,) = backend._client._pool._connections
        socket = connection._transport.get_extra_info("socket")
        assert socket.getsockopt(socket_module.SOL_SOCKET, socket_module.SO_KEEPALIVE) == 1
        assert socket.getsockopt(socket_module.IPPROTO_TCP, socket_module.TCP_KEEPIDLE) == 10


@pytest.mark.parametrize(("status", "kind"), [(503, BackendOverloaded), (500, BackendProtocolError)])
async def test_refusals_of_a_live_endpoint_pass_through(status: int, kind: type[Exception]) -> None:
    async with Replica("llama3") as replica, watching(Access(replica.address)) as backend:
        replica.refusal = (status, {"retry-after": "7"})
        with pytest.raises(kind):
            await ask(backend)


async def test_stopping_ends_what_runs_and_is_final() -> None:
    async with Replica("llama3", token_seconds=0.05) as replica, watching(Access(replica.address)) as backend:
        body = b'{"model": "llama3", "messages": [], "stream": true, "max_tokens": 400}'
        response = await backend.send(REQUEST._replace(body=body, stream=True))
        await anext(response.chunks)
        await backend.stop()
        with pytest.raises(BackendProtocolError):
            await body_of(response)
        response.close()
        await until(lambda: replica.running == 0)
        with pytest.raises(BackendUnavailable):
            await ask(backend)


async def test_key_is_sent_and_read_again_when_its_file_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "key"
    file.write_text("first\n")
    async with Replica("llama3", key="first") as replica:
        access = access_to(replica.address, RemoteSettings(api_key_file=str(file)))
        assert "first" not in repr(access)
        async with watching(access) as backend:
            await reaches(backend, BackendState.READY)
            assert b'"usage"' in await ask(backend)
            replica.key = "second"
            await reaches(backend, BackendState.FAILED)
            assert "refuses the API key" in backend.failure
            file.unlink()
            file.write_text("second")
            await reaches(backend, BackendState.READY)
            assert b'"usage"' in await ask(backend)
    assert "first" not in caplog.text
    assert "second" not in caplog.text


async def test_key_that_is_missing_or_wrong_is_named_as_the_cause() -> None:
    async with Replica("llama3", key="sesame") as replica, watching(Access(replica.address)) as backend:
        await reaches(backend, BackendState.FAILED)
        assert "refuses the API key (status 401)" in backend.failure


def _certificate(folder: Path, name: str) -> tuple[str, str]:
    issued = authority().issue_cert(name)
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(key))
    return str(certificate), str(key)


async def test_private_authority_and_client_certificate(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    authority().cert_pem.write_to_path(str(ca))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("127.0.0.1").configure_cert(context)
    context.verify_mode = ssl.CERT_REQUIRED
    authority().configure_trust(context)
    certificate, key = _certificate(tmp_path, "gateway")
    async with Replica("llama3", tls=context) as replica:
        mutual = ClientTlsSettings(ca_file=str(ca), certificate=certificate, key=key)
        async with watching(access_to(replica.address, RemoteSettings(tls=mutual))) as backend:
            await reaches(backend, BackendState.READY)
            assert b'"usage"' in await ask(backend)
        alone = RemoteSettings(tls=ClientTlsSettings(ca_file=str(ca)))
        async with watching(access_to(replica.address, alone)) as backend:
            await reaches(backend, BackendState.FAILED)
        async with watching(Access(replica.address)) as backend:
            await reaches(backend, BackendState.FAILED)
            assert "its certificate is refused" in backend.failure


async def test_certificate_is_for_the_name_and_not_for_the_address(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    authority().cert_pem.write_to_path(str(ca))
    remote = RemoteSettings(tls=ClientTlsSettings(ca_file=str(ca)))
    async with Replica("llama3", tls=serving("vllm.internal")) as replica:
        access = access_to(replica.address, remote)
        async with watching(access.at(replica.address, "vllm.internal")) as backend:
            await reaches(backend, BackendState.READY)
        assert replica.seen_hosts == {f"vllm.internal:{replica.port}"}
        async with watching(access) as backend:
            await reaches(backend, BackendState.FAILED)
            assert "its certificate is refused" in backend.failure
