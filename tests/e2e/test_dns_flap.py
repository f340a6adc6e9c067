"""A host name in `urls` that leads to one server, to nobody, to another one and back, while clients call.

The gateway is a process of its own whose resolver reads a hosts file of the test's (Debian's nss_wrapper). Names behind
`discover` are in test_fleet.py, the rest of the matrix in test_fault_matrix.py.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.backends.vllm_shaped import Replica
from tests.canary import PROMPT
from tests.debian import unpacked
from tests.e2e.gateway import GatewayUnderTest, running_gateway

NAME = "vllm.test"
CLIENTS = 6
QUESTION = {"model": "m", "messages": [{"role": "user", "content": PROMPT}]}


class Hosts:
    """A hosts file with one name in it, or none."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "hosts"
        self.point_at(None)

    def point_at(self, host: str | None) -> None:
        fresh = self.file.with_suffix(".fresh")
        fresh.write_text(f"{host} {NAME}\n" if host else "127.0.0.1 localhost\n")
        os.replace(fresh, self.file)

    @property
    def environment(self) -> dict[str, str]:
        """For a process that shall read it."""
        (library,) = unpacked("libnss-wrapper").glob("usr/lib/*/libnss_wrapper.so")
        # Reading the file anew while another thread looks a name up is more than the library survives.
        return {"LD_PRELOAD": str(library), "NSS_WRAPPER_HOSTS": str(self.file), "UV_THREADPOOL_SIZE": "1"}


@asynccontextmanager
async def gateway_of(folder: Path, config: str, environment: dict[str, str]) -> AsyncIterator[GatewayUnderTest]:
    """Its start and its end take a second each, in which our servers must answer."""
    running = running_gateway(folder, config, environment=environment)
    gateway = await asyncio.to_thread(running.__enter__)
    try:
        yield gateway
    finally:
        await asyncio.to_thread(running.__exit__, None, None, None)


class Callers:
    """Ask one after the other. `seen` counts answers by status and backend."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.seen: Counter[tuple[int, str]] = Counter()

    async def run(self) -> None:
        async with httpx.AsyncClient(base_url=self._url, timeout=60) as client, asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(self._ask(client))

    async def _ask(self, client: httpx.AsyncClient) -> None:
        while True:
            answer = await client.post("/v1/chat/completions", json=QUESTION)
            self.seen[answer.status_code, answer.headers.get("x-upshift-backend", "")] += 1

    async def more(self, backend: str, number: int = 20) -> None:
        """Returns when so many further calls have been answered by `backend`."""
        enough = self.seen[200, backend] + number
        await until(lambda: self.seen[200, backend] >= enough)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not condition():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


async def vllm_of(gateway: GatewayUnderTest) -> dict[str, Any]:
    """What the gateway tells operators of the endpoint behind the name."""
    shown: Any = (await asyncio.to_thread(gateway.http.get, "/admin/status")).json()
    upstreams: list[dict[str, Any]] = shown["models"][0]["upstreams"]
    return next(upstream for upstream in upstreams if upstream["backend"] == "vllm")


async def failure(gateway: GatewayUnderTest) -> str:
    shown: Any = (await asyncio.to_thread(gateway.http.get, "/readyz")).json()
    return next(str(model.get("failure", "")) for model in shown["models"] if model["backend"] == "vllm")


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="nss_wrapper is fetched with apt-get")
async def test_host_name_that_flaps_costs_no_request_and_is_followed(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path)
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(Replica("m", host="127.0.0.2"))
        other = await stack.enter_async_context(Replica("m", host="127.0.0.3", port=one.port))
        spare = await stack.enter_async_context(Replica("m"))
        urls = f"['http://{NAME}:{one.port}']"
        config = (
            f"models: [{{name: m, vllm: {{urls: {urls}}}, gguf: {{openai: '{spare.address}'}}}}]\n"
            "routing: {policy: vllm_first, breaker: {slow_start_seconds: 0}}\n"
        )
        hosts.point_at(one.host)
        gateway = await stack.enter_async_context(gateway_of(tmp_path, config, hosts.environment))
        callers = Callers(gateway.url)
        calling = asyncio.create_task(callers.run())
        await callers.more("vllm")

        for leaving, coming in ((one, other), (other, one)):
            # The name is gone: connections that are open serve on, and when they break there are no new ones.
            hosts.point_at(None)
            await callers.more("vllm")
            await leaving.die()
            await callers.more("gguf")
            await until_async(lambda: failure(gateway))
            assert "not known" in await failure(gateway)
            assert (await vllm_of(gateway))["state"] == "failed"
            # It leads somewhere else: found by itself.
            if coming is one:
                await one.start()
            finished = coming.finished
            hosts.point_at(coming.host)
            await callers.more("vllm")
            assert coming.finished > finished

        calling.cancel()
        await asyncio.wait({calling})
        assert {status for status, _ in callers.seen} == {200}, callers.seen
        await until(lambda: gateway.in_flight() == 0)
        vllm = await vllm_of(gateway)
        assert (vllm["state"], vllm["breaker"], vllm["failures_in_a_row"]) == ("ready", "closed", 0)
        retries = gateway.metric("upshift_retries_total")
        assert 0 < retries <= 10 + 0.2 * callers.seen.total()
        assert (one.running, other.running) == (0, 0)


async def until_async(condition: Callable[[], Any]) -> None:
    """As `until`, for what has to be asked for."""
    async with asyncio.timeout(120):
        while not await condition():  # noqa: ASYNC110 - as there
            await asyncio.sleep(0.01)
