"""A network that drops everything between the gateway and a server, in one way or both: part of the fault matrix."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.backends.vllm_shaped import Replica
from tests.e2e.partition import Line, Way
from tests.e2e.test_fault_matrix import ask, assert_nothing_is_left, failures_in_a_row, gateway_before, question, until
from tests.gateway.running import CHAT

# One trial after a moment, and again and again.
BREAKER = {"failures": 2, "open_seconds": 0.1, "max_open_seconds": 0.2}


@pytest.mark.parametrize("way", ["both", "up", "down"])
async def test_a_stream_over_a_line_that_is_cut_ends_in_time_and_never_cleanly(way: Way) -> None:
    async with (
        Replica("m", token_seconds=0.02) as server,
        Line(server.port) as line,
        Replica("m") as well,
        gateway_before(line.address, other=well.address) as gateway,
        gateway.client.stream("POST", CHAT, json=question(stream=True, max_tokens=50), timeout=60) as answer,
    ):
        lines = answer.aiter_lines()
        assert answer.headers["x-upshift-backend"] == "vllm"
        await anext(lines)
        await line.cut(way)
        last = [text async for text in lines if text][-1]
        if way == "up":
            assert last == "data: [DONE]", "nothing was to be said to the server any more"
        else:
            assert json.loads(last.removeprefix("data: "))["error"]["code"] == "backend_timeout"
            assert failures_in_a_row(gateway) == 1
        assert (server.begun, well.begun) == (1, 0), "nobody is asked in the middle of an answer"
        await line.heal()
        await until(lambda: server.running == 0)
        await assert_nothing_is_left(gateway)


@pytest.mark.parametrize("way", ["both", "up", "down"])
async def test_calls_end_in_time_others_serve_and_a_healed_line_is_used_again(way: Way) -> None:
    async with (
        Replica("m") as server,
        Line(server.port) as line,
        Replica("m") as well,
        gateway_before(line.address, other=well.address, breaker=BREAKER) as gateway,
    ):
        assert (await ask(gateway)).headers["x-upshift-backend"] == "vllm"
        await line.cut(way)
        # The first goes over the connection that is open, the others need one that they do not get.
        lost = await asyncio.gather(*(ask(gateway) for _ in range(3)))
        for answer in lost:
            code = answer.json()["error"]["code"] if answer.status_code != 200 else ""
            assert (answer.status_code, code) in {(504, "backend_timeout"), (200, "")}
        assert any(answer.status_code == 504 for answer in lost), "it may still be computing there"
        async with asyncio.timeout(60):
            while (answer := await ask(gateway)).status_code != 200:
                assert answer.json()["error"]["code"] == "backend_timeout"
        assert answer.headers["x-upshift-backend"] == "gguf"
        await line.heal()
        async with asyncio.timeout(60):
            while (await ask(gateway)).headers["x-upshift-backend"] != "vllm":
                pass
        await until(lambda: server.running == 0)
        await assert_nothing_is_left(gateway)


async def test_who_gets_no_connection_is_served_elsewhere_for_nothing_was_sent() -> None:
    async with (
        Replica("m") as server,
        Line(server.port) as line,
        Replica("m") as well,
        gateway_before(line.address, other=well.address, seconds=60) as gateway,
    ):
        await line.cut()
        answer = await ask(gateway)
        assert (answer.status_code, answer.headers["x-upshift-backend"]) == (200, "gguf")
        assert answer.headers["x-upshift-reason"] == "failover"
        assert (server.begun, well.finished) == (0, 1)
        await assert_nothing_is_left(gateway)
