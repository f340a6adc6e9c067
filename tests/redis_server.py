"""A real redis-server for tests: Debian's packages, unpacked below the cache and not installed, or that of the PATH."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.bench_engine_build import CACHE
from tests.engine import wait_for

# The server's program is in redis-tools; the others are libraries that a bare Debian lacks.
_PACKAGES = ("redis-server", "redis-tools", "libjemalloc2", "liblzf1", "libatomic1")
_INSTALL_SECONDS = 600
START_SECONDS = 60


class CannotInstall(Exception):
    """apt-get could not fetch a redis-server."""


def redis_program() -> tuple[str, dict[str, str]]:
    """The program and the environment it needs; fetched once per machine. Raises CannotInstall."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is not None:
        return found, dict(os.environ)
    folder = CACHE / "redis"
    program = folder / "usr" / "bin" / "redis-server"
    if not (folder / ".complete").exists():
        _fetch(folder)
    (library,) = {path.parent for path in folder.glob("usr/lib/*/libjemalloc.so.2")}
    return str(program), {**os.environ, "LD_LIBRARY_PATH": str(library)}


def _fetch(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.deb"):
        old.unlink()
    download = ["apt-get", "--quiet", "download", *_PACKAGES]
    try:
        if not _runs(download, folder):
            # A machine that never asked for the list of packages.
            _runs(["apt-get", "--quiet", "update"], folder)
            if not _runs(download, folder):
                raise CannotInstall(f"apt-get download failed; see {folder / 'install.log'}")
    except FileNotFoundError:
        pytest.skip("there is no redis-server on the PATH, and no apt-get to fetch one")
    for archive in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(archive), str(folder)], check=True, timeout=_INSTALL_SECONDS)
    (folder / ".complete").touch()


def _runs(command: list[str], folder: Path) -> bool:
    with (folder / "install.log").open("a") as log:
        ended = subprocess.run(command, cwd=folder, stdout=log, stderr=log, check=False, timeout=_INSTALL_SECONDS)
    return ended.returncode == 0


class RedisServer:
    """One server on a loopback port that stays the same when it is started again. Keeps its data only if told to."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.options = options
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        program, environment = redis_program()
        self.folder.mkdir(parents=True, exist_ok=True)
        words = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""]
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen([*words, *self.options], env=environment, stdout=log, stderr=log)
        wait_for(self._answers, START_SECONDS)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Ends it and waits for its end. Idempotent."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(how)
            self.process.wait(timeout=60)
            self.process = None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stopped in the middle of whatever it does; the kernel still accepts connections for it."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def command(self, *words: str | bytes) -> Any:
        """One command over a connection of its own; its answer as far as tests need it."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            connection.sendall(_encoded(words))
            with connection.makefile("rb") as stream:
                return _answer(stream)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "redis.log").read_text()
        try:
            return bool(self.command("PING") == b"PONG")
        except RuntimeError as error:
            # One that wants a password is there; one that is loading its data is not yet.
            return str(error).startswith("NOAUTH")
        except OSError:
            return False


@contextlib.contextmanager
def running_redis(folder: Path, *options: str) -> Iterator[RedisServer]:
    """A server until the end of the block."""
    server = RedisServer(folder, *options)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def _encoded(words: tuple[str | bytes, ...]) -> bytes:
    parts = [word.encode() if isinstance(word, str) else word for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


def _answer(stream: Any) -> Any:
    line = stream.readline().rstrip(b"\r\n")
    kind, rest = line[:1], line[1:]
    if kind == b"-":
        raise RuntimeError(rest.decode())
    if kind == b":":
        return int(rest)
    if kind == b"$":
        return stream.read(int(rest) + 2)[:-2] if int(rest) >= 0 else None
    if kind == b"*":
        return [_answer(stream) for _ in range(int(rest))]
    return rest


def free_port() -> int:
    """A free one, whose neighbour 10,000 further on exists as well: nodes of a cluster talk there."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port + 10_000 < 65_536:
            return port
