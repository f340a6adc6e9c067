"""What is asked: models, how many requests at which concurrency, and the prompts, equal for every engine."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from backends.gguf.demo import DEMO_MODEL_PATH
from tests.benchmarks.bench_engine_build import CACHE
from tests.benchmarks.random_model import SHAPES, write_random_model

CONTEXT_TOKENS = 512  # per request, for every engine
SLOTS = 32
_DEMO_MAX_BYTES = 100 * 2**20
_WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work number night point home water room mother area money "
    "story fact month lot right study book eye job word business issue side kind head house service friend father "
    "power hour game line end member law car city community name president team minute idea body information back"
)


@dataclass(frozen=True, slots=True)
class Workload:
    """`requests[c]` requests run at concurrency c, prompts of `prompt_words` (from, to) words, `new_tokens` answers.

    Engines that serve one request at a time are measured in `serial_rounds` rounds: they need a multiple of the time.
    """

    name: str
    path: Path
    requests: dict[int, int]
    prompt_words: tuple[int, int]
    new_tokens: int
    serial_rounds: int

    def prompts(self, concurrency: int, round_number: int) -> list[str]:
        """Distinct from the first word on, mixed lengths: nothing is to be had from a prefix cache."""
        generator = random.Random(f"{concurrency} {round_number}")
        words = _WORDS.split()
        low, high = self.prompt_words
        count = self.requests[concurrency]
        lengths = [low + (high - low) * i // max(count - 1, 1) for i in range(count)]
        generator.shuffle(lengths)
        firsts = generator.sample([f"{a} {b}" for a in words for b in words], count)
        return [" ".join([first, *generator.choices(words, k=n - 2)]) for first, n in zip(firsts, lengths, strict=True)]


def workloads(model: str, *, quick: bool) -> list[Workload]:
    """`model` is "demo", "0.5b", "both" or the path of a GGUF."""
    if model in {"demo", "0.5b", "both"}:
        paths = [DEMO_MODEL_PATH] if model != "0.5b" else []
        paths += [random_half_billion()] if model != "demo" else []
    else:
        paths = [Path(model)]
    for path in paths:
        if not path.exists():
            sys.exit(f"bench-engine: there is no {path}")
    return [_workload(path, quick=quick) for path in paths]


def _workload(path: Path, *, quick: bool) -> Workload:
    if path.stat().st_size < _DEMO_MAX_BYTES:
        full = Workload(path.name, path, {1: 16, 4: 32, 16: 64, 32: 96}, (4, 36), 64, serial_rounds=99)
        return replace(full, requests={1: 4, 4: 8, 16: 16, 32: 32}) if quick else full
    full = Workload(path.name, path, {1: 2, 4: 4, 16: 16, 32: 32}, (6, 20), 32, serial_rounds=1)
    return replace(full, requests={1: 1, 4: 4, 8: 8}, new_tokens=8) if quick else full


def random_half_billion() -> Path:
    path = CACHE / "random-0.5b-q8_0.gguf"
    if not path.exists():
        print("writing the random 0.5 B model, once", file=sys.stderr, flush=True)
        CACHE.mkdir(parents=True, exist_ok=True)
        write_random_model(path, SHAPES["0.5b"])
    return path
