"""Real servers for tests that speak Redis' protocol: Debian's of four releases, or for most tests that of the PATH."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.debian import CannotFetch, command, unpacked
from tests.engine import wait_for

START_SECONDS = 60


@dataclass(frozen=True)
class Edition:
    """A server as one release of Debian has it; `libraries` are those that a bare Debian 12 lacks."""

    name: str
    release: str
    libraries: tuple[str, ...]
    server: str = "redis"

    def command(self) -> list[str]:
        """How it is started; fetched once per machine. Raises CannotFetch."""
        # The program is in the tools, the name by which it is a server in the other one.
        packages = (f"{self.server}-server", f"{self.server}-tools", *self.libraries)
        return command(unpacked(*packages, release=self.release), f"usr/bin/{self.server}-server")


_BASE = ("libjemalloc2", "liblzf1", "libatomic1")
_NEW = (*_BASE, "libc6", "libssl3t64", "libzstd1", "libstdc++6", "libgcc-s1")
REDIS_7 = Edition("redis 7", "bookworm", _BASE)
EDITIONS = (
    Edition("redis 6", "bullseye", (*_BASE, "libssl1.1", "liblua5.1-0", "lua-bitop", "lua-cjson", "libhiredis0.14")),
    REDIS_7,
    Edition("redis 8", "trixie", _NEW),
    Edition("valkey 8", "trixie", _NEW, "valkey"),
)


def if_to_be_had(edition: Edition) -> Edition | None:
    """`edition`; where it cannot be had the test is skipped. On machines without Debian's packages one of them is
    None, which is any server."""
    try:
        edition.command()
    except CannotFetch as error:
        if edition is REDIS_7:
            return None
        pytest.skip(f"{edition.name}: {error}")
    return edition


def any_server() -> list[str]:
    """How a server of whatever version is started. Skips the test where there is none and no apt-get."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is not None:
        return [found]
    if shutil.which("apt-get") is None:
        pytest.skip("there is no redis-server on the PATH, and no apt-get to fetch one")
    return REDIS_7.command()


class RedisServer:
    """One server on a loopback port that stays the same when it is started again. Keeps its data only if told to."""

    def __init__(self, folder: Path, *options: str, edition: Edition | None = None) -> None:
        self.folder = folder
        self.options = options
        self.edition = edition
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        start = any_server() if self.edition is None else self.edition.command()
        self.folder.mkdir(parents=True, exist_ok=True)
        words = [*start, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""]
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen([*words, *self.options], stdout=log, stderr=log)
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
def running_redis(folder: Path, *options: str, edition: Edition | None = None) -> Iterator[RedisServer]:
    """A server of that edition, or any one, until the end of the block."""
    server = RedisServer(folder, *options, edition=edition)
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
