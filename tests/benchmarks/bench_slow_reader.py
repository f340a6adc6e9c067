"""Memory of the upstream client while a server offers more than its reader takes, and while nobody reads its upload.
The server is a process of its own; what is measured is the resident memory of this one.

Run: python -m tests.benchmarks.bench_slow_reader [--mib 1024] [--server uvicorn]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import uvloop

from backends.http import HttpClient, client_tls

MIB = 1024 * 1024
UPLOAD = b"x" * (256 * MIB)


def resident_mib() -> float:
    """Of this process, now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


@contextlib.contextmanager
def serving(kind: str) -> Iterator[dict[str, str]]:
    """Addresses by transport."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.backends.contract_server", kind, folder]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.stdin.close()
            process.wait(10)


async def count(client: HttpClient, name: str) -> int:
    """A counter of the server."""
    response = await client.request("POST", "/count")
    try:
        return int(json.loads(await response.read(1000))[name])
    finally:
        response.close()


async def measure(address: str, ca_file: str, total_bytes: int) -> tuple[float, ...]:
    """MiB: offered to a reader that does not read, most memory gained until the last byte of a slow one, most gained by
    an upload that nobody reads. Then the seconds that the slow reading took."""
    tls = client_tls(ca_file) if address.startswith("https:") else None
    client, other = HttpClient(address, tls=tls), HttpClient(address, tls=tls)
    start = await count(other, "offered")
    before = most = resident_mib()
    began = time.perf_counter()
    response = await client.request("POST", f"/offer/{total_bytes}")
    await asyncio.sleep(1)  # as good as for ever
    offered = (await count(other, "offered") - start) / MIB
    taken = 0
    async for chunk in response.chunks:
        taken += len(chunk)
        most = max(most, resident_mib())
        await asyncio.sleep(0.001)
    assert taken == total_bytes
    response.close()
    seconds = time.perf_counter() - began
    sent_before = sent_most = resident_mib()
    upload = asyncio.create_task(client.request("POST", "/silent", (), UPLOAD))
    for _ in range(50):
        await asyncio.sleep(0.01)
        sent_most = max(sent_most, resident_mib())
    upload.cancel()
    await asyncio.gather(upload, return_exceptions=True)
    await client.aclose()
    await other.aclose()
    return offered, most - before, sent_most - sent_before, seconds


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--server", default="uvicorn", choices=("uvicorn", "aiohttp", "nginx"))
    arguments = parser.parse_args()
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
        "asyncio": asyncio.new_event_loop,
        "uvloop": uvloop.new_event_loop,
    }
    print("| loop | transport | offered unread, MiB | gained reading, MiB | gained sending, MiB | seconds |")
    print("|---|---|---|---|---|---|")
    with serving(arguments.server) as addresses:
        for name, factory in loops.items():
            for transport in ("tcp", "tls", "unix"):
                with asyncio.Runner(loop_factory=factory) as runner:
                    row = runner.run(measure(addresses[transport], addresses["ca"], arguments.mib * MIB))
                print(
                    f"| {name} | {transport} | {row[0]:.0f} | {row[1]:.1f} | {row[2]:.1f} | {row[3]:.0f} |", flush=True
                )


if __name__ == "__main__":
    main()
