"""The real vLLM for tests: its environment, made once per machine, and a gateway that runs one on the demo model."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from backends.vllm.environment import default_folder
from backends.vllm.install import BUILDS, fitting_device, install
from tests.e2e.gateway import GatewayUnderTest, children_of, running_gateway
from tests.engine import wait_for

# A start takes 30 s on a machine with nothing else to do, and minutes where two cores are shared.
START_SECONDS = 900
# What its tests do not need: compiled kernels, a warm-up.
QUICK = "environment: {VLLM_CPU_CI_ENV: '1'}, args: {enforce-eager: true}"
MAX_QUEUED = 24
# A name that every engine of tests/backends/contract.py answers to.
MODEL = "contract"

BOTH = f"""
profile: prod
models:
  - name: demo
    aliases: [gpt-4o-mini, {MODEL}]
    context_tokens: 1024
    gguf: {{source: demo, parallel: 8, threads: 1}}
    vllm: {{source: demo, kv_cache_bytes: 67108864, tool_parser: hermes, max_queued: {MAX_QUEUED}, {QUICK}}}
"""


def ensure_installed() -> None:
    """`make test` has done it; a test run of its own makes up for it, in minutes."""
    install(default_folder(), BUILDS[fitting_device()], lambda text: print(text, file=sys.stderr))


class VllmUnderTest:
    """A gateway with the demo model on vLLM and on GGUF, and a look at vLLM's processes."""

    def __init__(self, gateway: GatewayUnderTest) -> None:
        self.gateway = gateway

    def state(self) -> str:
        """What the gateway says of vLLM."""
        return next(str(m["state"]) for m in self._models() if m["backend"] == "vllm")

    def failure(self) -> str:
        """Why it is failed, as the gateway says it."""
        return next(str(m.get("failure", "")) for m in self._models() if m["backend"] == "vllm")

    def _models(self) -> list[dict[str, object]]:
        models: list[dict[str, object]] = self.gateway.http.get("/readyz").json()["models"]
        return models

    def wait_ready(self) -> None:
        """Returns when vLLM answers; fails when it never will."""
        wait_for(lambda: self.state() == "ready" or self._gave_up() or self._ended(), START_SECONDS)
        assert self.state() == "ready", f"{self.failure()}\n{self.gateway.log.read_text()[-4000:]}"

    def _gave_up(self) -> bool:
        """Failed for good: between two starts, seconds lie in which it has failed as well."""
        return "failed" in self.state() and "engine demo/vllm could not be started" in self.gateway.log.read_text()

    def _ended(self) -> bool:
        return self.gateway.process.poll() is not None

    @property
    def guard(self) -> int:
        """The process that stands before vLLM's."""
        return next(pid for pid, words in children_of(self.gateway.process.pid).items() if _is_guard(words))

    @property
    def socket(self) -> Path:
        """Where vLLM listens."""
        words = children_of(self.gateway.process.pid)[self.guard]
        return Path(words[words.index(b"--uds") + 1].decode())

    def processes(self) -> dict[str, int]:
        """Every process of vLLM by what it is: guard, server, engine, worker (on one GPU the engine is its own)."""
        server = next(iter(children_of(self.guard)))
        engine = next(pid for pid, words in children_of(server).items() if b"EngineCore" in words[0])
        workers = [pid for pid, words in children_of(engine).items() if b"Worker" in words[0]]
        return {"guard": self.guard, "server": server, "engine": engine} | dict(zip(["worker"], workers, strict=False))

    def metrics(self) -> str:
        """vLLM's own, read past the gateway."""
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.socket)), timeout=30) as client:
            return client.get("http://vllm/metrics").text


def held_files(pids: Iterable[int]) -> set[Path]:
    """What these processes have mapped in /dev/shm, and the sockets that they have in the file system."""
    maps = [line for pid in pids for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    mapped = {line.split()[5] for line in maps if " /dev/shm/" in line}
    open_files = [link for pid in pids for file in Path(f"/proc/{pid}/fd").iterdir() for link in _link(file)]
    unix = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    sockets = {words[7] for words in unix if len(words) == 8 and f"socket:[{words[6]}]" in open_files}
    return {path for path in map(Path, mapped | sockets) if path.exists()}


def _link(file: Path) -> list[str]:
    """Where it points, if it is still there: a process that starts opens and closes files all the time."""
    with suppress(FileNotFoundError):
        return [os.readlink(file)]
    return []


def _is_guard(words: list[bytes]) -> bool:
    return any(word.endswith(b"/vllm/guard.py") for word in words)


@contextmanager
def running_vllm(folder: Path, config: str = BOTH) -> Iterator[VllmUnderTest]:
    """A gateway with `config`, once vLLM is ready in it."""
    ensure_installed()
    with running_gateway(folder, config) as gateway:
        under_test = VllmUnderTest(gateway)
        under_test.wait_ready()
        yield under_test
