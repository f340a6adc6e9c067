"""Slots that go from keys that need them no more to others, and keys that come back."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import defaultdict
from pathlib import Path
from random import Random

import pytest

from gateway.auth import Principal
from gateway.errors import LimitsUnavailable, RateLimited
from gateway.keys import hash_of
from gateway.keysfile import KeyEntry, KeysFile
from gateway.limits import Account, Limits
from gateway.ratelimit import RateLimiter, Reservation
from gateway.ratelimit_records import OWN
from gateway.ratelimit_store import LimitStore, StoreFull
from gateway.slot import Slot
from gateway.windows import PART_NS
from tests.fakes import FakeBackend
from tests.gateway.metering import Clock, forked, left
from tests.gateway.running import serving


def digest(number: int) -> bytes:
    return hashlib.sha256(bytes([number])).digest()


def key(store: LimitStore, number: int, limits: Limits) -> Principal:
    return Principal(str(number), None, None, limits, store.slot_of(digest(number)), None, digest(number))


def test_slot_goes_on_when_nothing_is_counted_any_more_and_its_key_gets_another() -> None:
    clock = Clock()
    store = LimitStore(2, clock_ns=clock)
    limiter = RateLimiter(store, 0, clock)
    first, second = (key(store, number, Limits(5)) for number in (1, 2))
    for principal in (first, second):
        limiter.reserve(principal, 1).settle(1)
    clock.pass_seconds(60)
    with pytest.raises(StoreFull):
        store.slot_of(digest(3))
    clock.pass_seconds(1)
    limiter.reserve(second, 1).settle(1)
    third = key(store, 3, Limits(5))
    assert third.slot.number == 0
    assert left(limiter.reserve(third, 1), "requests") == 4
    # The one whose slot it was comes back, and there is no room.
    with pytest.raises(LimitsUnavailable, match="more than 2 different"):
        limiter.reserve(first, 1)
    clock.pass_seconds(61)
    assert left(limiter.reserve(first, 1), "requests") == 4
    assert first.slot.number == 1
    # It was none of the third's: that still runs.
    assert left(limiter.reserve(third, 1), "requests") == 4


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [(Limits(5), 0), (Limits(5), 60), (Limits(tokens_per_minute=9), 60), (Limits(tokens_per_day=9), 86_400)],
    ids=["just now", "requests", "tokens", "tokens of the day"],
)
def test_slot_stays_while_something_is_counted(limits: Limits, seconds: int) -> None:
    clock = Clock(1440 * 100)
    store = LimitStore(1, clock_ns=clock)
    RateLimiter(store, 0, clock).reserve(key(store, 1, limits), 1).settle(1)
    clock.pass_seconds(seconds)
    with pytest.raises(StoreFull):
        store.slot_of(digest(2))
    clock.pass_seconds(1440)
    store.slot_of(digest(2))


def test_slot_stays_while_a_request_runs_or_a_worker_keeps_it() -> None:
    clock = Clock()
    store = LimitStore(2, 2, clock)
    running, kept = (key(store, number, Limits(concurrent=3)) for number in (1, 2))
    other = forked(store)
    reservation = RateLimiter(other, 1, clock).reserve(running, 1)
    store.keep(0, [kept.slot])
    other.keep(1, [kept.slot])
    clock.pass_seconds(10**6)
    with pytest.raises(StoreFull):
        store.slot_of(digest(3))
    store.keep(0, [])
    reservation.settle(None)
    # Neither has been looked for again in the same second.
    clock.pass_seconds(1)
    store.slot_of(digest(3))
    clock.pass_seconds(1)
    other.forget_worker(1)
    other.slot_of(digest(4))
    assert {store.slot_of(digest(number)).number for number in (3, 4)} == {0, 1}


class Locked(LimitStore):
    """Knows which locks it took."""

    def __init__(self, slots: int, clock: Clock) -> None:
        super().__init__(slots, 2, clock)
        self.taken: list[int] = []

    def lock(self, slot: int) -> None:
        self.taken.append(slot)
        super().lock(slot)


def test_full_store_is_looked_through_without_the_locks_of_those_who_are_needed() -> None:
    clock = Clock()
    store = Locked(40, clock)
    limiter = RateLimiter(store, 0, clock)
    principals = [key(store, number, Limits(5)) for number in range(40)]
    for principal in principals:
        limiter.reserve(principal, 1).settle(1)
    clock.pass_seconds(30)
    for principal in principals[:39]:
        limiter.reserve(principal, 1).settle(1)
    clock.pass_seconds(30)
    store.taken.clear()
    with pytest.raises(StoreFull):
        store.slot_of(digest(100))
    assert store.taken == [store.slots]
    clock.pass_seconds(1)
    assert store.slot_of(digest(100)).number == 39
    assert store.taken == [store.slots] * 2 + [39]


@pytest.mark.parametrize("seed", range(4))
def test_look_without_the_lock_sees_what_is_counted(seed: int) -> None:
    random, clock = Random(seed), Clock(1440 * 100)
    store, other = (LimitStore(1, clock_ns=clock) for _ in range(2))
    limits = Limits(4, 40, tokens_per_day=60)
    limiter, principal = RateLimiter(store, 0, clock), key(store, 1, limits)
    base = principal.slot.base
    seen = {True: 0, False: 0}
    for _ in range(1500):
        clock.pass_seconds(random.choice([0, 1, 7, 30, 61, 1440 * random.choice([1, 5, 61])]))
        part = clock() // PART_NS
        other.memory[:] = store.memory[:]
        other.advance(base, part)
        needed = any(any(ring) for ring in other.rings(base, limits)[1:])
        assert store.is_needed(base, part) is needed
        seen[needed] += 1
        with contextlib.suppress(RateLimited):
            reservation = limiter.reserve(principal, random.choice([0, 0, 9, 30]))
            reservation.settle(random.choice([0, 5, 20, None]), served=random.random() < 0.5)
    assert min(seen.values()) > 100


def test_accounts_whose_slots_are_gone_are_counted_elsewhere() -> None:
    clock = Clock()
    store = LimitStore(3, clock_ns=clock)
    model = Account("The model", Limits(2), store.slot_of(b"m" * 32), b"m" * 32)
    principal = key(store, 1, Limits(9))
    limiter = RateLimiter(store, 0, clock, {"m": (model,)})
    limiter.reserve(principal, 1, "m").settle(1)
    clock.pass_seconds(61)
    for number in (2, 3, 4):
        store.slot_of(digest(number))
    assert [left(limiter.reserve(principal, 1, "m"), "requests") for _ in range(2)] == [8, 7]
    with pytest.raises(RateLimited, match="The model is limited to 2"):
        limiter.reserve(principal, 1, "m")
    assert model.slot.number != principal.slot.number


def test_process_that_missed_more_takes_than_it_can_be_told_looks_at_all() -> None:
    clock = Clock()
    store = LimitStore(4, 2, clock)
    slots = {number: store.slot_of(digest(number)) for number in range(4)}
    other = forked(store)
    for number in range(4, 40):
        slots[number] = store.slot_of(digest(number))
    for number in range(36, 40):
        assert other.slot_of(digest(number)).number == slots[number].number
    assert len(other._known) == len(store._known) == 4


@pytest.mark.parametrize("seed", range(6))
def test_every_key_keeps_to_its_limit_wherever_it_is_counted(seed: int) -> None:
    random, clock = Random(seed), Clock()
    first = LimitStore(5, 2, clock)
    stores = first, forked(first)
    limits = Limits(requests_per_minute=3, concurrent=2)
    # Each process has principals of its own, found once and then stale.
    principals = [
        [Principal("a", None, None, limits, Slot(digest(number)), None, digest(number)) for number in range(9)]
        for _ in stores
    ]
    limiters = [RateLimiter(store, worker, clock) for worker, store in enumerate(stores)]
    admitted: dict[int, list[int]] = defaultdict(list)
    running: list[tuple[int, Reservation]] = []
    ends = {"in": 0, "refused": 0, "no room": 0}
    for _ in range(1500):
        # Once in a second it is looked for room.
        clock.pass_seconds(random.choice([1, 1, 2, 5, 20]))
        worker, number = random.randrange(2), random.randrange(9)
        part = clock.now_us // 10**6
        counted = [at for at in admitted[number] if at // 10**6 > part - 61]
        runs = sum(each == number for each, _ in running)
        try:
            running.append((number, limiters[worker].reserve(principals[worker][number], 1)))
            assert len(counted) < 3
            assert runs < 2
            admitted[number].append(clock.now_us)
            ends["in"] += 1
        except RateLimited:
            assert len(counted) == 3 or runs == 2
            ends["refused"] += 1
        except LimitsUnavailable:
            needed = {each for each, _ in running}
            needed |= {each for each, times in admitted.items() if times and times[-1] // 10**6 > part - 61}
            assert number not in needed
            assert len(needed) == 5
            ends["no room"] += 1
        if running and random.random() < 0.6:
            running.pop(random.randrange(len(running)))[1].settle(1)
    assert min(ends.values()) > 30


async def test_configured_keys_and_models_keep_their_slots(tmp_path: Path) -> None:
    entries = [KeyEntry(name=name, hash=hash_of(name)) for name in ("one", "other")]
    file = tmp_path / "keys.yaml"
    file.write_text(json.dumps({"keys": [entry.model_dump(mode="json") for entry in entries]}))
    edge = {"auth": {"keys_file": str(file)}, "limits": {"models": {"fake": {"requests_per_minute": 5}}}}
    async with serving(FakeBackend(), edge=edge) as serving_:
        gateway = serving_.app.gateway
        store = gateway._limits
        kept = [number for number in range(9) if store.words[store.base(number) + OWN + 1]]
        assert kept == [0, 1, 2]
        gateway._use_keys(KeysFile(keys=(entries[1],)))
        gone = store.slot_of(bytes.fromhex(hash_of("one").removeprefix("sha256:")))
        assert [number for number in kept if not store.words[store.base(number) + OWN + 1]] == [gone.number]
