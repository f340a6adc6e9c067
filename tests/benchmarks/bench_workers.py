"""What a second worker adds: requests/s of one and of two workers, each worker with the same share of a core.

    python -m tests.benchmarks.bench_workers

On a machine with few cores the load generator and the mock upstream need some of them, so that two free cores for two
workers do not exist. Here every process of the gateway may use a quarter of a core (the kernel's CPU bandwidth control;
needs root and the cpu controller of cgroups v1), and the rest is for the tools: whatever the workers lose to each
other, to shared limits or to the kernel's spreading of connections shows in the ratio. Keys, limits, metrics and access
log are on.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from tests.benchmarks.peers import PEERS, UPSHIFT
from tests.benchmarks.peers_run import Contestant, Mock, measure
from tests.benchmarks.peers_workload import WORKLOADS

CONTROLLER = Path("/sys/fs/cgroup/cpu")
PERIOD_US, SHARE = 10_000, 0.25


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each window (default %(default)g)")
    options = parser.parse_args()
    if not os.access(CONTROLLER, os.W_OK):
        print(f"bench-workers: {CONTROLLER} is not there or not ours to write", file=sys.stderr)
        return 1
    ratios = []
    with Mock() as mock:
        for number in range(options.rounds):
            one, two = (requests_per_second(workers, mock, options.seconds) for workers in (1, 2))
            ratios.append(two / one)
            print(f"round {number + 1}: one worker {one:,.0f}, two {two:,.0f} requests/s: {two / one:.2f}", flush=True)
    print(f"two workers do {statistics.median(ratios):.2f} times what one does ({min(ratios):.2f}-{max(ratios):.2f})")
    return 0


def requests_per_second(workers: int, mock: Mock, seconds: float) -> float:
    """Of `workers` workers, each held to its share."""
    peer = PEERS[UPSHIFT]
    peer = replace(peer, name=f"upshift-{workers}-workers", argv=(*peer.argv, "--workers", str(workers)))
    with Contestant(peer, Path(), mock, 0) as running, shares(running.pids):
        window = measure(
            WORKLOADS["json"],
            mock,
            port=running.port,
            pids=running.pids,
            headers=running.headers,
            seconds=seconds,
            warmup_seconds=1,
        )
    if window.errors:
        raise SystemExit(f"bench-workers: errors: {window.errors}")
    return window.requests / window.seconds


@contextmanager
def shares(pids: Iterable[int]) -> Iterator[None]:
    """Each of `pids` on any core, for SHARE of the time."""
    groups = []
    try:
        for pid in pids:
            group = CONTROLLER / f"upshift-bench-{pid}"
            group.mkdir()
            groups.append(group)
            (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(int(PERIOD_US * SHARE)))
            (group / "cgroup.procs").write_text(str(pid))
            os.sched_setaffinity(pid, range(os.cpu_count() or 1))
        yield
    finally:
        for group in groups:
            for left in (group / "cgroup.procs").read_text().split():
                with suppress(OSError):
                    (CONTROLLER / "cgroup.procs").write_text(left)
            group.rmdir()


if __name__ == "__main__":
    sys.exit(main())
