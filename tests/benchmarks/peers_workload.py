"""What is asked of every contestant: the workloads as data, and the bytes of a request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.peers import MODEL

PATH = "/v1/chat/completions"
EVENTS = 64
PACE_MS = 200
HELD_STREAMS = 1000
RATE = 200
# About 0.4 KB on the wire with its body.
_PROMPT = "Tell me something about the weather of tomorrow. " * 3


@dataclass(frozen=True, slots=True)
class Workload:
    """`load` are options of the load generator, `asks` is what the mock reads in the prompt; empty: one JSON answer.
    `alone`: gets a process that has done nothing else, for its memory is what is measured."""

    name: str
    title: str
    load: tuple[str, ...]
    asks: str = ""
    alone: bool = False


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("latency", f"Latency at {RATE} requests/s", ("--connections", "32", "--rate", str(RATE))),
        Workload("solo", "Latency of one client", ("--connections", "1")),
        Workload("json", "JSON answers of 0.6 KB, 64 connections", ("--connections", "64")),
        Workload(
            "burst",
            f"64 streams of {EVENTS} events, as fast as possible",
            ("--connections", "64", "--events", str(EVENTS)),
            f"events={EVENTS}",
        ),
        Workload(
            "hold",
            f"{HELD_STREAMS:,} streams of one event every {PACE_MS} ms",
            ("--connections", str(HELD_STREAMS), "--hold", str(PACE_MS)),
            "slow=1",
            alone=True,
        ),
    )
}


def body(workload: Workload | None = None) -> dict[str, Any]:
    """The JSON of a chat request; what the mock has to know is in the prompt, the one thing that every gateway passes
    on as it is."""
    asks = workload.asks if workload else ""
    return {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": f"{_PROMPT}{asks}"},
        ],
        "temperature": 0.7,
        "stream": bool(asks),
    }


def request_bytes(port: int, payload: Mapping[str, Any], headers: Mapping[str, str]) -> bytes:
    """A whole HTTP request as a client library would send it."""
    content = json.dumps(payload, separators=(",", ":")).encode()
    lines = [
        f"POST {PATH} HTTP/1.1",
        f"host: 127.0.0.1:{port}",
        "content-type: application/json",
        "accept: */*",
        "user-agent: bench",
        *(f"{name}: {value}" for name, value in {"authorization": "Bearer none", **headers}.items()),
        f"content-length: {len(content)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + content
