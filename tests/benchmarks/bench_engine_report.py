"""Medians and ratios over the rounds, as text and as JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

from tests.benchmarks.bench_engine_load import Load
from tests.benchmarks.bench_engine_workload import CONTEXT_TOKENS, SLOTS, Workload

OURS = "ours"


@dataclass(frozen=True, slots=True)
class Cell:
    """One engine at one concurrency in one round. `counters` are differences of its own /metrics over the cell."""

    peer: str
    concurrency: int
    round_number: int
    tokens_per_second: float
    ttft_p50_ms: float
    ttft_p95_ms: float
    cpu_ms_per_token: float
    generator_cpu_ratio: float
    prompt_tokens: float
    wall_seconds: float
    counters: dict[str, float]
    texts: list[str]
    errors: list[str]


@dataclass(frozen=True, slots=True)
class Start:
    """What one start of one engine cost; memory is taken after its last load."""

    peer: str
    start_seconds: float
    resident_bytes: int


def cell(
    peer: str, concurrency: int, round_number: int, load: Load, *, cpu_seconds: float, counters: dict[str, float]
) -> Cell:
    """Throughput is all generated tokens over the time from the first request to the last answer."""
    answers = [a for a in load.answers if a.completion_tokens]
    tokens = sum(a.completion_tokens for a in answers)
    ttfts_ms = sorted(a.ttft_seconds * 1000 for a in answers) or [0.0]
    return Cell(
        peer=peer,
        concurrency=concurrency,
        round_number=round_number,
        tokens_per_second=tokens / load.wall_seconds,
        ttft_p50_ms=percentile(ttfts_ms, 0.50),
        ttft_p95_ms=percentile(ttfts_ms, 0.95),
        cpu_ms_per_token=cpu_seconds * 1000 / max(tokens, 1),
        generator_cpu_ratio=load.generator_cpu_ratio,
        prompt_tokens=fmean(a.prompt_tokens for a in answers) if answers else 0.0,
        wall_seconds=load.wall_seconds,
        counters=counters,
        texts=[a.text for a in load.answers],
        errors=[f"request {i}: {a.error}" for i, a in enumerate(load.answers) if a.error],
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """Nearest rank."""
    return ordered[math.ceil(share * len(ordered)) - 1]


def table(workload: Workload, cells: Sequence[Cell], starts: Sequence[Start], *, threads: int, rounds: int) -> str:
    """Everything about one model."""
    peers = list(dict.fromkeys(c.peer for c in cells))
    prompt_tokens = [c.prompt_tokens for c in cells if c.prompt_tokens]
    about = f"about {fmean(prompt_tokens):.0f}" if prompt_tokens else "unknown numbers of"
    title = (
        f"{workload.name}: {threads} compute thread(s), {SLOTS} slots of {CONTEXT_TOKENS} tokens; prompts of {about} "
        f"tokens, answers of {workload.new_tokens}\n"
        f"medians of {rounds} round(s); ratios with their range over the rounds"
    )
    blocks = [
        [title],
        _block("tokens/s", cells, peers, lambda c: c.tokens_per_second, "{:.0f}"),
        _block("TTFT p50, ms", cells, peers, lambda c: c.ttft_p50_ms, "{:.1f}"),
        _block("TTFT p95, ms", cells, peers, lambda c: c.ttft_p95_ms, "{:.1f}"),
        _block("engine CPU, ms/token", cells, peers, lambda c: c.cpu_ms_per_token, "{:.3f}"),
        [
            _line("", peers),
            _line("start-up, s", [_median_of(starts, p, lambda s: s.start_seconds, "{:.2f}") for p in peers]),
            _line("resident, MB", [_median_of(starts, p, lambda s: s.resident_bytes / 1e6, "{:.0f}") for p in peers]),
        ],
        [
            f"load generator: at most {max(c.generator_cpu_ratio for c in cells):.0%} of a core",
            *_same_texts(cells, peers),
            *_errors(cells),
        ],
    ]
    return "\n\n".join("\n".join(lines) for lines in blocks)


def profile(cells: Sequence[Cell]) -> str:
    """Where the time goes, by each engine's own counters: many tokens per step is scheduling's part, a short step is
    computing's. Steps count decode calls; a step's tokens are generated ones plus those of prompts that it computed."""
    lines = [f"{'profile: streams':<24}{'engine':>24}{'steps':>8}{'ms/step':>10}{'new/step':>10}{'prompt/step':>13}"]
    for concurrency in dict.fromkeys(c.concurrency for c in cells):
        for peer in dict.fromkeys(c.peer for c in cells if c.counters):
            some = [c for c in cells if (c.peer, c.concurrency) == (peer, concurrency) and c.counters.get("steps")]
            if not some:
                continue
            steps = median(c.counters["steps"] for c in some)
            step_ms = median(c.wall_seconds * 1000 / c.counters["steps"] for c in some)
            new = median(c.counters["generated"] / c.counters["steps"] for c in some)
            prompt = median((c.counters["prompt"] - c.counters.get("cached", 0)) / c.counters["steps"] for c in some)
            lines.append(f"{concurrency:<24}{peer:>24}{steps:>8.0f}{step_ms:>10.2f}{new:>10.2f}{prompt:>13.2f}")
    return "\n".join(lines)


def as_json(cells: Sequence[Cell], starts: Sequence[Start]) -> dict[str, Any]:
    """Every cell of every round, without the texts."""
    return {
        "cells": [{k: v for k, v in asdict(c).items() if k != "texts"} for c in cells],
        "starts": [asdict(s) for s in starts],
    }


def _block(
    title: str, cells: Sequence[Cell], peers: Sequence[str], value: Callable[[Cell], float], form: str
) -> list[str]:
    others = [p for p in peers if p != OURS] if OURS in peers else []
    lines = [_line(title, peers, [f"ours/{p}" for p in others])]
    for concurrency in dict.fromkeys(c.concurrency for c in cells):
        by_peer = {
            p: {c.round_number: value(c) for c in cells if (c.peer, c.concurrency) == (p, concurrency)} for p in peers
        }
        columns = [form.format(median(by_peer[p].values())) if by_peer[p] else "-" for p in peers]
        streams = f"{concurrency:>4} stream{'s' if concurrency > 1 else ''}"
        lines.append(_line(streams, columns, [_ratio(by_peer[OURS], by_peer[p]) for p in others]))
    return lines


def _ratio(ours: dict[int, float], other: dict[int, float]) -> str:
    """Ours over the other, round by round: neighbours in time share the machine's mood."""
    ratios = [ours[r] / other[r] for r in ours if other.get(r)]
    return f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})" if ratios else "-"


def _line(title: str, columns: Sequence[str], ratios: Sequence[str] = ()) -> str:
    return f"{title:<22}" + "".join(f"{c:>22}" for c in columns) + "".join(f"{r:>28}" for r in ratios)


def _median_of(starts: Sequence[Start], peer: str, value: Callable[[Start], float], form: str) -> str:
    return form.format(median(value(s) for s in starts if s.peer == peer))


def _same_texts(cells: Sequence[Cell], peers: Sequence[str]) -> list[str]:
    """Greedy answers of two sound engines differ only where another batch shape rounds a near tie the other way."""
    lines = []
    for peer in (p for p in peers if OURS in peers and p != OURS):
        theirs = {(c.concurrency, c.round_number): c.texts for c in cells if c.peer == peer}
        pairs = [
            pair
            for c in cells
            if c.peer == OURS and (key := (c.concurrency, c.round_number)) in theirs
            for pair in zip(c.texts, theirs[key], strict=True)
        ]
        lines.append(f"answers equal to {peer}'s: {sum(_whole(a) == _whole(b) for a, b in pairs)} of {len(pairs)}")
    return lines


def _whole(text: str) -> str:
    """Without what cannot be told apart: some engines drop bytes that are no UTF-8, others mark them."""
    return text.replace("\ufffd", "")


def _errors(cells: Sequence[Cell]) -> list[str]:
    lines = []
    for c in cells:
        if c.errors:
            where = f"{c.peer}, {c.concurrency} streams, round {c.round_number + 1}"
            lines.append(f"ERRORS: {where}: {len(c.errors)}, first {c.errors[0]}")
    return lines or ["errors: none, every request was answered 200 with the tokens asked for"]
