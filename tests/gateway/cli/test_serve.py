"""The whole program as users run it: processes, signals, exit codes, and no engine left behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.bind import bind

UPSHIFT = [sys.executable, "-m", "gateway.cli"]
QUESTION = {"model": "demo", "max_tokens": 8, "messages": [{"role": "user", "content": "Hello!"}]}


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [*UPSHIFT, "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([*UPSHIFT, *arguments], input=stdin, capture_output=True, text=True, timeout=60, check=False)


def logged(process: subprocess.Popen[str], pattern: str) -> str:
    """The first group of `pattern` in the log, as soon as it is there. After a minute the process is killed."""
    assert process.stderr is not None
    seen = ""
    alarm = threading.Timer(60, process.kill)
    alarm.start()
    try:
        for line in process.stderr:
            seen += line
            if found := re.search(pattern, line):
                return found[1]
    finally:
        alarm.cancel()
    pytest.fail(f"{pattern!r} was not logged:\n{seen}")


def engines_of(process: subprocess.Popen[str]) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def wait_for(pid: int) -> None:
    """Returns when a process that is not our child has ended."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            assert select.select([descriptor], [], [], 30)[0], f"process {pid} is still there"
        finally:
            os.close(descriptor)


def started(process: subprocess.Popen[str]) -> str:
    url = logged(process, r"listening on (http://127\.0\.0\.1:\d+)")
    logged(process, r"(demo is ready)")
    return url


def asking(url: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json={**QUESTION, **fields}, timeout=30)


@pytest.mark.engine
def test_one_command_serves_and_one_signal_ends_it() -> None:
    with serving() as process:
        url = started(process)
        answer = asking(url).json()
        assert answer["choices"][0]["message"]["content"]
        assert asking(url, stream=True).text.endswith("data: [DONE]\n\n")
        [engine] = engines_of(process)
        process.send_signal(signal.SIGTERM)
        written, _ = process.communicate(timeout=30)
        assert process.returncode == 0
        wait_for(engine)
        lines = [json.loads(line) for line in written.splitlines()]
        assert [line["status"] for line in lines if line["event"] == "request"] == [200, 200]


@pytest.mark.engine
def test_killed_gateway_leaves_no_engine() -> None:
    with serving() as process:
        started(process)
        [engine] = engines_of(process)
        process.kill()
        wait_for(engine)


def _ask_after(kill: Callable[[], None], url: str) -> str:
    """A long stream during which `kill` happens, as text."""
    received = ""
    body = {**QUESTION, "stream": True, "max_tokens": 400, "ignore_eos": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=30) as answer:
        for piece in answer.iter_text():
            if not received:
                kill()
            received += piece
    return received


@pytest.mark.engine
def test_killed_engine_ends_its_streams_with_an_error_and_comes_back() -> None:
    with serving() as process:
        url = started(process)
        [engine] = engines_of(process)
        received = _ask_after(lambda: os.kill(engine, signal.SIGKILL), url)
        if "[DONE]" not in received:  # a small model on a fast machine may have been quicker than the signal
            assert '"code": "backend_error"' in received
        logged(process, r"(demo is ready)")
        assert asking(url).status_code == 200


@pytest.mark.engine
@pytest.mark.parametrize("piped", [False, True], ids=["argument", "standard input"])
def test_run_answers_once(piped: bool) -> None:
    done = run("run", "demo", stdin="Hello!") if piped else run("run", "demo", "Hello!")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


@pytest.mark.engine
@pytest.mark.parametrize("command", ["run", "engine"])
def test_broken_model_is_one_line_and_an_exit_code(command: str, tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 64)
    arguments = ["run", str(file), "hi"] if command == "run" else ["engine", str(file), "--port", "0"]
    done = run(*arguments)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith("upshift: error: " if command == "run" else "upshift engine: error: ")
    assert "Traceback" not in done.stderr


def test_taken_port_is_one_line_and_nothing_is_started() -> None:
    with contextlib.closing(bind("127.0.0.1", 0)[0]) as taken:
        port = str(taken.getsockname()[1])
        done = run("serve", "--port", port)
    assert done.returncode == 1
    assert done.stderr.startswith(f"upshift: error: cannot listen on 127.0.0.1:{port}: ")
    assert done.stderr.count("\n") == 1
