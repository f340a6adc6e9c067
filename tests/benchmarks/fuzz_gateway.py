"""The gateway's listener under requests gone wrong at random: no crash, no hang, no 500, nothing smuggled.

Run: python -m tests.benchmarks.fuzz_gateway [--inputs 1000000] [--seed 1]
"""

from __future__ import annotations

import argparse
import random
import sys
import time

import uvloop

from tests.backends.http_fuzz import cut
from tests.gateway.listener_fuzz import Broken, mutated, target


async def run(inputs: int, seed: int) -> int:
    """The number of inputs that broke something; each is printed."""
    source, broken = random.Random(seed), 0
    started = time.perf_counter()
    async with target() as gateway:
        for number in range(1, inputs + 1):
            data = mutated(source)
            try:
                await gateway.check(data, [data] if number % 2 else cut(source, data))
            except Broken as error:
                broken += 1
                print(f"input {number}: {error}\n", flush=True)
                if broken == 20:
                    break
            if number % 20_000 == 0:
                rate = number / (time.perf_counter() - started)
                print(f"{number:,} inputs, {rate:,.0f}/s", file=sys.stderr, flush=True)
        answers = ", ".join(f"{status.decode()}: {count:,}" for status, count in sorted(gateway.answers.items()))
    print(f"{number:,} inputs in {time.perf_counter() - started:,.0f} s, {broken} broke something; answers {answers}")
    return broken


def main() -> None:
    """Command line. Exit code 1 when something broke."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    sys.exit(1 if uvloop.run(run(arguments.inputs, arguments.seed)) else 0)


if __name__ == "__main__":
    main()
