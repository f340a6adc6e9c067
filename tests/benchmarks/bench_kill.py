"""vLLM is killed under streams and short calls: who is answered, by whom, and when vLLM is back.

    python -m tests.benchmarks.bench_kill --rate 200 --seconds 12 --streams 64

The demo model on vLLM (on the CPU where there is no GPU) and on our GGUF engine, behind one gateway that prefers vLLM.
Short calls come at a fixed rate, whatever becomes of those before them; after a third of the time the victim gets
SIGKILL. Takes a minute or three for vLLM's two starts, and as long as two cores need for what was offered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.bench_engine_load import Client, Exchange, request_bytes
from tests.vllm import QUICK, VllmUnderTest, running_vllm

CHAT = "/v1/chat/completions"
STREAM_TOKENS = 900
VICTIMS = ("server", "engine", "guard")

CONFIG = f"""
profile: prod
server: {{allowed_hosts: [bench]}}
routing:
  queue: {{max_waiting: 10000, max_wait_seconds: 600}}
models:
  - name: demo
    context_tokens: 1024
    gguf: {{source: demo, parallel: 32, threads: 1}}
    vllm: {{source: demo, max_sequences: 96, kv_cache_bytes: 1073741824, {QUICK}}}
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of it. `streams` are their last events, "[DONE]" or an error's code; `calls` are the short ones, and
    `killed_at` is on their clock. `back_seconds` is from the kill to the first answer of vLLM after it."""

    streams: Counter[str]
    calls: Sequence[Exchange]
    killed_at: float
    offered_seconds: float
    retries: float
    back_seconds: float

    @property
    def statuses(self) -> Counter[str]:
        """Short calls by what the client got: a status, or why it got none."""
        return Counter(call.failure or str(call.status) for call in self.calls)

    @property
    def caught(self) -> list[Exchange]:
        """Those that were under way when vLLM was killed; answers of vLLM among them had left it before."""
        return [call for call in self.calls if call.sent_at < self.killed_at < call.ended_at]

    @property
    def after(self) -> list[Exchange]:
        """Those that were sent while there was no vLLM."""
        return [call for call in self.calls if call.sent_at > self.killed_at]

    def report(self) -> str:
        """For people, line by line."""
        last = max(call.ended_at for call in self.calls) - min(call.sent_at for call in self.calls)
        before = [call for call in self.calls if call.ended_at < self.killed_at]
        lines = [
            f"short calls: {len(self.calls)} offered in {self.offered_seconds:.1f} s, all answered after {last:.1f} s",
            f"  by status: {dict(self.statuses)}",
            f"  before the kill by backend: {dict(Counter(call.backend for call in before))}",
            f"  under way at the kill: {len(self.caught)}, "
            f"by backend: {dict(Counter(call.backend for call in self.caught))}",
            f"  sent after it by backend: {dict(Counter(call.backend for call in self.after))}",
            f"  seconds, p50 / p95: before {_quantiles(before)}, all {_quantiles(self.calls)}",
            f"streams: {dict(self.streams)}",
            f"retries: {self.retries:.0f}; vLLM answers again after {self.back_seconds:.1f} s",
        ]
        return "\n".join(lines)


def _quantiles(calls: Sequence[Exchange]) -> str:
    took = sorted(call.ended_at - call.sent_at for call in calls) or [0.0]
    return " / ".join(f"{took[min(int(len(took) * share), len(took) - 1)]:.2f}" for share in (0.5, 0.95))


async def kill_under_load(
    vllm: VllmUnderTest, rate: float, seconds: float, streams: int, victim: str = "server"
) -> Outcome:
    """The whole of it, against a gateway that runs CONFIG. `rate` is short calls a second."""
    host, _, port = vllm.gateway.url.removeprefix("http://").partition(":")
    address = host, int(port)
    begun = asyncio.Semaphore(0)
    # Before there are streams to read: beside those, on a busy machine, the look takes longer than they do.
    processes = await asyncio.to_thread(vllm.processes)
    reading = [asyncio.create_task(_read_stream(address, begun)) for _ in range(streams)]
    for _ in reading:
        await begun.acquire()
    killed_at = 0.0

    def kill() -> None:
        nonlocal killed_at
        killed_at = time.perf_counter()
        os.kill(processes[victim], signal.SIGKILL)

    asyncio.get_running_loop().call_later(seconds / 3, kill)
    calls = await _offer(address, rate, seconds)
    ends = Counter([await stream for stream in reading])
    await asyncio.to_thread(vllm.wait_ready)
    back_seconds = await _until_backend(address, "vllm") - killed_at
    retries = await asyncio.to_thread(vllm.gateway.metric, "upshift_retries_total")
    return Outcome(ends, calls, killed_at, seconds, retries, back_seconds)


async def _read_stream(address: tuple[str, int], begun: asyncio.Semaphore) -> str:
    asked = {**_question("Tell me all about continuous batching."), "max_tokens": STREAM_TOKENS, "stream": True}
    reader, writer = await asyncio.open_connection(*address)
    try:
        message = request_bytes("POST", CHAT, asked)
        writer.write(message.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1))
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"\r\nx-upshift-backend: vllm\r\n" in head, head
        await reader.readuntil(b"data: ")
        begun.release()
        events = [line for line in (await reader.read()).split(b"\n") if line.startswith(b"data: ")]
    finally:
        writer.close()
    last = events[-1].removeprefix(b"data: ")
    return "[DONE]" if last == b"[DONE]" else str(json.loads(last).get("error", {}).get("code", "cut"))


async def _offer(address: tuple[str, int], rate: float, seconds: float) -> list[Exchange]:
    """Calls at their times, over as many connections as that takes."""
    idle: list[Client] = []
    made: list[Client] = []

    async def ask(number: int) -> Exchange:
        if not idle:
            made.append(Client(*address))
            idle.append(made[-1])
        client = idle.pop()
        answer = await client.exchange(request_bytes("POST", CHAT, {**_question(f"Number {number}?"), "max_tokens": 1}))
        idle.append(client)
        return answer

    began = time.perf_counter()
    asking = []
    for number in range(round(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
        asking.append(asyncio.create_task(ask(number)))
    try:
        return list(await asyncio.gather(*asking))
    finally:
        for client in made:
            client.close()


async def _until_backend(address: tuple[str, int], backend: str) -> float:
    """When the first answer of it was complete."""
    client = Client(*address)
    try:
        async with asyncio.timeout(300):
            while True:
                answer = await client.exchange(request_bytes("POST", CHAT, {**_question("Back?"), "max_tokens": 1}))
                if answer.backend == backend:
                    return answer.ended_at
    finally:
        client.close()


def _question(text: str) -> dict[str, Any]:
    return {"model": "demo", "messages": [{"role": "user", "content": text}], "temperature": 0, "ignore_eos": True}


def main() -> int:
    """Prints the report; exits 1 where a short call was not answered."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=200.0, help="short calls a second (default %(default)g)")
    parser.add_argument("--seconds", type=float, default=12.0, help="how long they come (default %(default)g)")
    parser.add_argument("--streams", type=int, default=64, help="default %(default)d")
    parser.add_argument("--victim", choices=VICTIMS, default="server", help="process of vLLM's (default %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print("bench_kill: waiting for vLLM", file=sys.stderr, flush=True)
        with running_vllm(Path(folder), CONFIG) as vllm:
            work = kill_under_load(vllm, options.rate, options.seconds, options.streams, options.victim)
            outcome = asyncio.run(work)
    print(outcome.report())
    return 0 if set(outcome.statuses) == {"200"} else 1


if __name__ == "__main__":
    sys.exit(main())
