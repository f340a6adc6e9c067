"""Two gateways, one Redis, one key, fifty clients in four processes: never a unit too much, hardly one too few,
whatever happens to Redis meanwhile."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from backends.base import Usage
from gateway.keys import hash_of, new_key
from tests.e2e.gateway import GatewayUnderTest, running_gateway
from tests.e2e.witness import Witness, witnessing
from tests.engine import wait_for
from tests.redis_server import running_redis

pytestmark = pytest.mark.waits

REQUESTS, TOKENS, CONCURRENT = 100, 10_000, 8
SECONDS = 14.0
# So long that what came first leaves the window, and as much comes again.
LONG_SECONDS = 72.0
# So slow that the limit is used up after six seconds, and trouble finds it half used.
SERVICE_SECONDS = 0.45
CLIENTS = (13, 13, 12, 12)
# What is killed must have on disk what it answered. On a busy machine that takes seconds at times, which is no calm.
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")

KEY = new_key()


class Trial:
    """One run's parts, and what came of it."""

    def __init__(
        self,
        folder: Path,
        stack: ExitStack,
        usage: Usage,
        on_error: str,
        service_seconds: float = 0.02,
        *redis: str,
    ) -> None:
        self.witness: Witness = stack.enter_context(witnessing(service_seconds, usage))
        self.first = stack.enter_context(running_redis(folder / "first", *redis))
        self.second = stack.enter_context(running_redis(folder / "second", *redis))
        self.second.command("REPLICAOF", "127.0.0.1", str(self.first.port))
        wait_for(lambda: self.first.command("WAIT", "1", "1000") >= 1)
        entry = f"{{name: a, hash: '{hash_of(KEY)}', surfaces: [openai, operators]}}"
        (folder / "keys.yaml").write_text(f"keys: [{entry}]")
        config = (
            f"auth: {{keys_file: {folder / 'keys.yaml'}}}\n"
            f"limits: {{on_redis_error: {on_error}, default: {{requests_per_minute: {REQUESTS}, "
            f"tokens_per_minute: {TOKENS}, concurrent: {CONCURRENT}}}}}\n"
            # A busy machine's turn can take longer than the 20 ms that are the default.
            f"redis: {{url: '{self.first.url},{self.second.url}', timeout_ms: 1000}}\n"
            f"models: [{{name: m, gguf: {{openai: 'http://127.0.0.1:{self.witness.port}'}}}}]\n"
        )
        self.gateways: list[GatewayUnderTest] = []
        for name in ("one", "other"):
            (folder / name).mkdir()
            self.gateways.append(stack.enter_context(running_gateway(folder / name, config)))
        self.ends: Counter[str] = Counter()

    def run(self, trouble: Callable[[Trial], None], after: int = REQUESTS // 3, *, seconds: float = SECONDS) -> None:
        """The clients for so long, and `trouble` in their midst, when `after` requests have been answered."""
        for gateway in self.gateways:
            wait_for(gateway.ready)
        ports = ",".join(gateway.url.rpartition(":")[2] for gateway in self.gateways)
        command = [sys.executable, "-m", "tests.e2e.limit_clients", ports, KEY]
        processes = [
            subprocess.Popen([*command, str(clients), str(seconds)], stdout=subprocess.PIPE, text=True)
            for clients in CLIENTS
        ]
        wait_for(lambda: len(self.witness.seen) >= after, 60)
        trouble(self)
        for process in processes:
            output, _ = process.communicate(timeout=120)
            assert process.returncode == 0
            self.ends.update(json.loads(output))

    @property
    def without_redis(self) -> float:
        """For how many requests the configured behaviour decided, as the gateways count them."""
        return sum(
            float(line.rpartition(" ")[2])
            for gateway in self.gateways
            for line in gateway.http.get("/metrics", headers={"x-api-key": KEY}).text.splitlines()
            if line.startswith("upshift_limits_without_redis_total")
        )


def fullest(seen: list[tuple[int, int]]) -> int:
    """How many requests the fullest of all windows of a minute holds.

    A request was admitted between when it was sent and when it was answered, so only those that lie in a window with
    both ends are surely inside.
    """
    return max(sum(start <= sent and ended <= start + 60e9 for sent, ended in seen) for start, _ in seen)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def calm(_: Trial) -> None:
    """Nothing happens."""


def restart(trial: Trial) -> None:
    """Killed and started again; what it answered is on disk."""
    trial.first.stop(signal.SIGKILL)
    wait_for(lambda: trial.without_redis > 0)
    trial.first.start()


def pause(trial: Trial) -> None:
    """Stopped for five seconds in the middle of whatever it does."""
    with trial.first.paused():
        wait_for(lambda: trial.without_redis > 0)
        resumed = time.monotonic() + 5
        wait_for(lambda: time.monotonic() >= resumed)


def fail_over(trial: Trial) -> None:
    """The replica is promoted, as Sentinel does it."""
    trial.first.stop(signal.SIGKILL)
    wait_for(lambda: trial.without_redis > 0)
    trial.second.command("REPLICAOF", "NO", "ONE")


@pytest.mark.parametrize(
    ("trouble", "took"),
    [(calm, 10), (calm, 105), (restart, 105), (pause, 10), (fail_over, 105)],
    ids=["requests", "tokens", "restart", "pause of 5 s", "failover"],
)
def test_no_limit_is_passed_by_one_unit_in_any_window(
    tmp_path: Path, stack: ExitStack, trouble: Callable[[Trial], None], took: int
) -> None:
    # A request of 10 tokens is held by the limit of requests, one of 105 by that of tokens; each reserves 109 (its body
    # of 73 bytes or more, and 90).
    usage, durable = Usage(took // 2, took - took // 2), () if trouble is calm else DURABLE
    trial = Trial(tmp_path, stack, usage, "closed", SERVICE_SECONDS, *durable)
    trial.run(trouble, seconds=LONG_SECONDS if trouble is calm else SECONDS)
    seen = trial.witness.seen
    assert set(trial.ends) <= {"200", "429 rate_limit_exceeded", "503 limits_unavailable"}
    assert trial.ends["200"] == len(seen)
    assert trial.witness.most <= CONCURRENT
    assert fullest(seen) <= REQUESTS
    assert fullest(seen) * took <= TOKENS
    assert trial.ends["503 limits_unavailable"] == trial.without_redis
    usable, most = min(REQUESTS, TOKENS // took), fullest(seen)
    print(f"{trouble.__name__}: {len(seen)}, {most} of {usable} in a minute, {trial.without_redis:.0f} without Redis")
    if trouble is calm:
        assert trial.without_redis == 0
        # Those of two minutes and a few more: as the first leave the window others come in.
        assert len(seen) >= 0.98 * usable * 2
    else:
        assert trial.without_redis > 0
        assert len(seen) >= 0.8 * usable


def test_every_place_is_used(tmp_path: Path, stack: ExitStack) -> None:
    # Eight at a time, two seconds each: neither the requests nor the tokens of a minute hold anybody up.
    service_seconds = 2.0
    trial = Trial(tmp_path, stack, Usage(5, 5), "closed", service_seconds)
    trial.run(calm, after=1)
    seen = trial.witness.seen
    assert set(trial.ends) == {"200", "429 rate_limit_exceeded"}
    assert trial.witness.most == CONCURRENT
    ended = sorted(end / 1e9 for _, end in seen)
    first, last = ended[0] - service_seconds, ended[-CONCURRENT]
    # Those that begin when others end, until the last eight, for which nobody waits any more.
    used = sum(min(end, last) - max(end - service_seconds, first) for end in ended if end - service_seconds < last)
    share = used / (CONCURRENT * (last - first))
    print(f"places: {share:.1%} of {CONCURRENT} for {last - first:.1f} s")
    assert share >= 0.98


@pytest.mark.parametrize("on_error", ["local", "open"])
def test_what_redis_does_not_count_is_what_was_configured(tmp_path: Path, stack: ExitStack, on_error: str) -> None:
    trial = Trial(tmp_path, stack, Usage(5, 5), on_error)
    trial.run(pause)
    seen = trial.witness.seen
    assert set(trial.ends) <= {"200", "429 rate_limit_exceeded"}
    assert trial.ends["200"] == len(seen)
    print(f"{on_error}: {len(seen)} where Redis admits {REQUESTS}, {trial.without_redis:.0f} without it")
    # The pause held nobody up.
    assert len(seen) > REQUESTS
    if on_error == "local":
        # Redis' window and one of each gateway.
        assert len(seen) <= 3 * REQUESTS
        assert trial.witness.most <= 3 * CONCURRENT
    else:
        assert len(seen) <= REQUESTS + trial.without_redis
