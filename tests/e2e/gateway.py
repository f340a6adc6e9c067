"""Runs the whole gateway as a user would, `upshift serve`, and finds what it launched."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.backends.certificates import trusting
from tests.engine import PATIENCE_SECONDS, is_alive, metric


class GatewayUnderTest:
    """A running gateway: its base URL, its process, its two logs, and a look at its engine."""

    def __init__(self, process: subprocess.Popen[str], url: str, log: Path, access_log: Path) -> None:
        self.process = process
        self.url = url
        self.log = log
        self.access_log = access_log
        self.http = httpx.Client(base_url=url, timeout=PATIENCE_SECONDS, verify=trusting())

    def ready(self) -> bool:
        return self.http.get("/readyz").status_code == 200

    def in_flight(self) -> float:
        return self.metric("upshift_in_flight")

    def metric(self, name: str) -> float:
        """The sum of a family's samples."""
        lines = self.http.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((name + "{", name + " ")))

    def engine_pid(self) -> int | None:
        """Process id of the engine this gateway launched and keeps."""
        return next(iter(engines_below(self.process.pid)), None)

    def engine_socket(self) -> Path:
        """The engine's private socket."""
        pid = self.engine_pid()
        assert pid is not None, "no engine runs"
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return Path(words[words.index(b"--uds") + 1].decode())

    def engine_metric(self, name: str) -> float:
        """A counter of the engine's own, read past the gateway on the engine's private socket."""
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.engine_socket())), timeout=10) as client:
            return metric(client.get("http://engine/metrics").text, f"upshift_engine_{name}")


def children_of(parent: int) -> dict[int, list[bytes]]:
    """Pid and command line of every process that `parent` started and that lives."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and is_alive(int(entry.name)):
            try:
                ppid = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if ppid == parent:
                found[int(entry.name)] = words
    return found


def engines_below(parent: int) -> list[int]:
    """Pids of engine processes that `parent`, or a child of it, started."""
    children = children_of(parent)
    engines = [pid for pid, words in children.items() if b"engine" in words]
    return engines + [engine for pid in children if pid not in engines for engine in engines_below(pid)]


@contextmanager
def running_gateway(
    folder: Path, config: str, port: int = 0, environment: Mapping[str, str] | None = None
) -> Iterator[GatewayUnderTest]:
    """Starts `upshift serve` with `config` (YAML) on `port`, a free one by default, with `environment` besides ours;
    ends it with SIGTERM and expects exit code 0."""
    file = folder / "upshift.yaml"
    file.write_text(config)
    log, access_log = folder / "gateway.log", folder / "access.log"
    with log.open("w") as errors, access_log.open("w") as lines:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway.cli", "serve", "--config", str(file), "--port", str(port)],
            stdout=lines,
            stderr=errors,
            text=True,
            env={**os.environ, **(environment or {})},
        )
    try:
        gateway = GatewayUnderTest(process, listening_url(process, log), log, access_log)
        yield gateway
        gateway.http.close()
    finally:
        if process.poll() is None:
            process.terminate()
        code = process.wait(timeout=PATIENCE_SECONDS)
    assert code in (0, -9), log.read_text()


def listening_url(process: subprocess.Popen[str], log: Path) -> str:
    pattern = re.compile(r"listening on (https?://[0-9.:]+)")
    started = time.monotonic()
    while not (found := pattern.search(log.read_text())):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() - started < PATIENCE_SECONDS, log.read_text()
        time.sleep(0.02)
    return found[1]
