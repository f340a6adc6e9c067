"""What each step of the hot path costs, as multiples of a baseline loop in the same run, against its budget.

Run as `python -m tests.benchmarks.bench_hot_path`; takes about ten seconds and exits 1 when a step is over its budget.
Nothing here touches a socket: connections write to a transport that counts, and the backend answers from memory.
Budgets are in units of the baseline, so that they hold on machines of any speed; docs/performance.md tells them in µs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import httptools
import uvicorn
import uvloop
from uvicorn.server import ServerState

from backends.base import Operation
from backends.load import EngineLoad
from backends.sse import UsageSniffer
from config.routing import RoutingSettings
from config.schema import GgufSettings, ModelSettings, Settings
from gateway.app import create_app
from gateway.dataplane import RequestIds
from gateway.events import WholeEvents
from gateway.intake import check_headers, decode
from gateway.listener import connection_class
from gateway.log import AccessLog
from gateway.metrics import Metrics
from gateway.middleware import HostGuard
from gateway.record import Journal, Record
from routing.lane import Lane
from routing.policy import decide, plan_for
from routing.ticket import Ticket
from routing.upstream import Upstream, UpstreamPool
from tests.benchmarks.bench_gateway import ANSWER, EVENTS, MESSAGES, InstantBackend
from tests.benchmarks.bench_limits import Gate
from tests.gateway.running import all_served

BODY = json.dumps({"model": "instant", "messages": MESSAGES, "max_tokens": 64}).encode()
STREAMED = json.dumps({"model": "instant", "messages": MESSAGES, "stream": True}).encode()
FIELDS = {
    "host": "127.0.0.1:8484",
    "content-type": "application/json",
    "accept": "*/*",
    "accept-encoding": "gzip, deflate",
    "user-agent": "OpenAI/Python 2.0",
    "authorization": "Bearer none",
}
HEADERS = [(name.encode(), value.encode()) for name, value in FIELDS.items()]
BASELINE_TURNS = 100

# Steps and their budgets in units of the baseline.
BUDGETS = {
    "parse the request": 3.0,
    "request id and headers": 1.0,
    "Host guard": 0.5,
    "envelope": 4.0,
    "metrics and access line": 4.0,
    "the edge: Host, key, limits, metrics, log": 12.0,
    "answer: usage": 2.5,
    "event: whole, usage": 0.6,
    "decision, 16 upstreams: graduate": 6.0,
    "decision, 16 upstreams: fastest": 6.0,
    "decision, 16 upstreams: affinity": 6.5,
    "whole call": 20.0,
    "whole stream of 64 events": 90.0,
}


def baseline() -> None:
    """One unit: a hundred turns of a loop that adds."""
    total = 0
    for number in range(BASELINE_TURNS):
        total += number


def request(body: bytes) -> bytes:
    """The bytes of one POST."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in FIELDS.items())
    head = f"POST /v1/chat/completions HTTP/1.1\r\n{lines}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Ears:
    """The least that a protocol does with a request."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []

    def on_message_begin(self) -> None:
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))


class CountingTransport:
    """Takes what a connection writes and keeps nothing of it."""

    def write(self, data: bytes) -> None:
        """Dropped."""

    def is_closing(self) -> bool:
        """Never."""
        return False

    def get_extra_info(self, _: str, default: Any = None) -> Any:
        """Knows nothing."""
        return default

    def pause_reading(self) -> None:
        """Nothing comes by itself."""

    def resume_reading(self) -> None:
        """Nothing comes by itself."""

    def close(self) -> None:
        """There is nothing to close."""


def steps() -> dict[str, Callable[[], object]]:
    """Every step as a function of no arguments."""
    parser, sent = httptools.HttpRequestParser(Ears()), request(BODY)
    ids, guard = RequestIds(), HostGuard("127.0.0.1", ())
    journal = Journal(Metrics(), AccessLog(lambda _: None))

    def names() -> None:
        headers = dict(HEADERS)
        ids.choose(headers.get(b"x-request-id"))
        check_headers(headers, 1 << 20)

    def settle() -> None:
        record = Record(Operation.CHAT, "req-0123456789abcdef-1", time.perf_counter())
        record.key, record.model, record.backend, record.reason = "alice", "instant", "instant", "only"
        record.status, record.first_byte, record.bytes_in, record.bytes_out = 200, record.started, 400, 600
        record.ended = record.started
        journal.write_down(record)

    edge = Gate(workers=1)

    def whole_edge() -> None:
        guard.check(HEADERS, "1.1")
        edge.whole()
        settle()

    def event() -> None:
        sniffer, whole = UsageSniffer(), WholeEvents()
        for chunk in EVENTS[:16]:
            sniffer.feed(chunk)
            whole.feed(chunk)

    def decision(**routing: Any) -> Callable[[], object]:
        backends = [InstantBackend() for _ in range(16)]
        for number, backend in enumerate(backends):
            backend.name = "vllm" if number else "gguf"
        pool = UpstreamPool("m", tuple(map(Upstream, backends)))
        lane = Lane(pool, plan_for("m", RoutingSettings(**routing)))
        for number, upstream in enumerate(pool.upstreams):
            upstream.in_flight = number
            upstream.pace = upstream.pace.with_answer(time.perf_counter(), 2.0, 0.1, 20)
            # Every second one as where engines tell their load.
            upstream.load = EngineLoad(number, 1, None, 0.0) if number % 2 else None
        asked = decode(BODY, Operation.CHAT, "req-1")
        ticket = Ticket("key")
        return lambda: decide(lane.plan, lane.signals(), lane.ask(asked, ticket))

    return {
        "decision, 16 upstreams: graduate": decision(),
        "decision, 16 upstreams: fastest": decision(policy="fastest"),
        "decision, 16 upstreams: affinity": decision(policy="vllm_first", replicas="prefix_affinity"),
        "parse the request": lambda: parser.feed_data(sent),
        "request id and headers": names,
        "Host guard": lambda: guard.check(HEADERS, "1.1"),
        "envelope": lambda: decode(BODY, Operation.CHAT, "req-1"),
        "metrics and access line": settle,
        "the edge: Host, key, limits, metrics, log": whole_edge,
        "answer: usage": lambda: UsageSniffer().feed(ANSWER),
        "event: whole, usage": event,
    }


def units(step: Callable[[], object], turns: int = 400, divided_by: int = 1) -> float:
    """How many baselines one turn of the step takes: the median of many alternating samples."""
    return statistics.median(seconds(step, turns) / seconds(baseline, turns) for _ in range(15)) / divided_by


def seconds(step: Callable[[], object], turns: int) -> float:
    """CPU seconds of `turns` turns: others on the machine take time from a process, not work."""
    began = time.process_time()
    for _ in range(turns):
        step()
    return time.process_time() - began


async def whole(body: bytes, connections: int = 16, turns: int = 40) -> float:
    """How many baselines a call takes from its bytes to its answer's, everything between included."""
    model = ModelSettings(name="instant", gguf=GgufSettings(source="demo"))
    log = AccessLog(lambda _: None)
    app = create_app(Settings(models=(model,)), make_backends=lambda _: [InstantBackend()], access_log=log)
    http = connection_class(app, connections)
    config = uvicorn.Config(app, log_config=None, access_log=False, ws="none", http=http)
    config.load()
    state = ServerState()
    made = [http(config=config, server_state=state, app_state={}) for _ in range(connections)]
    for connection in made:
        connection.connection_made(CountingTransport())  # type: ignore[arg-type]
    sent = request(body)

    async def once() -> None:
        for connection in made:
            connection.data_received(sent)
        await all_served(state)

    ratios = []
    for _ in range(15):
        began = time.process_time()
        for _ in range(turns):
            await once()
        took = time.process_time() - began
        ratios.append(took / seconds(baseline, turns * connections))
    for connection in made:
        connection.connection_lost(None)
    return statistics.median(ratios)


async def measure() -> dict[str, float]:
    """Every figure in units. Inside a loop, because the access log keeps a timer there."""
    found = {name: units(step, divided_by=16 if name.startswith("event") else 1) for name, step in steps().items()}
    found["whole call"] = await whole(BODY)
    found["whole stream of 64 events"] = await whole(STREAMED)
    return found


def main() -> None:
    """Prints a line per step; exits 1 when one is over its budget."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    figures = uvloop.run(measure())
    unit_us = statistics.median(seconds(baseline, 400) for _ in range(15)) / 400 * 1e6
    print(f"baseline: {unit_us:.2f} µs\n{'step':<42}{'units':>8}{'budget':>8}{'µs here':>10}")
    for name, figure in figures.items():
        over = "  over its budget" if figure > BUDGETS[name] else ""
        print(f"{name:<42}{figure:>8.2f}{BUDGETS[name]:>8.1f}{figure * unit_us:>10.2f}{over}")
    sys.exit(any(figure > BUDGETS[name] for name, figure in figures.items()))


if __name__ == "__main__":
    main()
