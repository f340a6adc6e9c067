"""One model behind two engines while the load steps up and down: what each policy makes of it.

    python -m tests.benchmarks.bench_crossover --rounds 3 --svg docs/crossover.svg

Our GGUF engine and vLLM (on the CPU where there is no GPU) serve the demo model's weights behind one gateway.
Closed-loop clients, 1 to 32 and back, each step as long as the others; the policy is changed by reloading the
configuration, so that every policy meets the same two engines. Two of the "policies" are rules that use one engine
alone. Takes about `rounds * policies * steps * seconds`, and a minute or three for vLLM's start. Neighbour:
crossover_chart.py.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

from tests.benchmarks.bench_engine_load import Client, Exchange, read_answer, request_bytes
from tests.benchmarks.crossover_chart import chart
from tests.e2e.gateway import listening_url

STEPS = (1, 2, 4, 8, 16, 32, 16, 8, 4, 2, 1)
NEW_TOKENS = 48
ALONE = ("gguf", "vllm")
START_SECONDS = 600.0
_WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state")

# Every way of choosing, as the `routing` of the configuration. On two cores vLLM overtakes between 16 and 32 clients;
# elsewhere the curves of both alone say where.
POLICIES: dict[str, dict[str, Any]] = {
    "gguf": {"rules": [{"when": {"model": "demo"}, "use": "gguf"}]},
    "vllm": {"rules": [{"when": {"model": "demo"}, "use": "vllm"}]},
    "graduate": {"policy": "graduate", "graduate": {"to_vllm_at": 24, "back_to_gguf_at": 12, "dwell_seconds": 2.0}},
    "fastest": {"policy": "fastest"},
}


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of one policy gave. `ttft_p95` in seconds, `vllm_share` of its requests; `failed` count for nothing
    else."""

    concurrency: int
    requests: int
    tokens_per_second: float
    ttft_p95: float
    vllm_share: float
    failed: int


@dataclass(frozen=True, slots=True)
class Pass:
    """All steps under one policy. `moves` is how often the backend changed from one request to the next."""

    policy: str
    steps: tuple[Step, ...]
    moves: int
    tokens_per_second: float
    ttft_p95: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="length of a step (default %(default)g)")
    parser.add_argument("--policies", default=",".join(POLICIES), help="default: %(default)s")
    parser.add_argument("--svg", type=Path, help="write a chart of the medians")
    parser.add_argument("--json", type=Path, help="write every measurement")
    options = parser.parse_args()
    policies = options.policies.split(",")
    passes: list[Pass] = []
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as (process, file, url, log):
        for number in range(options.rounds):
            for policy in random.Random(number).sample(policies, len(policies)):
                choose(policy, process, file, log)
                done = asyncio.run(one_pass(policy, url, options.seconds, number))
                passes.append(done)
                say(f"round {number + 1}: {policy}: {done.tokens_per_second:,.0f} tokens/s, {done.moves} moves")
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in passes], indent=1))
    found = {policy: median([each for each in passes if each.policy == policy]) for policy in policies}
    print(report(found))
    if options.svg:
        options.svg.write_text(chart(STEPS, {name: each.steps for name, each in found.items()}))
    return 0


@contextmanager
def serving(folder: Path) -> Iterator[tuple[subprocess.Popen[str], Path, str, Path]]:
    """A gateway with both engines ready: its process, its configuration, its URL and its log."""
    file, log = folder / "upshift.yaml", folder / "gateway.log"
    file.write_text(configuration("gguf"))
    with log.open("w") as errors, (folder / "access.log").open("w") as lines:
        command = [sys.executable, "-m", "gateway.cli", "serve", "--config", str(file), "--port", "0"]
        process = subprocess.Popen(command, stdout=lines, stderr=errors, text=True)
    try:
        url = listening_url(process, log)
        say("waiting for both engines")
        began = time.monotonic()
        while {state(url, kind) for kind in ALONE} != {"ready"}:
            if time.monotonic() - began > START_SECONDS or process.poll() is not None:
                raise SystemExit(f"the engines are not ready\n{log.read_text()}")
            time.sleep(0.5)
        yield process, file, url, log
    finally:
        process.terminate()
        process.wait(60)


def state(url: str, kind: str) -> str:
    models = httpx.get(f"{url}/readyz", timeout=30).json()["models"]
    return next((str(model["state"]) for model in models if model["backend"] == kind), "missing")


def configuration(policy: str) -> str:
    vllm = {"source": "demo", "max_sequences": 32, "kv_cache_bytes": 1 << 30, "args": {"max-num-batched-tokens": 2048}}
    model = {
        "name": "demo",
        "context_tokens": 512,
        "gguf": {"source": "demo", "parallel": 32, "threads": 1},
        "vllm": vllm,
    }
    return json.dumps({"profile": "prod", "models": [model], "routing": POLICIES[policy]})


def choose(policy: str, process: subprocess.Popen[str], file: Path, log: Path) -> None:
    """Returns when the gateway routes by `policy`."""
    before = log.read_text().count("the configuration was reloaded")
    file.write_text(configuration(policy))
    process.send_signal(signal.SIGHUP)
    while log.read_text().count("the configuration was reloaded") == before:
        time.sleep(0.05)


async def one_pass(policy: str, url: str, seconds: float, seed: int) -> Pass:
    """The whole staircase once."""
    host, _, port = url.removeprefix("http://").partition(":")
    exchanges: list[Exchange] = []
    steps: list[Step] = []
    chance = random.Random(seed)
    for concurrency in STEPS:
        began = time.perf_counter()
        done = await closed_loop((host, int(port)), concurrency, began + seconds, chance)
        steps.append(summary(concurrency, done, time.perf_counter() - began))
        exchanges += done
    exchanges.sort(key=lambda exchange: exchange.sent_at)
    backends = [exchange.backend for exchange in exchanges if exchange.backend]
    moves = sum(a != b for a, b in pairwise(backends))
    whole = summary(0, exchanges, exchanges[-1].ended_at - exchanges[0].sent_at)
    return Pass(policy, tuple(steps), moves, whole.tokens_per_second, whole.ttft_p95)


async def closed_loop(address: tuple[str, int], clients: int, until: float, chance: random.Random) -> list[Exchange]:
    """`clients` clients that ask until the time is over, and what they were answered."""
    done: list[Exchange] = []

    async def ask() -> None:
        client = Client(*address)
        try:
            while time.perf_counter() < until:
                exchange = await client.exchange(request_bytes("POST", "/v1/chat/completions", question(chance)))
                if exchange.status != 200:
                    raise SystemExit(f"a request failed: {read_answer(exchange, NEW_TOKENS).error}")
                done.append(exchange)
        finally:
            client.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(ask())
    return done


def question(chance: random.Random) -> dict[str, Any]:
    """Nothing is to be had from a prefix cache: the first word is drawn."""
    return {
        "model": "demo",
        "messages": [{"role": "user", "content": " ".join(chance.choices(_WORDS, k=chance.randint(4, 24)))}],
        "max_tokens": NEW_TOKENS,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def summary(concurrency: int, done: Sequence[Exchange], seconds: float) -> Step:
    answers = [read_answer(exchange, NEW_TOKENS) for exchange in done]
    good = [answer for answer in answers if not answer.error]
    backends = [exchange.backend for exchange in done]
    ttft = sorted(answer.ttft_seconds for answer in good) or [0.0]
    return Step(
        concurrency,
        len(good),
        sum(answer.completion_tokens for answer in good) / seconds,
        ttft[min(int(len(ttft) * 0.95), len(ttft) - 1)],
        backends.count("vllm") / max(len(backends), 1),
        len(answers) - len(good),
    )


def median(passes: Sequence[Pass]) -> Pass:
    """Figure by figure."""
    steps = []
    for index, concurrency in enumerate(STEPS):
        column = [each.steps[index] for each in passes]
        steps.append(
            Step(
                concurrency,
                int(statistics.median(step.requests for step in column)),
                statistics.median(step.tokens_per_second for step in column),
                statistics.median(step.ttft_p95 for step in column),
                statistics.median(step.vllm_share for step in column),
                sum(step.failed for step in column),
            )
        )
    tokens = statistics.median(each.tokens_per_second for each in passes)
    ttft = statistics.median(each.ttft_p95 for each in passes)
    return Pass(passes[0].policy, tuple(steps), max(each.moves for each in passes), tokens, ttft)


def report(found: Mapping[str, Pass]) -> str:
    """A table: a row for each step, and the whole."""
    names = list(found)
    head = ["clients", *(f"{name}: tokens/s, p95 TTFT ms (vLLM %)" for name in names)]
    rows = [head, ["---"] * len(head)]
    for index, concurrency in enumerate(STEPS):
        steps = [found[name].steps[index] for name in names]
        rows.append([str(concurrency), *(_cell(step) for step in steps)])
    rows.append(["all", *(f"{found[n].tokens_per_second:,.0f}, {found[n].ttft_p95 * 1000:,.0f}" for n in names)])
    rows.append(["most moves", *(str(found[name].moves) for name in names)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cell(step: Step) -> str:
    failed = f", {step.failed} failed" if step.failed else ""
    return f"{step.tokens_per_second:,.0f}, {step.ttft_p95 * 1000:,.0f} ({step.vllm_share:.0%}{failed})"


def say(text: str) -> None:
    print(f"crossover: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
