"""Thousands of mixed requests with clients leaving: every answer right, nothing left over, memory flat.

1,000 requests in `make test`; `make soak` sends 5,000 (UPSHIFT_SOAK_REQUESTS).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from backends.gguf import demo
from tests.e2e.gateway import GatewayUnderTest, running_gateway
from tests.engine import wait_for

REQUESTS = int(os.environ.get("UPSHIFT_SOAK_REQUESTS", "1000"))
CONCURRENCY = 32
LEAVING = 0.2
# 16 slots for 32 clients: half of them wait at any time.
CONFIG = "models: [{name: demo, context_tokens: 512, gguf: {source: demo, parallel: 16, threads: 1}}]\n"


@dataclass
class Tally:
    right: int = 0
    left: int = 0
    wrong: list[tuple[str, str, str]] = field(default_factory=list)
    resident_mib: list[tuple[int, float, float]] = field(default_factory=list)


def questions() -> list[str]:
    listed = json.loads((Path(demo.__file__).parent / "questions.json").read_text(encoding="utf-8"))
    return [entry["ask"][0] for entry in listed][:60]


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def body_for(question: str, *, stream: bool) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"model": "demo", "messages": messages, "temperature": 0, "max_tokens": 40, "stream": stream}


async def text_of(client: httpx.AsyncClient, question: str, *, stream: bool, leave_after: int | None) -> str | None:
    """The answer; None when the client left before its end, after that many lines."""
    async with client.stream("POST", "/v1/chat/completions", json=body_for(question, stream=stream)) as response:
        assert response.status_code == 200, await response.aread()
        if not stream:
            await response.aread()
            return str(response.json()["choices"][0]["message"]["content"])
        text, lines = "", 0
        async for line in response.aiter_lines():
            lines += 1
            if leave_after is not None and lines > leave_after:
                return None
            if line.startswith("data: {"):
                text += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
        return text


async def soak(gateway: GatewayUnderTest, expected: dict[str, str], tally: Tally) -> None:
    engine = gateway.engine_pid()
    assert engine is not None
    chance = random.Random(7)
    plan = [(chance.choice(list(expected)), chance.random(), chance.randrange(1, 12)) for _ in range(REQUESTS)]
    todo = iter(enumerate(plan, start=1))

    async def one_client(client: httpx.AsyncClient) -> None:
        for number, (question, draw, lines) in todo:
            leaves = draw < LEAVING
            stream = leaves or draw < 0.6
            text = await text_of(client, question, stream=stream, leave_after=lines if leaves else None)
            if text is None:
                tally.left += 1
            elif text == expected[question]:
                tally.right += 1
            else:
                tally.wrong.append((question, expected[question], text))
            if number % 500 == 0:
                sizes = resident_mib(gateway.process.pid), resident_mib(engine)
                tally.resident_mib.append((number, *sizes))

    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(base_url=gateway.url, timeout=120, limits=limits) as client,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(CONCURRENCY):
            group.create_task(one_client(client))


async def test_soak(tmp_path: Path) -> None:
    with running_gateway(tmp_path, CONFIG) as gateway:
        wait_for(gateway.ready)
        async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as client:
            alone = {q: await text_of(client, q, stream=False, leave_after=None) or "" for q in questions()}
        tally = Tally()
        await soak(gateway, alone, tally)
        wait_for(lambda: gateway.engine_metric("running") + gateway.engine_metric("waiting") == 0)
        print(f"right {tally.right}, left {tally.left}, wrong {len(tally.wrong)}")
        print("requests, gateway MiB, engine MiB:", tally.resident_mib)
        assert tally.wrong == []
        assert tally.right + tally.left == REQUESTS
        assert tally.left > REQUESTS * LEAVING / 4, "hardly a client left in time"
        assert gateway.engine_metric("kv_mismatches") == 0
        assert gateway.engine_metric("kv_reserved_tokens") == 0
        assert gateway.in_flight() == 0
        flat_from = [sizes for sizes in tally.resident_mib if sizes[0] >= 1000]
        for first, last in zip(flat_from[0][1:], flat_from[-1][1:], strict=True) if flat_from else ():
            assert last < first * 1.1 + 2, f"memory grows: {tally.resident_mib}"
