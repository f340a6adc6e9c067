"""One model behind two engines while the load steps up and down: what each policy makes of it.

    python -m tests.benchmarks.bench_crossover --rounds 3 --svg docs/crossover.svg
    python -m tests.benchmarks.bench_crossover --in-turns --rounds 8 --seconds 4

Our GGUF engine and vLLM (on the CPU where there is no GPU) serve the demo model's weights behind one gateway.
Closed-loop clients, 1 to 32 and back, each step as long as the others; the policy is changed by reloading the
configuration, so that every policy meets the same two engines. Two of the "policies" are rules that use one engine
alone. Takes about `rounds * policies * steps * seconds`, and a minute or three for vLLM's start.

A machine that others share is faster in one minute than in the next by more than policies differ. `--in-turns` does
without the staircase: at each number of clients the policies take turns every few seconds. Neighbours:
crossover_report.py, crossover_chart.py.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

from tests.benchmarks.bench_engine_load import Client, Exchange, read_answer, request_bytes
from tests.benchmarks.crossover_chart import chart
from tests.benchmarks.crossover_report import (
    ALONE,
    Pass,
    Step,
    median,
    median_step,
    noise,
    report,
    steady,
    summary,
    verdicts,
)
from tests.e2e.gateway import listening_url

STEPS = (1, 2, 4, 8, 16, 32, 16, 8, 4, 2, 1)
NEW_TOKENS = 48
START_SECONDS = 600.0
_WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state")

# Every way of choosing, as the `routing` of the configuration. On two cores vLLM overtakes between 8 and 16 clients;
# elsewhere the curves of both alone say where.
POLICIES: dict[str, dict[str, Any]] = {
    "gguf": {"rules": [{"when": {"model": "demo"}, "use": "gguf"}]},
    "vllm": {"rules": [{"when": {"model": "demo"}, "use": "vllm"}]},
    "graduate": {"policy": "graduate", "graduate": {"to_vllm_at": 12, "back_to_gguf_at": 8, "dwell_seconds": 1.0}},
    "fastest": {"policy": "fastest"},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=12.0, help="length of a step (default %(default)g)")
    parser.add_argument("--in-turns", action="store_true", help="compare the policies at each number of clients")
    parser.add_argument("--policies", default=",".join(POLICIES), help="default: %(default)s")
    parser.add_argument("--svg", type=Path, help="write a chart of the medians")
    parser.add_argument("--json", type=Path, help="write every measurement")
    options = parser.parse_args()
    policies = options.policies.split(",")
    if options.in_turns:
        if options.svg or options.json:
            parser.error("--svg and --json are of the staircase, not of --in-turns")
        found, apart = in_turns(policies, options.rounds, options.seconds)
        print(f"{report(found, settled=True)}\n")
        print("\n".join([*verdicts(found), *apart]))
        return 0
    passes: list[Pass] = []
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as (process, file, url, log):
        for number in range(options.rounds):
            for policy in random.Random(number).sample(policies, len(policies)):
                choose(policy, process, file, log)
                done = asyncio.run(one_pass(policy, url, options.seconds, chance))
                passes.append(done)
                say(f"round {number + 1}: {policy}: {done.tokens_per_second:,.0f} tokens/s, {done.moves} moves")
                if options.json:
                    options.json.write_text(json.dumps([asdict(each) for each in passes], indent=1))
    found = {policy: median([each for each in passes if each.policy == policy]) for policy in policies}
    print(report(found))
    print(f"\nWithout the first second of each step:\n\n{report(found, settled=True)}\n")
    print("\n".join(verdicts(found)))
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


async def one_pass(policy: str, url: str, seconds: float, chance: random.Random) -> Pass:
    """The whole staircase once."""
    # Answers are read when all have come: a pause between two steps would be a load of none.
    taken: list[tuple[int, list[Exchange], float, float]] = []
    for concurrency in STEPS:
        began = time.perf_counter()
        done = await closed_loop(url, concurrency, began + seconds, chance)
        taken.append((concurrency, done, began, time.perf_counter()))
    steps = [summary(concurrency, done, NEW_TOKENS, began, ended) for concurrency, done, began, ended in taken]
    exchanges = [exchange for _, done, _, _ in taken for exchange in done]
    exchanges.sort(key=lambda exchange: exchange.sent_at)
    backends = [exchange.backend for exchange in exchanges if exchange.backend]
    moves = sum(a != b for a, b in pairwise(backends))
    whole = summary(0, exchanges, NEW_TOKENS, exchanges[0].sent_at, max(each.ended_at for each in exchanges))
    return Pass(policy, tuple(steps), moves, whole.tokens_per_second, whole.ttft_p95)


def in_turns(policies: Sequence[str], rounds: int, seconds: float) -> tuple[dict[str, Pass], list[str]]:
    """Medians of so many windows of each policy at each number of clients, in turns, each after a second to settle. An
    engine alone has two windows in each round, and a line that says how far these were apart."""
    turns = [*policies, *(policy for policy in policies if policy in ALONE)]
    # By policy, for each number of clients, its windows.
    taken: dict[str, list[list[Step]]] = {policy: [] for policy in policies}
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as (process, file, url, log):
        for concurrency in sorted(set(STEPS)):
            for columns in taken.values():
                columns.append([])
            for number in range(rounds):
                for policy in random.Random(number).sample(turns, len(turns)):
                    choose(policy, process, file, log)
                    window, length = asyncio.run(one_window(url, concurrency, seconds, chance))
                    taken[policy][-1].append(steady(concurrency, window, NEW_TOKENS, length))
            for policy, columns in taken.items():
                say(f"{concurrency} clients: {policy}: {median_step(columns[-1]).tokens_per_second:,.0f} tokens/s")
    # Not all windows of a step in one: its p95 would be that of the minute in which others used the machine most.
    found = {policy: Pass(policy, tuple(map(median_step, columns)), 0, 0.0, 0.0) for policy, columns in taken.items()}
    return found, [noise(policy, taken[policy]) for policy in taken if policy in ALONE]


async def one_window(url: str, concurrency: int, seconds: float, chance: random.Random) -> tuple[list[Exchange], float]:
    """What `concurrency` clients were answered, and how long they asked."""
    await closed_loop(url, concurrency, time.perf_counter() + 1, chance)
    began = time.perf_counter()
    done = await closed_loop(url, concurrency, began + seconds, chance)
    return done, time.perf_counter() - began


async def closed_loop(url: str, clients: int, until: float, chance: random.Random) -> list[Exchange]:
    """`clients` clients that ask until the time is over, and what they were answered."""
    host, _, port = url.removeprefix("http://").partition(":")
    done: list[Exchange] = []

    async def ask() -> None:
        client = Client(host, int(port))
        try:
            while time.perf_counter() < until:
                exchange = await client.exchange(request_bytes("POST", "/v1/chat/completions", question(chance)))
                if exchange.status != 200:
                    raise SystemExit(f"a request failed: {read_answer(exchange, NEW_TOKENS).error}")
                done.append(exchange)
        finally:
            client.close()

    # Collecting garbage would hold up all clients at once.
    gc.disable()
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(ask())
    gc.enable()
    return done


def question(chance: random.Random) -> dict[str, Any]:
    """Nothing is to be had from a prefix cache: no draw comes twice."""
    return {
        "model": "demo",
        "messages": [{"role": "user", "content": " ".join(chance.choices(_WORDS, k=chance.randint(4, 24)))}],
        "max_tokens": NEW_TOKENS,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def say(text: str) -> None:
    print(f"crossover: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
