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
import time
from pathlib import Path

import httpx

HOST = os.environ.get("UPSHIFT_HOST", "127.0.0.1")
PORT = os.environ.get("UPSHIFT_PORT", "8484")
URL = f"http://{HOST}:{PORT}"
START_SECONDS = 120
VLLM_START_SECONDS = 900


def main() -> int:
    question = sys.argv[1] if len(sys.argv) > 1 else "What is continuous batching?"
    with socket.socket() as probe:
        if probe.connect_ex((HOST, int(PORT))) == 0:
            say(f"{HOST}:{PORT} is taken. Stop what listens there, or choose: make run UPSHIFT_PORT=8486")
            return 1
    # Ctrl-C reaches the gateway as well, it is in our process group: it drains, and its exit code is ours.
    signal.signal(signal.SIGINT, lambda *_: None)
    upshift = Path(sys.executable).with_name("upshift")
    # Its access lines would run through the answer.
    gateway = subprocess.Popen([str(upshift), "serve"], stdout=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: gateway.terminate())
    try:
        if wait_ready(gateway):
            ask(question)
            if os.environ.get("UPSHIFT_PROFILE") == "prod" and wait_for_vllm(gateway):
                ask(question)
            show_how_to_go_on()
    except httpx.HTTPError as error:
        say(f"\nthe question failed: {error}")
        gateway.terminate()
        gateway.wait()
        return 1
    return gateway.wait()


def wait_ready(gateway: subprocess.Popen[bytes]) -> bool:
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


def wait_for_vllm(gateway: subprocess.Popen[bytes]) -> bool:
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
    say(f"\n> {question}\n")
    body = {"model": "demo", "stream": True, "temperature": 0, "messages": [{"role": "user", "content": question}]}
    with httpx.stream("POST", f"{URL}/v1/chat/completions", json=body, timeout=60) as response:
        if response.status_code != 200:
            response.read()
            raise httpx.HTTPStatusError(response.text, request=response.request, response=response)
        for line in response.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    sys.stdout.write(choice["delta"].get("content") or "")
                    sys.stdout.flush()
    say(f"\n\n(answered by {response.headers.get('x-upshift-backend')})\n")


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
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
