"""The gateway side by side with its peers, in one run: same mock upstream, same load, one core each.

    python -m tests.benchmarks.bench_peers [--peers upshift,nginx] [--rounds N] [--seconds T] [--workloads json,burst]
                                           [--svg FILE] [--json FILE]

What is measured and how to read it: docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.benchmarks.peers import PEERS, UPSHIFT, Peer
from tests.benchmarks.peers_chart import chart
from tests.benchmarks.peers_install import CannotInstall, install
from tests.benchmarks.peers_report import DIRECT, Cell, Results, Start, as_json, tables
from tests.benchmarks.peers_run import Contestant, DidNotStart, Mock, build, measure
from tests.benchmarks.peers_workload import PACE_MS, WORKLOADS, Workload

# Events per write of the mock: few enough that a gateway meets many reads, enough that the mock is faster than any.
_BATCH = 8


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    names = _chosen(parser, options.peers, PEERS)
    workloads = [WORKLOADS[name] for name in WORKLOADS if name in _chosen(parser, options.workloads, WORKLOADS)]
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("bench: two cores are needed, one for the load and one for the gateway")
    results = Results(rounds=options.rounds)
    installed = dict(_installed([PEERS[name] for name in names], results))
    for tool in ("mock_upstream", "load"):
        build(tool)
    started = time.monotonic()
    os.sched_setaffinity(0, {cores[0]})  # the mock and the load generator inherit it
    with Mock("--batch", str(_BATCH), "--pace-ms", str(PACE_MS)) as mock:
        bench = _Bench(mock, workloads, results, core=cores[-1], seconds=options.seconds)
        for number in range(options.rounds):
            bench.run_round(number, installed)
    os.sched_setaffinity(0, cores)
    print(f"\n{platform.processor() or platform.machine()}, Linux {platform.release()}, {len(cores)} cores; ", end="")
    print(f"medians of {options.rounds} interleaved round(s) of {options.seconds:g} s windows")
    print("\n" + tables(results, workloads))
    print(f"\n{time.monotonic() - started:.0f} s in all", flush=True)
    if options.json:
        options.json.write_text(as_json(results) + "\n")
    if options.svg:
        options.svg.write_text(chart(results))
    return 1 if any(cell.window.errors for cell in results.cells if cell.contestant in (DIRECT, UPSHIFT)) else 0


class _Bench:
    """The rounds. One contestant runs at a time, so that no idle one takes anything from the measured one."""

    def __init__(
        self, mock: Mock, workloads: Sequence[Workload], results: Results, *, core: int, seconds: float
    ) -> None:
        self._mock = mock
        self._workloads = workloads
        self._results = results
        self._core = core
        self._seconds = seconds

    def run_round(self, number: int, installed: Mapping[str, Path]) -> None:
        """Everybody once, the mock alone first: the others' added latency is counted from its own of that round."""
        for workload in self._workloads:
            self._measure(DIRECT, number, workload, port=self._mock.port, pids=self._mock.pids, headers={})
        # Nobody is always first: turbo clocks and page caches favour somebody.
        peers = [PEERS[name] for name in installed if name not in self._results.absent]
        shift = number % len(peers) if peers else 0
        for peer in [*peers[shift:], *peers[:shift]]:
            try:
                for together in _processes(self._workloads):
                    self._measure_peer(peer, installed[peer.name], together, number)
            except DidNotStart as error:
                self._results.absent[peer.name] = f"did not start: {error}"
                _say(f"{peer.name} did not start: {error}")

    def _measure_peer(self, peer: Peer, folder: Path, workloads: Sequence[Workload], number: int) -> None:
        with Contestant(peer, folder, self._mock, self._core) as running:
            _say(f"round {number + 1}: {peer.name} is ready after {running.start_seconds:.2f} s")
            loaded_bytes = running.idle_bytes
            for workload in workloads:
                cell = self._measure(
                    peer.name, number, workload, port=running.port, pids=running.pids, headers=running.headers
                )
                loaded_bytes = max(loaded_bytes, cell.window.resident_bytes)
            self._results.starts.append(Start(peer.name, running.start_seconds, running.idle_bytes, loaded_bytes))

    def _measure(
        self, name: str, number: int, workload: Workload, *, port: int, pids: list[int], headers: dict[str, str]
    ) -> Cell:
        window = measure(
            workload,
            self._mock,
            port=port,
            pids=pids,
            headers=headers,
            seconds=self._seconds,
            warmup_seconds=self._seconds / 4,
        )
        cell = Cell(name, workload.name, number, window)
        self._results.cells.append(cell)
        counted = f"{window.events / window.seconds:,.0f} events/s" if window.events else ""
        errors = f", ERRORS {window.errors}" if window.errors else ""
        _say(
            f"round {number + 1}: {name}, {workload.name}: "
            f"{counted or f'{window.requests / window.seconds:,.0f} requests/s'}{errors}"
        )
        return cell


def _processes(workloads: Sequence[Workload]) -> list[list[Workload]]:
    """The workloads that one process does after another, for each process that a contestant is started as."""
    shared = [workload for workload in workloads if not workload.alone]
    return [*([shared] if shared else []), *([workload] for workload in workloads if workload.alone)]


def _installed(peers: Sequence[Peer], results: Results) -> Iterator[tuple[str, Path]]:
    for peer in peers:
        try:
            yield peer.name, install(peer)
        except CannotInstall as error:
            results.absent[peer.name] = f"skipped: {error}"
            _say(f"{peer.name} is skipped: {error}")


def _chosen(parser: argparse.ArgumentParser, text: str, known: Mapping[str, object]) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            parser.error(f"there is no {name!r}; there are {', '.join(known)}")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench", description="Compares gateways; see docs/benchmarks.md.")
    parser.add_argument("--peers", default=",".join(PEERS), help="default: all of %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each window (default %(default)g)")
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="default: all of %(default)s")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write a chart of the medians")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single measurement")
    return parser


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
