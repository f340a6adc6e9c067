"""The README, followed word by word by a newcomer."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.e2e.gateway import GatewayUnderTest, running_gateway
from tests.engine import PATIENCE_SECONDS, is_alive, wait_for
from tests.vllm import START_SECONDS

ROOT = Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
UPSHIFT = [sys.executable, "-m", "gateway.cli"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def block(kind: str, word: str) -> str:
    blocks: list[str] = re.findall(rf"```{kind}\n(.*?)```", README, flags=re.DOTALL)
    return next(block for block in blocks if word in block)


def answer_to(question: str, port: str) -> str:
    body = {"model": "demo", "temperature": 0, "messages": [{"role": "user", "content": question}]}
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, timeout=PATIENCE_SECONDS).json()
    return str(answer["choices"][0]["message"]["content"])


@pytest.mark.parametrize("profile", ["auto", pytest.param("prod", marks=pytest.mark.vllm)])
def test_make_run_answers_and_the_readmes_clients_work(tmp_path: Path, profile: str) -> None:
    backend = "vllm" if profile == "prod" else "gguf"
    port = str(free_port())
    output = tmp_path / "run.log"
    with output.open("w") as file:
        run = subprocess.Popen(
            ["make", "--no-print-directory", "run", f"PROFILE={profile}"],
            cwd=ROOT,
            env={**os.environ, "UPSHIFT_PORT": port},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for(lambda: "Ctrl-C stops it" in output.read_text() or run.poll() is not None, START_SECONDS)
        text = output.read_text()
        assert "> What is continuous batching?" in text
        shown = text.split("> What is continuous batching?")[-1].partition(f"(answered by {backend})")[0].strip()
        assert shown == answer_to("What is continuous batching?", port), "something else was written into the answer"
        curl = shlex.split(block("sh", "curl").replace("\\\n", " ").replace("8484", port))
        answer = subprocess.run(
            [*curl, "--silent", "--include"], capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS
        )
        assert '"finish_reason":"stop"' in answer.stdout.replace(" ", "")
        assert f"x-upshift-backend: {backend}\n" in answer.stdout
        snippet = block("python", "OpenAI").replace("8484", port)
        answered = subprocess.run(
            [sys.executable, "-c", snippet], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True
        )
        assert "Ollama" in answered.stdout
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGINT)
        run.wait(timeout=PATIENCE_SECONDS)
    wait_for(lambda: not is_alive(run.pid))
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(port))) != 0, "something still listens"


def test_run_answers_one_question(tmp_path: Path) -> None:
    ended = subprocess.run(
        [*UPSHIFT, "run", "demo", "--temperature", "0", "What is 2 plus 3?"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    assert "5" in ended.stdout


def test_the_example_configuration_serves(tmp_path: Path) -> None:
    config = (ROOT / "config" / "example.yaml").read_text(encoding="utf-8")
    with running_gateway(tmp_path, config) as gateway:
        # Its vLLM servers are somebody else's, and it says that they are not there.
        wait_for(lambda: {"demo": "ready", "llama3-70b": "failed"}.items() <= states(gateway).items())


def states(gateway: GatewayUnderTest) -> dict[str, str]:
    return {model["model"]: model["state"] for model in gateway.http.get("/readyz").json()["models"]}


def test_serve_with_a_named_model(tmp_path: Path, tiny_model: Path) -> None:
    command = [*UPSHIFT, "serve", "--model", f"llama={tiny_model}", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        seen = next(line for line in process.stderr if "model llama is ready" in line)
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE_SECONDS)
    assert seen
    assert process.returncode == 0
