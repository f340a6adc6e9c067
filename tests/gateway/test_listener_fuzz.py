"""A small share of the fuzz run (tests/benchmarks/fuzz_gateway.py): requests at random, good and bad, in any pieces."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backends.http_fuzz import cut
from tests.gateway.listener_fuzz import SEEDS, mutated, target


async def test_thousands_of_requests_gone_wrong_harm_nobody() -> None:
    source = random.Random(20261121)
    async with target() as gateway:
        for _ in range(1500):
            data = mutated(source)
            await gateway.check(data, [data])
            await gateway.check(data, cut(source, data))
        assert {b"200", b"400", b"404", b"405", b"415", b"421"} <= set(gateway.answers)
        assert gateway.answers[b"200"] > 200


async def test_good_requests_are_good_in_all_pieces() -> None:
    async with target() as gateway:
        for seed in SEEDS[:6] + SEEDS[7:]:  # without the offer to speak another protocol, of which the next is about
            await gateway.check(seed, [seed])
            once = dict(gateway.answers)  # nobody who has sent the body already is told to go on
            await gateway.check(seed, [seed[at : at + 1] for at in range(len(seed))])
            gateway.answers.pop(b"100", None)
            assert gateway.answers == {status: 2 * count for status, count in once.items()}
            gateway.answers.clear()


@settings(max_examples=150)
@given(st.binary(max_size=400))
async def test_any_bytes_harm_nobody(data: bytes) -> None:
    async with target() as gateway:
        await gateway.check(data, [data])
