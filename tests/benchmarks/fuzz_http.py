"""The upstream client's parser against a strict reference and against itself, over answers gone wrong at random.

Run: python -m tests.benchmarks.fuzz_http [--inputs 1000000] [--seed 1]
"""

from __future__ import annotations

import argparse
import random
import sys
import time

from tests.backends.http_fuzz import Checker, Disagreement, by_h11, cut, mutated, valid

# h11 is slow: one input in so many.
H11_EVERY = 10


def main() -> None:
    """Command line. Exit code 1 after a disagreement, which is printed with its input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shown", type=int, default=20, help="disagreements after which it stops")
    arguments = parser.parse_args()
    source, checker = random.Random(arguments.seed), Checker()
    found = by_both = 0
    started = time.perf_counter()
    for number in range(1, arguments.inputs + 1):
        data = valid(source) if number % 8 == 0 else mutated(source)
        pieces = cut(source, data)
        try:
            outcome = checker.check(data, pieces)
            if number % H11_EVERY == 0 and not outcome.error and (other := by_h11(data)) is not None:
                by_both += 1
                if other != (outcome.status, outcome.body):
                    raise Disagreement(f"h11 reads {other}, not {outcome}\n{data!r}")
        except Disagreement as disagreement:
            found += 1
            print(f"input {number}: {disagreement}\n", flush=True)
            if found == arguments.shown:
                break
        if number % 100_000 == 0:
            print(f"{number:,} inputs, {number / (time.perf_counter() - started):,.0f}/s", file=sys.stderr, flush=True)
    seconds = time.perf_counter() - started
    print(
        f"{number:,} inputs in {seconds:,.0f} s ({number / seconds:,.0f}/s), each whole and in pieces: "
        f"{checker.accepted:,} accepted ({checker.kept:,} connections used again), {checker.refused:,} refused, "
        f"{by_both:,} read by h11 as well; {found} disagreements"
    )
    checker.close()
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
