"""Our engine beside llama-server and llama_cpp.server: same machine, same run, same threads, same prompts.

    python -m tests.benchmarks.bench_engine [--quick] [--model demo|0.5b|both|FILE.gguf] [--rounds N] [--json FILE]

What is measured and how to read it: docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from tests.benchmarks.bench_engine_load import run_load
from tests.benchmarks.bench_engine_peers import HOST, PEERS, Peer, Server
from tests.benchmarks.bench_engine_report import Cell, Start, as_json, cell, profile, table
from tests.benchmarks.bench_engine_workload import Workload, workloads

_WARM_UP_REQUESTS = 4
_WARM_UP_TOKENS = 4


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    unknown = [name for name in options.peers.split(",") if name not in PEERS]
    if unknown:
        sys.exit(f"bench-engine: no engine {unknown[0]!r}; there are {', '.join(PEERS)}")
    peers = [PEERS[name] for name in options.peers.split(",")]
    rounds = options.rounds or (1 if options.quick else 3)
    all_cores = os.sched_getaffinity(0)
    engine_cores = _engine_cores(all_cores, options.threads, confined=options.confine)
    started = time.monotonic()
    errors = 0
    collected: dict[str, Any] = {"threads": options.threads, "rounds": rounds, "cores": len(all_cores), "models": {}}
    for workload in workloads(options.model, quick=options.quick):
        asks = {peer.name: peer.asks(workload.path) for peer in peers}
        for peer in peers:
            peer.command(workload.path, 0, options.threads)  # builds what is missing, before anything is measured
        os.sched_setaffinity(0, {max(all_cores)})
        bench = _Bench(workload, asks, threads=options.threads, cores=engine_cores)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(bench.run(peers, rounds))
        os.sched_setaffinity(0, all_cores)
        print("\n" + table(workload, bench.cells, bench.starts, threads=options.threads, rounds=rounds))
        if options.profile:
            print("\n" + profile(bench.cells))
        collected["models"][workload.name] = as_json(bench.cells, bench.starts)
        errors += sum(len(c.errors) for c in bench.cells)
    print(f"\n{time.monotonic() - started:.0f} s in all", flush=True)
    if options.json:
        options.json.write_text(json.dumps(collected, indent=1) + "\n")
    return 1 if errors else 0


class _Bench:
    """All rounds of one model. One server runs at a time, so that no idle one takes anything from the measured one."""

    def __init__(
        self, workload: Workload, asks: dict[str, dict[str, Any]], *, threads: int, cores: frozenset[int]
    ) -> None:
        self.cells: list[Cell] = []
        self.starts: list[Start] = []
        self._workload = workload
        self._asks = asks
        self._threads = threads
        self._cores = cores

    async def run(self, peers: Sequence[Peer], rounds: int) -> None:
        for round_number in range(rounds):
            # Nobody is always first: turbo clocks and page caches favour somebody.
            shift = round_number % len(peers)
            for peer in [*peers[shift:], *peers[:shift]]:
                if not (peer.serial and round_number >= self._workload.serial_rounds):
                    await self._measure(peer, round_number)

    async def _measure(self, peer: Peer, round_number: int) -> None:
        async with Server(peer, self._workload.path, threads=self._threads, cores=self._cores) as server:
            await self._warm_up(server)
            for concurrency in self._workload.requests:
                result = await self._measure_load(server, concurrency, round_number)
                self.cells.append(result)
                print(
                    f"{self._workload.name} round {round_number + 1}: {peer.name}, {concurrency} streams: "
                    f"{result.tokens_per_second:.0f} tokens/s, TTFT {result.ttft_p50_ms:.0f} ms"
                    + (f", {len(result.errors)} ERRORS" if result.errors else ""),
                    file=sys.stderr,
                    flush=True,
                )
            self.starts.append(Start(peer.name, server.start_seconds, server.resident_bytes()))

    async def _measure_load(self, server: Server, concurrency: int, round_number: int) -> Cell:
        prompts = self._workload.prompts(concurrency, round_number)
        bodies = [self._body(server.peer, prompt, self._workload.new_tokens) for prompt in prompts]
        counters, cpu_seconds = await server.counters(), server.cpu_seconds()
        load = await run_load(HOST, server.port, bodies, concurrency, new_tokens=self._workload.new_tokens)
        cpu_seconds = server.cpu_seconds() - cpu_seconds
        spent = {key: value - counters[key] for key, value in (await server.counters()).items()}
        return cell(server.peer.name, concurrency, round_number, load, cpu_seconds=cpu_seconds, counters=spent)

    async def _warm_up(self, server: Server) -> None:
        bodies = [self._body(server.peer, f"{i} warm up", _WARM_UP_TOKENS) for i in range(_WARM_UP_REQUESTS)]
        load = await run_load(HOST, server.port, bodies, _WARM_UP_REQUESTS, new_tokens=_WARM_UP_TOKENS)
        error = next((answer.error for answer in load.answers if answer.error), None)
        if error:
            sys.exit(f"bench-engine: {server.peer.name}: {error}\n{server.last_words()}")

    def _body(self, peer: Peer, prompt: str, new_tokens: int) -> dict[str, Any]:
        return {
            "model": "bench",
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": new_tokens,
            "temperature": 0,
            "stream": True,
            **self._asks[peer.name],
        }


def _engine_cores(all_cores: set[int], threads: int, *, confined: bool) -> frozenset[int]:
    """All cores, or exactly as many as there are compute threads, so that an engine's HTTP work comes out of them."""
    return frozenset(sorted(all_cores)[:threads]) if confined else frozenset(all_cores)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench-engine", description="Compares GGUF engines; see docs/benchmarks.md.")
    parser.add_argument("--model", default="both", help="demo, 0.5b, both or a GGUF file (default both)")
    parser.add_argument("--peers", default="ours,llama-server,llama_cpp.server", help=f"of {','.join(PEERS)}")
    parser.add_argument("--rounds", type=int, default=0, help="default 3, with --quick 1")
    parser.add_argument("--threads", type=int, default=1, help="compute threads of every engine (default 1)")
    parser.add_argument("--confine", action="store_true", help="give an engine only as many cores as threads")
    parser.add_argument("--quick", action="store_true", help="less of everything, under two minutes")
    parser.add_argument("--profile", action="store_true", help="also print steps and tokens per step")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single measurement")
    return parser


if __name__ == "__main__":
    sys.exit(main())
