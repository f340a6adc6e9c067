"""Records that several workers write: in such an order that dying harms nobody, and under their locks alone."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable
from typing import Any, cast

import pytest

from gateway.auth import ANONYMOUS, Principal
from gateway.errors import RateLimited
from gateway.limits import Account, Limits
from gateway.ratelimit import RateLimiter, Reservation
from gateway.ratelimit_records import DAY, REQUESTS, TAG, TOKENS
from gateway.ratelimit_store import LimitStore
from gateway.slot import Slot
from gateway.windows import PART_NS, Rings
from tests.gateway.metering import Clock, Meter, forked, left


class Dying:
    """The words of a store, of which a worker writes so many before it dies."""

    def __init__(self, words: memoryview[int], writes: int) -> None:
        self._words = words
        self._writes = writes

    def __getitem__(self, place: Any) -> Any:
        return self._words[place]

    def __setitem__(self, place: Any, value: Any) -> None:
        if self._writes == 0:
            raise InterruptedError
        self._writes -= 1
        self._words[place] = value


ENDS: dict[str, Callable[[Meter, Reservation], object]] = {
    "takes": lambda meter, _: meter.reserve(10),
    "gives back": lambda _, open_: open_.settle(5),
    "charges": lambda _, open_: open_.settle(35),
    "gives all back": lambda _, open_: open_.settle(0, served=False),
}


@pytest.mark.parametrize("what", ENDS)
@pytest.mark.parametrize("seconds", [0, 1, 7, 55, 61, 1441])
def test_worker_that_dies_between_two_words_lends_nothing_and_nothing_is_lost_for_ever(what: str, seconds: int) -> None:
    limits = Limits(20, 60, tokens_per_day=90)

    def before() -> tuple[Meter, Reservation]:
        meter = Meter(limits, LimitStore(8))
        meter.reserve(3)
        meter.clock.pass_seconds(9)
        reservation = meter.reserve(20)
        meter.clock.pass_seconds(seconds)
        return meter, reservation

    def counted(meter: Meter) -> list[int]:
        words, base = meter.store.words, meter.principal.slot.base
        meter.store.advance(base, meter.clock() // PART_NS)
        sums = list(words[base + REQUESTS : base + DAY + 1])
        parts = [sum(ring) for ring in meter.store.rings(base, limits)[1:]]
        assert all(part <= total for part, total in zip(parts, sums, strict=True))
        return parts

    begun, ended = counted(before()[0]), before()
    ENDS[what](*ended)
    for writes in range(40):
        meter, reservation = before()
        words = meter.store.words
        limiter = RateLimiter(meter.store, 0, meter.clock)
        meter.store.words = limiter._words = cast("memoryview[int]", Dying(words, writes))
        meter.limiter = reservation._limiter = limiter
        with contextlib.suppress(InterruptedError):
            ENDS[what](meter, reservation)
        meter.store.words = words
        meter.limiter = RateLimiter(meter.store, 0, meter.clock)
        found = counted(meter)
        assert all(part in (first, last) for part, first, last in zip(found, begun, counted(ended[0]), strict=True))
    assert found == counted(ended[0])
    assert writes > 5


def die(store: LimitStore, writes: int, digest: bytes) -> bool:
    """Whether a worker with this `store` died while it took a slot, after so many words. The kernel drops its locks."""
    store.words = cast("memoryview[int]", Dying(store.words, writes))
    try:
        store.slot_of(digest)
    except InterruptedError:
        assert store._locks is not None
        fcntl.lockf(store._locks, fcntl.LOCK_UN)
        return True
    return False


@pytest.mark.parametrize("old", [b"x" * 32, ANONYMOUS], ids=["a key", "anonymous"])
@pytest.mark.parametrize("slots", [2, 4], ids=["a slot of another", "a slot of nobody"])
def test_worker_that_dies_while_it_takes_a_slot_locks_nobody_out(old: bytes, slots: int) -> None:
    limits, new = Limits(9), b"y" * 32

    def left_to(digest: bytes, views: list[tuple[RateLimiter, Slot]]) -> list[int]:
        payers = [(limiter, Principal("a", None, None, limits, slot, None, digest)) for limiter, slot in views * 2]
        return [left(limiter.reserve(payer, 1), "requests") for limiter, payer in payers]

    writes, died = 0, True
    while died:
        clock = Clock()
        store = LimitStore(slots, 3, clock)
        known = [store.slot_of(old), store.slot_of(b"z" * 32)]
        assert left_to(old, [(RateLimiter(store, 0, clock), known[0])]) == [8, 7]
        store.forget_worker(0)
        clock.pass_seconds(61)
        others = [forked(store), forked(store)]
        stale = [other.slot_of(old) for other in others]
        died = die(store, writes, new)
        limiters = [RateLimiter(other, worker, clock) for worker, other in enumerate(others, 1)]
        asking = ((old, stale), (new, [Slot(new), Slot(new)]))
        for digest, places in asking:
            assert left_to(digest, list(zip(limiters, places, strict=True))) == [8, 7, 6, 5]
        for digest, places in asking:
            assert [other.slot_of(digest).number for other in others] == [slot.number for slot in places]
        writes += 1
    assert writes > 6


@pytest.mark.parametrize("writes", range(9))
def test_take_that_was_not_counted_hides_none_that_was(writes: int) -> None:
    clock = Clock()
    store = LimitStore(3, 2, clock)
    for name in b"abc":
        store.slot_of(bytes([name]) * 32)
    late = forked(store)

    def asks(view: LimitStore, worker: int) -> int:
        principal = Principal("d", None, None, Limits(9), view.slot_of(b"d" * 32), None, b"d" * 32)
        return left(RateLimiter(view, worker, clock).reserve(principal, 1), "requests")

    assert asks(store, 0) == 8
    store.slot_of(b"e" * 32), store.slot_of(b"f" * 32)
    # The note of its take lies where that of "d" was.
    die(store, writes, b"g" * 32)
    assert asks(late, 1) == 7


def test_record_that_is_not_its_own_any_more_sends_a_key_to_another() -> None:
    meter = Meter(Limits(9), LimitStore(3))
    slot = meter.principal.slot
    meter.store.words[slot.base + TAG] += 1
    assert left(meter.reserve(1), "requests") == 8
    assert slot.number == 1


def test_who_would_be_refused_by_a_sum_alone_is_counted_again() -> None:
    meter = Meter(Limits(10, 100, tokens_per_day=200))
    meter.reserve(7)
    base = meter.principal.slot.base
    for total, of in ((REQUESTS, 10), (TOKENS, 100), (DAY, 200)):
        # As a worker leaves it that died before it wrote the part.
        meter.store.words[base + total] = of
        meter.reserve(7)
    assert list(meter.store.words[base + REQUESTS : base + DAY + 1]) == [4, 28, 28]


class Watched(LimitStore):
    """Knows which locks are held, and that no record is touched without its own."""

    def __init__(self) -> None:
        super().__init__(8, 2)
        self.held: set[int] = set()
        self.touched = 0

    def lock(self, slot: int) -> None:
        assert slot not in self.held
        self.held.add(slot)
        super().lock(slot)

    def unlock(self, slot: int) -> None:
        self.held.remove(slot)
        super().unlock(slot)

    def touch(self, base: int) -> None:
        assert base in map(self.base, self.held)
        self.touched += 1

    def advance(self, base: int, part: int) -> tuple[int, int, int, int]:
        self.touch(base)
        return super().advance(base, part)

    def charge(self, base: int, limits: Limits, part: int, tokens: int) -> None:
        self.touch(base)
        super().charge(base, limits, part, tokens)

    def give_back(self, base: int, limits: Limits, part: int, tokens: int, requests: int) -> None:
        self.touch(base)
        super().give_back(base, limits, part, tokens, requests)

    def rings(self, base: int, limits: Limits) -> Rings:
        self.touch(base)
        return super().rings(base, limits)


@pytest.mark.parametrize("with_model", [True, False])
def test_no_record_is_touched_without_its_lock(with_model: bool) -> None:
    store = Watched()
    model = Account("The model", Limits(3, 90), store.slot_of(b"m" * 32), b"m" * 32)
    meter = Meter(Limits(4, 100, tokens_per_day=1000), store, shared=(model,) if with_model else ())
    reservations = []
    for tokens in (10, 20, 30, 40, 0, 50):
        with contextlib.suppress(RateLimited):
            reservations.append(meter.reserve(tokens))
        meter.clock.pass_seconds(1)
    for actual, reservation in zip((5, 90, None, 0), reservations, strict=False):
        reservation.settle(actual, served=actual != 5)
    with pytest.raises(RateLimited):
        meter.reserve(100)
    assert not store.held
    assert len(reservations) == 3 + (not with_model)
    assert store.touched > 10
