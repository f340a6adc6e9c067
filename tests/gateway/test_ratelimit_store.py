"""Shared memory: slots, real processes, and workers that die holding a lock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from gateway.errors import RateLimited
from gateway.limits import Limits
from gateway.ratelimit_records import OWN
from gateway.ratelimit_store import LimitStore
from gateway.windows import PARTS
from tests.gateway.metering import Meter

ROOT = Path(__file__).resolve().parent.parent.parent


def digest(number: int) -> bytes:
    return number.to_bytes(32, "big")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )


def test_key_has_one_slot_and_no_other_has_it() -> None:
    store = LimitStore(8)
    slots = [store.slot_of(digest(number)) for number in range(8)]
    assert sorted(slot.number for slot in slots) == list(range(8))
    assert [store.slot_of(digest(number)) for number in reversed(range(8))] == slots[::-1]


def test_records_keep_to_their_cache_lines() -> None:
    for workers in (1, 4, 9, 64):
        store = LimitStore(3, workers)
        assert store.base(1) % 8 == 0
        assert store.base(1) - store.base(0) >= store.day_ring + PARTS
        assert store.requests_ring == OWN + 2 * workers
        assert store.base(3) + 3 == len(store.words)


def test_closed_store_gives_its_descriptor_back() -> None:
    before = len(os.listdir("/proc/self/fd"))
    store = LimitStore(8, workers=2)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    store.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_one_worker_has_no_lock() -> None:
    before = len(os.listdir("/proc/self/fd"))
    store = LimitStore(8)
    assert len(os.listdir("/proc/self/fd")) == before
    store.close()


@pytest.mark.parametrize(("requests", "tokens"), [(1000, 10_000), (2000, 7000)], ids=["requests", "tokens"])
def test_four_processes_pass_no_limit_in_any_window_and_use_it_up(requests: int, tokens: int) -> None:
    output = python("-m", "tests.gateway.hammering", "4", str(requests), str(tokens)).stdout
    *workers, last = map(json.loads, output.splitlines())
    assert len(workers) == 4
    admitted = sorted((at_ns, kept) for worker in workers for at_ns, kept in worker)
    first, inside = 0, 0
    for number, (at_ns, kept) in enumerate(admitted, 1):
        inside += kept
        while admitted[first][0] < at_ns - 60 * 10**9:
            inside -= admitted[first][1]
            first += 1
        assert number - first <= requests
        assert inside <= tokens
    used = len(admitted) / requests, sum(kept for _, kept in admitted) / tokens
    assert max(used) >= 2 * 0.98
    assert last["sums"] == last["parts"]
    assert last["running"] == 0


def test_workers_find_the_same_slots_for_keys_that_come_later() -> None:
    script = """
        import os
        from gateway.ratelimit_store import LimitStore
        store = LimitStore(64, 4)
        store.slot_of(bytes(32))
        read_end, write_end = os.pipe()
        for worker in range(4):
            if os.fork() == 0:
                digests = [bytes([number]) * 32 for number in range(1, 40)]
                mine = sorted(digests, key=lambda digest: digest[0] * (worker * 7 + 11) % 41)
                for digest in mine:
                    store.slot_of(digest)
                os.write(write_end, (repr([store.slot_of(digest).number for digest in digests]) + "\\n").encode())
                os._exit(0)
        os.close(write_end)
        for _ in range(4):
            assert os.wait()[1] == 0
        print(open(read_end).read(), end="")
    """
    answers = [json.loads(line) for line in python("-c", textwrap.dedent(script)).stdout.splitlines()]
    assert len(answers) == 4
    assert all(answer == answers[0] for answer in answers)
    assert sorted(answers[0]) == list(range(1, 40))


def test_killed_worker_frees_its_lock_and_what_it_had_running() -> None:
    script = """
        import os, signal, sys
        from gateway.errors import RateLimited
        from gateway.limits import Limits
        from gateway.ratelimit import RateLimiter
        from gateway.ratelimit_store import LimitStore
        from tests.gateway.metering import Meter
        store = LimitStore(8, 2)
        meter = Meter(Limits(requests_per_minute=100, concurrent=3), store, worker=0)
        meter.reserve()
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            limiter = RateLimiter(store, 1, meter.clock)
            limiter.reserve(meter.principal, 0), limiter.reserve(meter.principal, 0)
            store.lock(meter.principal.slot.number)
            os.write(write_end, b"x")
            signal.pause()
        os.read(read_end, 1)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        try:
            meter.reserve()
        except RateLimited as error:
            print(error.limit)
        store.forget_worker(1)
        meter.reserve(), meter.reserve()
        try:
            meter.reserve()
        except RateLimited as error:
            print(error.limit)
    """
    assert python("-c", textwrap.dedent(script)).stdout == "concurrent\nconcurrent\n"


def test_lock_keeps_other_workers_out_until_it_is_let_go() -> None:
    script = """
        import os
        from gateway.limits import Limits
        from gateway.ratelimit import RateLimiter
        from gateway.ratelimit_store import LimitStore
        from tests.gateway.metering import Meter
        store = LimitStore(8, 2)
        meter = Meter(Limits(requests_per_minute=100), store)
        other = store.slot_of(b"b" * 32).number
        store.lock(meter.principal.slot.number)
        started, start = os.pipe()
        finished, finish = os.pipe()
        child = os.fork()
        if child == 0:
            store.lock(other), store.unlock(other)
            os.write(start, b"x")
            RateLimiter(store, 1, meter.clock).reserve(meter.principal, 0)
            os.write(finish, b"x")
            os._exit(0)
        os.read(started, 1)
        # Asleep, and with nothing written: it waits for the lock.
        while open(f"/proc/{child}/stat").read().rpartition(")")[2].split()[0] != "S":
            pass
        os.set_blocking(finished, False)
        try:
            os.read(finished, 1)
        except BlockingIOError:
            print("kept out")
        store.unlock(meter.principal.slot.number)
        assert os.waitpid(child, 0)[1] == 0
        print("let in" if os.read(finished, 1) else "")
    """
    assert python("-c", textwrap.dedent(script)).stdout == "kept out\nlet in\n"


def test_forgotten_worker_leaves_the_others_requests_alone() -> None:
    store = LimitStore(8, 2)
    first, second = (Meter(Limits(concurrent=2), store, worker) for worker in range(2))
    reservation = first.reserve()
    second.reserve()
    store.forget_worker(1)
    second.reserve()
    with pytest.raises(RateLimited):
        first.reserve()
    reservation.settle(None)
    first.reserve()
