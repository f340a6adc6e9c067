"""Runs one contestant, the mock upstream and the load generator, each on its core, and measures a window of load.

Linux only: everything about processes comes from /proc. Neighbours: mock_upstream.c, load.c, bench_peers.py.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.benchmarks.bench_engine_build import CACHE
from tests.benchmarks.peers import Peer
from tests.benchmarks.peers_workload import PATH, Workload, body, request_bytes

HOST = "127.0.0.1"
_START_TIMEOUT_SECONDS = 120
_STOP_TIMEOUT_SECONDS = 10
_LOAD_TIMEOUT_SECONDS = 180
_POLL_SECONDS = 0.01
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_SOURCES = Path(__file__).parent


class DidNotStart(Exception):
    """A contestant that ended, or never answered, with its last words."""


@dataclass(frozen=True, slots=True)
class Window:
    """What one contestant did in one window of load. CPU and memory are of all its processes."""

    seconds: float
    requests: int
    events: int
    held: int
    p50_us: float
    p99_us: float
    gap_p50_us: float
    gap_p99_us: float
    cpu_seconds: float
    generator_cpu_seconds: float
    resident_bytes_before: int
    resident_bytes: int
    errors: dict[str, int] = field(default_factory=dict)


def build(name: str) -> Path:
    """The program made from `name`.c, compiled once per content. Exits where there is no compiler."""
    source = _SOURCES / f"{name}.c"
    binary = CACHE / "tools" / f"{name}-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if binary.exists():
        return binary
    if compiler is None:
        sys.exit("bench: a C compiler is needed for the mock upstream and the load generator")
    binary.parent.mkdir(parents=True, exist_ok=True)
    partial = binary.with_suffix(f".{os.getpid()}")
    subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-o", str(partial), str(source)], check=True)
    partial.rename(binary)
    return binary


class Mock:
    """The upstream of every contestant, on the core of this process: `with Mock(...)`. It ends with its input."""

    def __init__(self, *options: str) -> None:
        self._command = [str(build("mock_upstream")), *options]
        self.port = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def pids(self) -> list[int]:
        return [self._process.pid]

    def end_slow_streams(self) -> None:
        self._process.send_signal(signal.SIGUSR1)


class Contestant:
    """A running peer on `core`, in a session of its own: `with Contestant(...)`. Ready once it has answered a chat."""

    def __init__(self, peer: Peer, install: Path, mock: Mock, core: int) -> None:
        self.peer = peer
        self.port = _free_port()
        self.start_seconds = 0.0
        self.idle_bytes = 0
        self._core = core
        self._work = tempfile.TemporaryDirectory(prefix=f"bench-{peer.name}-")
        self._known = {
            "install": str(install),
            "work": self._work.name,
            "port": str(self.port),
            "upstream": f"{HOST}:{mock.port}",
            "spare": str(_free_port()),
            "python": sys.executable,
        }
        self.headers = {name: self._filled(value) for name, value in peer.headers.items()}

    def __enter__(self) -> Self:
        work = Path(self._work.name)
        work.chmod(0o755)  # nginx's worker gives up root
        for name, text in self.peer.files.items():
            (work / name).write_text(self._filled(text))
        started = time.perf_counter()
        self._process = self._spawn(work / "output.log")
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self.start_seconds = time.perf_counter() - started
        self.idle_bytes = resident_bytes(self.pids)
        return self

    def _filled(self, text: str) -> str:
        for name, value in self._known.items():
            text = text.replace(f"@{name}@", value)
        return text

    def _spawn(self, log: Path) -> subprocess.Popen[bytes]:
        own_cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {self._core})  # inherited by the child
        try:
            with log.open("wb") as output:
                return subprocess.Popen(
                    [self._filled(word) for word in self.peer.argv],
                    cwd=self._work.name,  # not where our packages lie: theirs may have the same names
                    env={**os.environ, **{k: self._filled(v) for k, v in self.peer.environment.items()}},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
        except FileNotFoundError as error:
            raise DidNotStart(f"there is no {error.filename} on this machine") from None
        finally:
            os.sched_setaffinity(0, own_cores)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_SECONDS
        while (status := ask(self.port, self.headers)) != 200:
            if self._process.poll() is not None or time.monotonic() > deadline:
                how = "ended" if self._process.poll() is not None else f"answered {status or 'nothing'}"
                raise DidNotStart(f"it {how}: {self.last_words()}")
            time.sleep(_POLL_SECONDS)

    def last_words(self) -> str:
        """The end of its output, in one line."""
        text = (Path(self._work.name) / "output.log").read_text(errors="replace")
        return " | ".join(text.splitlines()[-5:])[-600:]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):  # what a drain would wait for is of no interest here
            self._process.wait(_STOP_TIMEOUT_SECONDS)
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._work.cleanup()

    @property
    def pids(self) -> list[int]:
        """All processes of its session: workers of workers too."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _session(pid) == self._process.pid]


def measure(
    workload: Workload,
    mock: Mock,
    *,
    port: int,
    pids: list[int],
    headers: Mapping[str, str],
    seconds: float,
    warmup_seconds: float,
) -> Window:
    """Loads whoever listens on `port` and returns what `pids` did meanwhile."""
    before = resident_bytes(pids)
    with tempfile.NamedTemporaryFile() as file:
        file.write(request_bytes(port, body(workload), headers))
        file.flush()
        command = [str(build("load")), "--port", str(port), "--request", file.name, *workload.load]
        command += ["--seconds", str(seconds), "--warmup", str(warmup_seconds)]
        with _load_generator(command) as load:
            assert load.stdout is not None
            generator = [load.pid, *mock.pids]
            _expect(load, "start")
            cpu, generator_cpu = cpu_seconds(pids), cpu_seconds(generator)
            _expect(load, "end")
            cpu, generator_cpu = cpu_seconds(pids) - cpu, cpu_seconds(generator) - generator_cpu
            resident = resident_bytes(pids)
            mock.end_slow_streams()
            found = json.loads(load.stdout.read())
    return Window(
        **found,
        cpu_seconds=cpu,
        generator_cpu_seconds=generator_cpu,
        resident_bytes_before=before,
        resident_bytes=resident,
    )


@contextmanager
def _load_generator(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _expect(load: subprocess.Popen[str], word: str) -> None:
    assert load.stdout is not None
    line = load.stdout.readline().strip()
    if line != word:
        raise RuntimeError(f"the load generator said {line!r} where {word!r} was due")


def ask(port: int, headers: Mapping[str, str]) -> int:
    """Status of one small chat request; 0 where nobody answers."""
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    payload = json.dumps(body()).encode()
    try:
        connection.request("POST", PATH, payload, {"content-type": "application/json", **headers})
        response = connection.getresponse()
        response.read()
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()
    return response.status


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of all threads of these processes, those of ended children included."""
    return sum(sum(map(int, fields[11:15])) for fields in map(_stat, pids) if fields) / _TICKS_PER_SECOND


def resident_bytes(pids: list[int]) -> int:
    """Memory present; pages that two of the processes share count twice."""
    return sum(int(fields[21]) for fields in map(_stat, pids) if fields) * _PAGE_BYTES


def _session(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[3]) if fields else 0


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third (state) on, so that field N of proc(5) is at N - 3; empty when gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])
