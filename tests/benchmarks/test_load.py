"""The load generator has to notice every answer that is not as it should be, and the mock has to send what is."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from typing import Any

import pytest

from tests.backends.peer import CHUNKED, Script, answer, says, says_and_closes, serve
from tests.benchmarks.peers_run import Mock, build, measure
from tests.benchmarks.peers_workload import WORKLOADS, Workload, body, request_bytes

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")

GOOD = answer(b'{"content": "bench-answer"}', b"content-type: application/json")
EVENT, DONE = b'data: {"choices":[]}\n\n', b"data: [DONE]\n\n"


def stream(*events: bytes) -> bytes:
    return CHUNKED + b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events) + b"0\r\n\r\n"


async def load(script: Script, *options: str) -> dict[str, Any]:
    """What the generator reports of 0.1 s against a server that plays `script`."""
    async with serve(script, over="tcp") as peer:
        port = int(peer.address.rpartition(":")[2])
        with tempfile.NamedTemporaryFile() as file:
            file.write(request_bytes(port, body(), {}))
            file.flush()
            command = [str(build("load")), "--port", str(port), "--request", file.name, "--connections", "2"]
            process = await asyncio.create_subprocess_exec(
                *command, "--seconds", "0.1", *options, stdout=asyncio.subprocess.PIPE
            )
            output, _ = await process.communicate()
    start, end, report = output.decode().splitlines()
    assert (start, end, process.returncode) == ("start", "end", 0)
    found: dict[str, Any] = json.loads(report)
    return found


@pytest.mark.parametrize(
    ("script", "options"),
    [
        (says(GOOD), ()),
        (says_and_closes(GOOD.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)), ()),
        (says(stream(EVENT, EVENT, DONE)), ("--events", "2")),
        (says(stream(EVENT + EVENT[:3], EVENT[3:] + b": ping\n\n" + DONE)), ("--events", "2")),
        (says(*(bytes([byte]) for byte in stream(EVENT, EVENT, DONE))), ("--events", "2")),
        (says(*(bytes([byte]) for byte in GOOD)), ()),
    ],
    ids=["JSON", "JSON, closing", "stream", "cut anywhere", "stream, byte by byte", "JSON, byte by byte"],
)
async def test_good_answers_are_counted(script: Script, options: tuple[str, ...]) -> None:
    found = await load(script, *options)
    assert found["errors"] == {}
    assert found["requests"] > 0
    assert 0 < found["p50_us"] <= found["p99_us"]


@pytest.mark.parametrize(
    ("script", "options", "error"),
    [
        (says(answer(b"bench-answer", status=500)), (), "status 500"),
        (says(answer(b"something else")), (), "content"),
        (says_and_closes(GOOD[:-1]), (), "closed early"),
        (says_and_closes(), (), "closed early"),
        (says_and_closes(b"HTTP/1.1 200 OK\r\n\r\nbench-answer"), (), "framing"),
        (says(GOOD + b"x"), (), "framing"),
        (says(b"SMTP\r\n\r\n"), (), "framing"),
        (says(stream(EVENT, EVENT)), ("--events", "2"), "no [DONE]"),
        (says(stream(EVENT, DONE)), ("--events", "2"), "events"),
        (says(stream(EVENT, DONE, EVENT)), ("--events", "2"), "events"),
        (says_and_closes(stream(EVENT, EVENT, DONE)[:-5]), ("--events", "2"), "closed early"),
    ],
    ids=[
        "status",
        "other text",
        "cut short",
        "no answer",
        "no length",
        "too long",
        "no HTTP",
        "no end",
        "too few events",
        "event after the end",
        "no last chunk",
    ],
)
async def test_bad_answers_are_told_apart(script: Script, options: tuple[str, ...], error: str) -> None:
    found = await load(script, *options)
    assert set(found["errors"]) == {error}
    assert found["requests"] == 0


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_gets_what_it_asks_for_from_the_mock(name: str) -> None:
    known = WORKLOADS[name]
    options = tuple("20" if word == "1000" else word for word in known.load)
    options = tuple("20" if before == "--hold" else word for before, word in zip(("", *options), options, strict=False))
    workload = Workload(known.name, known.title, options, known.asks)
    with Mock("--batch", "8", "--pace-ms", "20") as mock:
        window = measure(workload, mock, port=mock.port, pids=mock.pids, headers={}, seconds=0.2, warmup_seconds=0.05)
    assert window.errors == {}
    assert window.events > 0 if known.asks else window.requests > 0
    assert window.held == (20 if name == "hold" else window.held)
    assert window.resident_bytes > 0
