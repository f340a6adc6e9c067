"""The engine's life: bad files, taken sockets, signals, a parent that dies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine import EngineUnderTest, answers, is_alive, listens, running_engine, wait_for


def start(model: Path | str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gateway.cli", "engine", str(model), "--uds", str(folder / "s"), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def corrupt(tiny_model: Path, folder: Path, *, cut: int | None = None, patch: dict[int, bytes] | None = None) -> Path:
    data = bytearray(tiny_model.read_bytes()[:cut])
    for offset, value in (patch or {}).items():
        data[offset : offset + len(value)] = value
    path = folder / "broken.gguf"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "No such file"),
        ("folder", "Is a directory"),
        ("text", "not a GGUF file"),
        ("empty", "not a GGUF file"),
        ("header-only", "its header goes on behind its end"),
        ("half", "it is cut short:"),
        ("version", "version 2147483647 is not known"),
        ("counts", "has 18,446,744,073,709,551,615 entries"),
        ("strings", "a name of 9,223,372,036,854,775,807 bytes"),
    ],
)
def test_a_file_that_is_no_model_is_named_with_the_cause(
    kind: str, words: str, tiny_model: Path, tmp_path: Path
) -> None:
    size = tiny_model.stat().st_size
    path = tmp_path / "x.gguf"
    match kind:
        case "folder":
            path.mkdir()
        case "text":
            path.write_text("hello, I am a text file\n")
        case "empty":
            path.write_bytes(b"")
        case "header-only":
            path = corrupt(tiny_model, tmp_path, cut=24)
        case "half":
            path = corrupt(tiny_model, tmp_path, cut=size // 2)
        case "version":
            path = corrupt(tiny_model, tmp_path, patch={4: b"\xff\xff\xff\x7f"})
        case "counts":
            path = corrupt(tiny_model, tmp_path, patch={8: b"\xff" * 8, 16: b"\xff" * 7 + b"\x0f"})
        case "strings":
            path = corrupt(tiny_model, tmp_path, patch={24: b"\xff" * 7 + b"\x7f"})
    ended = start(path, tmp_path)
    assert ended.returncode == 1, ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("upshift engine: error: ")
    assert words in last
    assert "Traceback" not in ended.stderr


def test_a_context_that_cannot_be_had_is_an_error(tiny_model: Path, tmp_path: Path) -> None:
    ended = start(tiny_model, tmp_path, "--context-tokens", str(2**31 - 256), "--parallel", "256")
    assert ended.returncode == 1
    assert "upshift engine: error:" in ended.stderr.strip().splitlines()[-1]


def test_a_taken_socket_is_an_error(engine: EngineUnderTest, tiny_model: Path) -> None:
    command = [sys.executable, "-m", "gateway.cli", "engine", str(tiny_model), "--uds", str(engine.socket)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "another process listens" in ended.stderr
    assert engine.client.get("/health").status_code == 200


def test_sigterm_ends_it_cleanly_and_removes_the_socket(tiny_model: Path, tmp_path: Path) -> None:
    with running_engine(tiny_model, tmp_path) as engine:
        assert engine.socket.stat().st_mode & 0o077 == 0, "only its owner may talk to it"
    assert not engine.socket.exists()


def test_it_ends_when_its_parent_is_gone(tiny_model: Path, tmp_path: Path) -> None:
    socket = tmp_path / "engine.sock"
    command = [sys.executable, "-m", "gateway.cli", "engine", str(tiny_model), "--uds", str(socket)]
    process = subprocess.Popen(
        [*command, "--exit-with-parent"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    engine = EngineUnderTest(process, socket)
    wait_for(lambda: answers(engine), seconds=60)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=5) == 0
    engine.client.close()
    assert not is_alive(process.pid)


def test_while_loading_it_answers_503_with_progress(tiny_model: Path, tmp_path: Path) -> None:
    socket = tmp_path / "engine.sock"
    command = [sys.executable, "-m", "gateway.cli", "engine", str(tiny_model), "--uds", str(socket)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, text=True)
    engine = EngineUnderTest(process, socket)
    statuses = set()

    def ready() -> bool:
        if not listens(socket):
            return False
        response = engine.client.get("/health")
        statuses.add((response.status_code, response.json()["status"]))
        return response.status_code == 200

    try:
        wait_for(ready)
        assert statuses <= {(503, "loading"), (200, "ok")}
    finally:
        engine.client.close()
        process.terminate()
        process.wait(timeout=20)
