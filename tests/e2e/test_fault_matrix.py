"""What can go wrong with an upstream, each with what becomes of the client, the upstream and the counters.

The gateway and its backends are real, so are the sockets; one upstream misbehaves (rogue.py), the other one is well.
A network that drops everything: test_partition.py. Names in DNS that flap: test_dns_flap.py, and test_fleet.py for
those behind `discover`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.backends.vllm_shaped import Replica
from tests.canary import PROMPT
from tests.e2e.rogue import ANSWER, DONE, EVENT, SSE, Fault, Rogue, hanging, resetting, saying, whole
from tests.gateway.running import CHAT, Gateway, serving

REFUSE = "refuse"


@contextlib.asynccontextmanager
async def gateway_before(
    *urls: str, other: str | None = None, seconds: float = 1.0, **routing: Any
) -> AsyncIterator[Gateway]:
    """The model "m" on vLLM servers at `urls`, and as GGUF at `other`; ready. An answer has to come, and to go on,
    within `seconds`."""
    model: dict[str, Any] = {"name": "m", "vllm": {"urls": urls}}
    if other is not None:
        model["gguf"] = {"openai": other}
    edge = {"models": [model], "routing": {"policy": "vllm_first", **routing}}
    async with serving(edge=edge, response_timeout_seconds=seconds, idle_timeout_seconds=seconds) as gateway:
        await gateway.ready()
        yield gateway


async def until(condition: Callable[[], bool]) -> None:
    """States and counts tell nobody of their changes."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - as said
            await asyncio.sleep(0.01)


def question(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": PROMPT}], **fields}


async def ask(gateway: Gateway, *, stream: bool = False) -> httpx.Response:
    return await gateway.client.post(CHAT, json=question(stream=stream), timeout=60)


async def assert_nothing_is_left(gateway: Gateway) -> None:
    await gateway.settled()
    assert [upstream.in_flight for _, upstream in gateway.readiness.upstreams].count(0) == len(
        gateway.readiness.upstreams
    )
    assert await gateway.metric("upshift_queue_depth", model="m") == 0


def failures_in_a_row(gateway: Gateway) -> int:
    """Of the vLLM server, by its breaker."""
    breakers = [upstream.breaker for _, upstream in gateway.readiness.upstreams if upstream.kind == "vllm"]
    return breakers[0].failures


@dataclass(frozen=True)
class Row:
    """A fault before the first byte. `status` and `code` are what a client gets where there is no other upstream,
    `failures` what the breaker counts, `moves` whether another upstream is asked."""

    fault: Fault
    status: int
    code: str
    failures: int = 1
    moves: bool = True


BEFORE_THE_FIRST_BYTE = {
    "reset": Row(resetting(), 502, "backend_error"),
    "closed without a word": Row(saying(), 502, "backend_error"),
    "500": Row(saying(whole("500 Internal Server Error")), 502, "backend_error"),
    "502 in HTML": Row(saying(whole("502 Bad Gateway", b"<html>", kind="text/html")), 502, "backend_error"),
    "503": Row(saying(whole("503 Service Unavailable")), 503, "overloaded", failures=0),
    "429": Row(saying(whole("429 Too Many", b"{}", "retry-after: 7")), 503, "overloaded", failures=0),
    "401": Row(saying(whole("401 Unauthorized")), 502, "backend_error"),
    "redirect": Row(saying(whole("302 Found", b"", "location: http://127.0.0.1:1/")), 502, "backend_error"),
    "HTML instead of an answer": Row(saying(whole("200 OK", b"<html>", kind="text/html")), 502, "backend_error"),
    "no HTTP": Row(saying(b"\x00\xffgarbage\r\n\r\n"), 502, "backend_error"),
    "two lengths": Row(
        saying(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}"), 502, "backend_error"
    ),
    "head without end": Row(saying(b"HTTP/1.1 200 OK\r\ncontent-type: appl"), 502, "backend_error"),
    "400": Row(saying(whole("400 Bad Request")), 400, "invalid_request", failures=0, moves=False),
    "hang": Row(hanging(), 504, "backend_timeout", moves=False),
}


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("name", BEFORE_THE_FIRST_BYTE)
async def test_before_the_first_byte_another_upstream_answers(name: str, stream: bool) -> None:
    row = BEFORE_THE_FIRST_BYTE[name]
    async with (
        Rogue(row.fault) as rogue,
        Replica("m") as well,
        gateway_before(rogue.address, other=well.address) as gateway,
    ):
        answer = await ask(gateway, stream=stream)
        assert rogue.calls == 1, "never twice"
        if row.moves:
            assert (answer.status_code, answer.headers["x-upshift-backend"]) == (200, "gguf")
            assert answer.headers["x-upshift-reason"] == "failover"
            assert not stream or answer.text.endswith("data: [DONE]\n\n")
            assert well.finished == 1
        else:
            assert (answer.status_code, answer.json()["error"]["code"]) == (row.status, row.code)
            assert well.begun == 0, "it may still be computing there, or would refuse here as well"
        assert (await gateway.metric("upshift_retries_total", model="m") or 0) == row.moves
        assert failures_in_a_row(gateway) == row.failures
        await assert_nothing_is_left(gateway)


@pytest.mark.parametrize("name", BEFORE_THE_FIRST_BYTE)
async def test_without_another_upstream_the_client_gets_a_status(name: str) -> None:
    row = BEFORE_THE_FIRST_BYTE[name]
    async with Rogue(row.fault) as rogue, gateway_before(rogue.address) as gateway:
        answer = await ask(gateway)
        assert (answer.status_code, answer.json()["error"]["code"]) == (row.status, row.code)
        assert rogue.calls == 1
        assert name != "429" or answer.headers["retry-after"] == "7"
        if name == "hang":
            assert answer.headers["x-should-retry"] == "false"
            async with asyncio.timeout(10):
                await rogue.left.wait()
        await assert_nothing_is_left(gateway)
        assert [line["status"] for line in gateway.lines()] == [row.status]


async def test_connections_refused_move_to_the_other_upstream_and_are_told_without_one() -> None:
    async with (
        Rogue(saying()) as rogue,
        Replica("m") as well,
        gateway_before(rogue.address, other=well.address) as gateway,
        gateway_before(rogue.address) as alone,
    ):
        await rogue.stop()
        answer = await ask(gateway)
        assert (answer.status_code, answer.headers["x-upshift-reason"]) == (200, "failover")
        assert failures_in_a_row(gateway) == 1
        assert await gateway.metric("upshift_retries_total", model="m") == 1
        refused = await ask(alone)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "backend_unavailable")
        assert int(refused.headers["retry-after"]) >= 1
        await assert_nothing_is_left(gateway)
        await assert_nothing_is_left(alone)


BREAKS_OFF = {
    "cut in order": saying(SSE, EVENT),
    "reset": resetting(SSE, EVENT),
    "hang after the headers": hanging(SSE),
    "hang after an event": hanging(SSE, EVENT),
    "cut inside an event": saying(SSE, EVENT, b'data: {"choi'),
    "cut inside a chunk": saying(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\nffff\r\n", EVENT
    ),
    "no event at all": saying(SSE),
    "garbage": saying(SSE, bytes(range(256)) * 16),
    "an error of its own, and then nothing": saying(SSE, b'data: {"error":{"message":"boom"}}\n\n'),
}


@pytest.mark.parametrize("name", BREAKS_OFF)
async def test_a_stream_that_breaks_off_ends_in_an_error_and_is_not_asked_for_again(name: str) -> None:
    async with (
        Rogue(BREAKS_OFF[name]) as rogue,
        Replica("m") as well,
        gateway_before(rogue.address, other=well.address) as gateway,
    ):
        answer = await ask(gateway, stream=True)
        assert (answer.status_code, answer.headers["x-upshift-backend"]) == (200, "vllm")
        last = answer.text.rstrip().rpartition("data: ")[2]
        code = "backend_timeout" if name.startswith("hang") else "backend_error"
        assert json.loads(last)["error"]["code"] == code
        assert "[DONE]" not in answer.text, "no client may take this for the whole answer"
        assert (rogue.calls, well.begun) == (1, 0)
        assert failures_in_a_row(gateway) == 1
        if name.startswith("hang"):
            async with asyncio.timeout(10):
                await rogue.left.wait()
        await assert_nothing_is_left(gateway)


async def test_a_json_answer_that_breaks_off_is_no_answer() -> None:
    short = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n" + ANSWER
    async with Rogue(saying(short)) as rogue, gateway_before(rogue.address) as gateway:
        answer = await ask(gateway)
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "backend_error")
        assert failures_in_a_row(gateway) == 1
        await assert_nothing_is_left(gateway)


PASSES = {
    "a slow drip": [SSE, *(bytes([byte]) for byte in EVENT + DONE)],
    "a huge event": [SSE, b'data: {"x":"' + b"y" * (2 << 20) + b'"}\n\n', DONE],
    "no blank line at the end": [SSE, EVENT, DONE.rstrip()],
    "carriage returns and comments": [
        SSE,
        b": hello\r\n\r\n",
        EVENT.replace(b"\n", b"\r\n"),
        DONE.replace(b"\n", b"\r\n"),
    ],
}


@pytest.mark.parametrize("name", PASSES)
async def test_odd_streams_that_are_whole_pass(name: str) -> None:
    async with Rogue(saying(*PASSES[name])) as rogue, gateway_before(rogue.address) as gateway:
        answer = await ask(gateway, stream=True)
        assert answer.status_code == 200
        expected = b"".join(PASSES[name][1:])
        assert answer.content.rstrip() == expected.rstrip()
        assert failures_in_a_row(gateway) == 0
        await assert_nothing_is_left(gateway)


async def test_a_name_that_does_not_resolve_is_served_by_the_other_upstream() -> None:
    async with Replica("m") as well:
        model = {"name": "m", "vllm": {"urls": ["http://no-such-host.invalid:8000"]}, "gguf": {"openai": well.address}}
        async with serving(edge={"models": [model], "routing": {"policy": "vllm_first"}}) as gateway:
            await until(lambda: not gateway.readiness.waiting_for)
            answer = await ask(gateway)
            assert (answer.status_code, answer.headers["x-upshift-backend"]) == (200, "gguf")
            assert answer.headers["x-upshift-reason"] in {"failover", "bridge"}
            await assert_nothing_is_left(gateway)


async def test_a_server_that_restarts_under_load_costs_no_request_and_is_taken_back() -> None:
    async with (
        Replica("m") as restarting,
        Replica("m") as well,
        gateway_before(
            restarting.address, other=well.address, seconds=60, breaker={"slow_start_seconds": 0}
        ) as gateway,
    ):
        seen: Counter[str] = Counter()
        over = asyncio.Event()

        async def keep_asking() -> None:
            while not over.is_set():
                answer = await ask(gateway)
                assert answer.status_code == 200
                seen[answer.headers["x-upshift-backend"]] += 1

        async def until_seen(backend: str, number: int) -> None:
            goal = seen[backend] + number
            await until(lambda: seen[backend] >= goal)

        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(keep_asking())
            await until_seen("vllm", 20)
            await restarting.die()
            await until_seen("gguf", 20)
            await restarting.start()
            await until_seen("vllm", 20)
            over.set()
        await assert_nothing_is_left(gateway)


async def test_calls_of_a_server_gone_silent_end_in_time_and_new_ones_are_served_elsewhere() -> None:
    """The server accepts connections and says nothing, to anybody."""
    async with Replica("m") as mute, Replica("m") as well:
        breaker = {"failures": 2, "open_seconds": 600, "max_open_seconds": 600}
        async with gateway_before(mute.address, other=well.address, breaker=breaker) as gateway:
            mute.hears.clear()
            first = await asyncio.gather(*(ask(gateway) for _ in range(2)))
            assert {answer.status_code for answer in first} == {504}
            await until(lambda: mute.stuck == 0)
            assert failures_in_a_row(gateway) == 2
            answer = await ask(gateway)
            assert (answer.status_code, answer.headers["x-upshift-backend"]) == (200, "gguf")
            await assert_nothing_is_left(gateway)
            mute.hears.set()


@pytest.mark.parametrize("status", ["500 Internal Server Error", "503 Service Unavailable", "429 Too Many"])
async def test_under_a_burst_of_errors_retries_stay_within_the_budget(status: str) -> None:
    """Every second call of each server fails; the breaker is out of the way."""
    turn = 0

    async def flaky(rogue: Rogue, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal turn
        turn += 1
        await saying(whole(status) if turn % 2 else whole("200 OK", ANSWER))(rogue, reader, writer)

    async with (
        Rogue(flaky) as one,
        Rogue(flaky) as other,
        gateway_before(one.address, other.address, seconds=60, breaker={"failures": 1000}) as gateway,
    ):
        requests = 200
        statuses: Counter[int] = Counter()
        for _ in range(requests // 8):
            answers = await asyncio.gather(*(ask(gateway) for _ in range(8)))
            statuses.update(answer.status_code for answer in answers)
        retries = await gateway.metric("upshift_retries_total", model="m") or 0
        assert one.calls + other.calls <= requests + retries
        assert retries <= 10 + 0.2 * requests
        assert set(statuses) <= {200, 502, 503}
        assert statuses[200] >= requests // 2
        await assert_nothing_is_left(gateway)


async def test_a_vllm_that_is_killed_under_streams_and_short_calls_costs_what_had_begun_and_nothing_else() -> None:
    """64 streams on vLLM, and 16 callers that never pause."""
    async with (
        Replica("m", token_seconds=0.05) as vllm,
        Replica("m") as well,
        gateway_before(vllm.address, other=well.address, seconds=60, breaker={"slow_start_seconds": 0}) as gateway,
    ):
        ends: Counter[str] = Counter()
        statuses: Counter[int] = Counter()
        seen: Counter[str] = Counter()
        begun = 0
        over = asyncio.Event()

        async def read_a_stream() -> None:
            nonlocal begun
            asked = question(stream=True, max_tokens=400)
            async with gateway.client.stream("POST", CHAT, json=asked, timeout=60) as response:
                assert response.headers["x-upshift-backend"] == "vllm"
                begun += 1
                last = [line async for line in response.aiter_lines() if line][-1].removeprefix("data: ")
                ends["done" if last == "[DONE]" else json.loads(last)["error"]["code"]] += 1

        async def keep_asking() -> None:
            while not over.is_set():
                answer = await ask(gateway)
                statuses[answer.status_code] += 1
                seen[answer.headers.get("x-upshift-backend", "")] += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(64):
                group.create_task(read_a_stream())
            await until(lambda: begun == 64)
            for _ in range(16):
                group.create_task(keep_asking())
            await until(lambda: seen["vllm"] >= 16)
            await vllm.die()
            await until(lambda: seen["gguf"] >= 64)
            await vllm.start()
            taken_back = seen["vllm"] + 16
            await until(lambda: seen["vllm"] >= taken_back)
            over.set()
        assert ends == {"backend_error": 64}, "none of them may look whole"
        assert set(statuses) == {200}, "whatever had not begun is answered by the other one"
        await assert_nothing_is_left(gateway)
