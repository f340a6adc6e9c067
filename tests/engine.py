"""Runs the real GGUF engine as a child process for tests, on a Unix socket of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

# Longer than anything takes on a machine with four times as much to do as it can; who waits for less says so.
PATIENCE_SECONDS = 120.0


class EngineUnderTest:
    """A running engine: an httpx client on its socket, its process, its counters."""

    def __init__(self, process: subprocess.Popen[str], path: Path) -> None:
        self.process = process
        self.socket = path
        self.client = httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://engine", timeout=60)

    def async_client(self) -> httpx.AsyncClient:
        transport = httpx.AsyncHTTPTransport(uds=str(self.socket), limits=httpx.Limits(max_connections=None))
        return httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=120)

    def resident_mib(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def metric(self, name: str) -> float:
        return metric(self.client.get("/metrics").text, name)


def wait_for(condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> float:
    """Polls until `condition` holds; returns the seconds it took. Polling is the only view on another process."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            raise AssertionError(f"not so within {seconds} s")
        time.sleep(0.005)
    return time.monotonic() - started


def metric(exposition: str, name: str) -> float:
    """The value of the one series called `name`."""
    (value,) = [line.rpartition(" ")[2] for line in exposition.splitlines() if line.startswith(f"{name} ")]
    return float(value)


@contextmanager
def running_engine(model: Path | str, folder: Path, *options: str, dies: bool = False) -> Iterator[EngineUnderTest]:
    """Starts `upshift engine`, waits until it is ready, ends it with SIGTERM and expects exit code 0, unless a test
    lets it die."""
    path = folder / "engine.sock"
    command = [sys.executable, "-m", "gateway.cli", "engine", str(model), "--uds", str(path), "--threads", "1"]
    process = subprocess.Popen([*command, "--name", "tiny", *options], stderr=subprocess.PIPE, text=True)
    engine = EngineUnderTest(process, path)
    try:
        wait_for(lambda: answers(engine))
        yield engine
    finally:
        engine.client.close()
        process.terminate()
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert dies or process.returncode == 0, errors


def answers(engine: EngineUnderTest) -> bool:
    """Whether the engine is ready; fails at once when it ended instead."""
    if engine.process.poll() is not None:
        raise AssertionError(f"the engine ended: {engine.process.communicate()[1]}")
    return listens(engine.socket) and engine.client.get("/health").status_code == 200


def listens(path: Path) -> bool:
    """Whether somebody accepts on a Unix socket (httpx leaks a socket for every refused try)."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # the second where it ends while we read
        return False
    return state != "Z" and os.path.exists(f"/proc/{pid}")
