"""What came of bench_crossover.py: figures of each step, medians over the rounds, tables for docs/routing.md."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tests.benchmarks.bench_engine_load import Exchange, read_answer

ALONE = ("gguf", "vllm")


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of one policy gave. `ttft_p95` in seconds, `vllm_share` of its requests; `failed` count for nothing
    else. `settled` has the same without the first second of the step, in which engines change over."""

    concurrency: int
    requests: int
    tokens_per_second: float
    ttft_p95: float
    vllm_share: float
    failed: int
    settled: Step | None = None


@dataclass(frozen=True, slots=True)
class Pass:
    """All steps under one policy. `moves` is how often the backend changed from one request to the next;
    `tokens_per_second` and `ttft_p95` are those of the whole run, all its seconds included."""

    policy: str
    steps: tuple[Step, ...]
    moves: int
    tokens_per_second: float
    ttft_p95: float


def summary(concurrency: int, done: Sequence[Exchange], new_tokens: int, began: float, ended: float) -> Step:
    """Of requests with `new_tokens` each, between two moments of `time.perf_counter()`."""
    settled = [exchange for exchange in done if exchange.ended_at >= began + 1]
    whole = _figures(concurrency, done, done, new_tokens, ended - began)
    later = [exchange for exchange in done if exchange.sent_at >= began + 1]
    after = _figures(concurrency, settled, later or settled, new_tokens, max(ended - began - 1, 1e-9))
    return replace(whole, settled=after)


def steady(concurrency: int, done: Sequence[Exchange], new_tokens: int, seconds: float) -> Step:
    """Of requests with `new_tokens` each, in so many seconds in which nothing changed."""
    return _figures(concurrency, done, done, new_tokens, seconds)


def _figures(
    concurrency: int, done: Sequence[Exchange], begun: Sequence[Exchange], new_tokens: int, seconds: float
) -> Step:
    """Tokens of those that are `done` in so many seconds, first tokens of those that have `begun`."""
    answers = [read_answer(exchange, new_tokens) for exchange in done]
    good = [answer for answer in answers if not answer.error]
    first = sorted(answer.ttft_seconds for answer in (read_answer(e, new_tokens) for e in begun) if not answer.error)
    backends = [exchange.backend for exchange in begun]
    return Step(
        concurrency,
        len(good),
        sum(answer.completion_tokens for answer in good) / seconds,
        first[min(int(len(first) * 0.95), len(first) - 1)] if first else 0.0,
        backends.count("vllm") / max(len(backends), 1),
        len(answers) - len(good),
    )


def median(passes: Sequence[Pass]) -> Pass:
    """Figure by figure."""
    steps = [median_step([each.steps[index] for each in passes]) for index in range(len(passes[0].steps))]
    tokens = statistics.median(each.tokens_per_second for each in passes)
    ttft = statistics.median(each.ttft_p95 for each in passes)
    return Pass(passes[0].policy, tuple(steps), max(each.moves for each in passes), tokens, ttft)


def median_step(column: Sequence[Step]) -> Step:
    """Figure by figure, of the same step in several rounds."""
    settled = [step.settled for step in column if step.settled is not None]
    return Step(
        column[0].concurrency,
        int(statistics.median(step.requests for step in column)),
        statistics.median(step.tokens_per_second for step in column),
        statistics.median(step.ttft_p95 for step in column),
        statistics.median(step.vllm_share for step in column),
        sum(step.failed for step in column),
        median_step(settled) if settled else None,
    )


def noise(engine: str, columns: Sequence[Sequence[Step]]) -> str:
    """How far an engine alone is from itself: of each step's windows every other one beside the rest."""
    apart = []
    for windows in columns:
        halves = [median_step(windows[half::2]) for half in (0, 1)]
        tokens = sorted(half.tokens_per_second for half in halves)
        ttft = sorted(half.ttft_p95 for half in halves)
        apart.append((tokens[0] / max(tokens[1], 1e-9), ttft[1] / max(ttft[0], 1e-9)))
    shares, longer = zip(*apart, strict=True)
    kept = f"at least {min(shares):.0%} of its tokens/s"
    return f"{engine} beside itself: {kept}, at most {max(longer):.2f} times its p95 TTFT"


def report(found: Mapping[str, Pass], *, settled: bool = False) -> str:
    """A table: a row for each step, and the whole: all tokens by all seconds, and the tokens per second of a run that
    has the same work to do at each step, however long that takes. `settled`: of the steps without their first second.
    """
    names = list(found)
    rows = [["clients", *(f"{name}: tokens/s, p95 TTFT ms (vLLM %)" for name in names)]]
    rows.append(["---"] * len(rows[0]))
    steps = {name: [(step.settled or step) if settled else step for step in found[name].steps] for name in names}
    for index, step in enumerate(steps[names[0]]):
        rows.append([str(step.concurrency), *(_cell(steps[name][index]) for name in names)])
    if not settled:
        rows.append(["all", *(f"{found[n].tokens_per_second:,.0f}, {found[n].ttft_p95 * 1000:,.0f}" for n in names)])
    even = {name: statistics.harmonic_mean([step.tokens_per_second for step in steps[name]]) for name in names}
    rows.append(["same work at each step", *(f"{even[name]:,.0f}" for name in names)])
    rows.append(["most moves", *(str(found[name].moves) for name in names)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def verdicts(found: Mapping[str, Pass]) -> list[str]:
    """For each policy, where it was furthest behind the engine that had the most tokens/s alone, settled steps. Engines
    that have 90 % of these are as good: what the slower one of them takes for a first token is held against it."""
    if not set(ALONE) <= set(found):
        return []
    lines = []
    for name in found:
        if name in ALONE:
            continue
        shares = []
        for index, step in enumerate(found[name].steps):
            theirs = [_settled(found[kind].steps[index]) for kind in ALONE]
            best = max(each.tokens_per_second for each in theirs)
            ttft = max(each.ttft_p95 for each in theirs if each.tokens_per_second >= 0.9 * best)
            mine = _settled(step)
            shares.append((mine.tokens_per_second / max(best, 1e-9), mine.ttft_p95 / ttft if ttft else 1.0, index))
        share, _, least = min(shares)
        longest, most = max((ttft, index) for _, ttft, index in shares)
        at, there = (f"step {index + 1}, {found[name].steps[index].concurrency} clients" for index in (least, most))
        tokens = f"at least {share:.0%} of the better engine's tokens/s ({at})"
        lines.append(f"{name}: {tokens}, at most {longest:.2f} times its p95 TTFT ({there})")
    return lines


def _settled(step: Step) -> Step:
    return step.settled or step


def _cell(step: Step) -> str:
    failed = f", {step.failed} failed" if step.failed else ""
    return f"{step.tokens_per_second:,.0f}, {step.ttft_p95 * 1000:,.0f} ({step.vllm_share:.0%}{failed})"
