"""`make run`: serves the demo model, asks it one question, shows the answer as it is written, and goes on serving.

    python deploy/first_light.py ["a question"]

With UPSHIFT_PROFILE=prod it asks again once vLLM has started; until then the GGUF engine answers.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TextIO

import httpx

HOST = os.environ.get("UPSHIFT_HOST", "127.0.0.1")
PORT = os.environ.get("UPSHIFT_PORT", "8484")
URL = f"http://{HOST}:{PORT}"
START_SECONDS = 120
VLLM_START_SECONDS = 900
LAST_LINES_SECONDS = 5

# Held by whoever writes to the terminal: what the gateway has to say must not run through an answer.
terminal = threading.Lock()


def main() -> int:
    question = sys.argv[1] if len(sys.argv) > 1 else "What is continuous batching?"
    with socket.socket() as probe:
        if probe.connect_ex((HOST, int(PORT))) == 0:
            say(f"{HOST}:{PORT} is taken. Stop what listens there, or choose: make run UPSHIFT_PORT=8486")
            return 1
    # Ctrl-C reaches the gateway as well, it is in our process group: it drains, and its exit code is ours.
    signal.signal(signal.SIGINT, lambda *_: None)
    upshift = Path(sys.executable).with_name("upshift")
    environment = dict(os.environ)
    if sys.stderr.isatty():
        environment.setdefault("UPSHIFT_LOG_FORMAT", "pretty")
    # Nobody wants an access line for each question here.
    gateway = subprocess.Popen(
        [str(upshift), "serve"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    )
    signal.signal(signal.SIGTERM, lambda *_: gateway.terminate())
    assert gateway.stderr is not None  # noqa: S101 - it is a pipe
    lines = threading.Thread(target=pass_on, args=(gateway.stderr,), daemon=True)
    lines.start()
    failed = False
    try:
        if wait_ready(gateway):
            ask(question)
            if os.environ.get("UPSHIFT_PROFILE") == "prod" and wait_for_vllm(gateway):
                ask(question)
            show_how_to_go_on()
    except httpx.HTTPError as error:
        say(f"\nthe question failed: {error}")
        failed = True
        gateway.terminate()
    code = gateway.wait()
    lines.join(LAST_LINES_SECONDS)
    return 1 if failed else code


def pass_on(lines: TextIO) -> None:
    """Shows each line, when nothing else is being written."""
    for line in lines:
        with terminal:
            sys.stderr.write(line)
            sys.stderr.flush()


def wait_ready(gateway: subprocess.Popen[str]) -> bool:
    """Whether the gateway became ready; False when it ended, which it explained itself."""
    deadline = time.monotonic() + START_SECONDS
    while gateway.poll() is None:
        try:
            if httpx.get(f"{URL}/readyz", timeout=2).status_code == 200:
                return True
        except httpx.TransportError:
            pass
        if time.monotonic() > deadline:
            say(f"not ready after {START_SECONDS} s; see {URL}/readyz")
            return False
        time.sleep(0.05)
    return False


def wait_for_vllm(gateway: subprocess.Popen[str]) -> bool:
    """Whether vLLM became ready; False when it failed, which the gateway has explained. Says now and then how far it
    is."""
    deadline = time.monotonic() + VLLM_START_SECONDS
    said = 0.0
    while gateway.poll() is None and time.monotonic() < deadline:
        vllm = next(m for m in httpx.get(f"{URL}/readyz", timeout=10).json()["models"] if m["backend"] == "vllm")
        if vllm["state"] == "ready":
            return True
        if vllm["state"] == "failed":
            say(f"vLLM did not start: {vllm.get('failure', '')}. The GGUF engine goes on answering.")
            return False
        if time.monotonic() - said > 10:
            said = time.monotonic()
            say(f"vLLM is starting, {vllm.get('progress', 0):.0%}; the GGUF engine answers meanwhile")
        time.sleep(0.2)
    return False


def ask(question: str) -> None:
    body = {"model": "demo", "stream": True, "temperature": 0, "messages": [{"role": "user", "content": question}]}
    with terminal, httpx.stream("POST", f"{URL}/v1/chat/completions", json=body, timeout=60) as response:
        print(f"\n> {question}\n", flush=True)
        if response.status_code != 200:
            response.read()
            raise httpx.HTTPStatusError(response.text, request=response.request, response=response)
        for line in response.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    sys.stdout.write(choice["delta"].get("content") or "")
                    sys.stdout.flush()
        print(f"\n\n(answered by {response.headers.get('x-upshift-backend')})\n", flush=True)


def show_how_to_go_on() -> None:
    say(f"""Now you:

  curl {URL}/v1/chat/completions -H 'content-type: application/json' \\
    -d '{{"model": "demo", "temperature": 0, "messages": [{{"role": "user", "content": "What is TTFT?"}}]}}'

  # pip install openai
  from openai import OpenAI
  client = OpenAI(base_url="{URL}/v1", api_key="none")
  print(client.chat.completions.create(
      model="demo", temperature=0, messages=[{{"role": "user", "content": "What is a KV cache?"}}]
  ).choices[0].message.content)

A model of your own: .venv/bin/upshift serve --model path/to/model.gguf
Ctrl-C stops it.""")


def say(text: str) -> None:
    with terminal:
        print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
