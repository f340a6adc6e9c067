"""Whoever tries out keys has to wait; whoever has a key that nobody can guess does not."""

from __future__ import annotations

import pytest

from gateway.errors import TooManyGuesses, answer
from gateway.guesses import MAX_ADDRESSES, MOST, Guesses


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_address_may_be_wrong_so_often_and_then_has_to_wait() -> None:
    clock = Clock()
    guesses = Guesses(clock)
    for _ in range(MOST):
        guesses.check("10.0.0.1")
        guesses.failed("10.0.0.1")
    with pytest.raises(TooManyGuesses) as caught:
        guesses.check("10.0.0.1")
    refusal = answer(caught.value, "r")
    assert (refusal.status, refusal.code) == (429, "too_many_attempts")
    assert dict(refusal.headers)[b"retry-after-ms"] == b"3000"
    guesses.check("10.0.0.2")
    clock.now += 2.99
    with pytest.raises(TooManyGuesses):
        guesses.check("10.0.0.1")
    clock.now += 0.02
    guesses.check("10.0.0.1")
    guesses.failed("10.0.0.1")
    with pytest.raises(TooManyGuesses):
        guesses.check("10.0.0.1")


def test_everything_is_forgiven_after_a_minute() -> None:
    clock = Clock()
    guesses = Guesses(clock)
    for _ in range(MOST):
        guesses.failed("10.0.0.1")
    clock.now += 60
    guesses.check("10.0.0.1")
    assert not guesses


def test_ipv6_counts_by_network_and_nobody_without_an_address() -> None:
    guesses = Guesses(Clock())
    for number in range(MOST):
        guesses.failed(f"2001:db8::{number}")
        guesses.failed("")
    with pytest.raises(TooManyGuesses):
        guesses.check("2001:db8::ffff")
    guesses.check("2001:db8:0:1::1")
    guesses.check("")


def test_memory_is_bounded_and_the_oldest_are_forgiven() -> None:
    guesses = Guesses(Clock())
    for _ in range(MOST):
        guesses.failed("10.9.9.9")
    for number in range(MAX_ADDRESSES):
        guesses.failed(f"10.0.{number >> 8}.{number & 255}")
    assert len(guesses._owed) == MAX_ADDRESSES
    guesses.check("10.9.9.9")
