"""The engine thread: the one owner of the context. schedule → decode → postprocess, until stopped.

server.py submits `Generation`s and cancels them from the event loop; results go back there in one call per step.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TypeVar

from backends.fit import GGUF_CONTEXT_TOKENS
from backends.gguf.constraint import Constraint
from backends.gguf.generation import Generation, Output
from backends.gguf.llama import Context, DecodeError, FloatMatrix, LlamaError, Model, self_check
from backends.gguf.options import EngineOptions, default_parallel, default_threads, min_copy_tokens
from backends.gguf.sampler import TokenLogprob, TokenSampler
from backends.gguf.scheduler import Copy, QueueFull, Row, Scheduler, Sequence, Step, check_fits

_T = TypeVar("_T")

logger = logging.getLogger("upshift.engine")

# Three failed batches in a row: the context is beyond help, a fresh process is cheaper than guessing.
_MAX_DECODE_FAILURES = 3


@dataclass(slots=True)
class Counters:
    """Totals since the start, written by the engine thread alone."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    steps: int = 0


class Engine(threading.Thread):
    """Loads the model, then computes. `progress` runs to 1.0 or `failure` says why not; `ready` means serving."""

    def __init__(self, options: EngineOptions, loop: asyncio.AbstractEventLoop, on_end: Callable[[str], None]) -> None:
        super().__init__(name="engine", daemon=True)
        self.options = options
        self.progress = 0.0
        self.ready = False
        self.failure = ""
        self.counters = Counters()
        self.parallel = 0
        self.context_tokens = 0
        self.kv_mismatches = 0
        self._loop = loop
        self._on_end = on_end
        # Shared with the event loop, under the lock:
        self._wake = threading.Condition()
        self._arrived: deque[Generation] = deque()
        self._stopping = False
        # The engine thread's own:
        self._by_sequence: dict[Sequence, Generation] = {}
        self._outbox: list[tuple[Generation, Output]] = []
        self._decode_failures = 0
        self._resources = ExitStack()

    # -- called from the event loop ------------------------------------------------------------------------------

    def check_fits(self, prompt_tokens: int, max_tokens: int) -> None:
        """Raises TooLong when no slot could ever hold that much."""
        check_fits(prompt_tokens, max_tokens, self.context_tokens)

    @property
    def most_choices(self) -> int:
        """As many as can run and wait at once; a request with more could never be taken."""
        return self.options.max_waiting + self.parallel

    def submit(self, generations: list[Generation]) -> None:
        """Queues all choices of a request or none. Raises QueueFull, by the scheduler's bound, counting what is still
        on its way to it. Whether they fit was checked before they were made (`check_fits`)."""
        with self._wake:
            room = self.most_choices - len(self._by_sequence) - len(self._arrived)
            if len(generations) > room:
                raise QueueFull
            self._arrived.extend(generations)
            self._wake.notify()

    def cancel(self, generations: list[Generation]) -> None:
        """Takes effect before the next step."""
        with self._wake:
            for generation in generations:
                generation.cancelled = True
            self._wake.notify()

    def shut_down(self) -> None:
        """Ends the thread after the step in flight; whatever still runs gets an error."""
        with self._wake:
            self._stopping = True
            self._wake.notify()

    @property
    def running(self) -> int:
        return len(self.scheduler.running) if self.ready else 0

    @property
    def waiting(self) -> int:
        return (len(self.scheduler.waiting) if self.ready else 0) + len(self._arrived)

    @property
    def reserved_tokens(self) -> int:
        return self.scheduler.reserved_tokens if self.ready else 0

    @property
    def kv_usage_ratio(self) -> float:
        return self.scheduler.used_tokens / (self.parallel * self.context_tokens) if self.ready else 0.0

    # -- the thread ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Load, serve, close. However it ends, whoever waits is told, and `on_end` is called on the event loop."""
        try:
            self._load()
            self._serve()
        except Exception as error:  # the thread's last stop: a process without it must not live on
            self.failure = str(error) or type(error).__name__
            if not isinstance(error, LlamaError | OSError):
                logger.exception("the engine thread failed")
        finally:
            self.ready = False
            self._abandon(self.failure or "the engine is stopping")
            self._resources.close()
            self._post(self._on_end, self.failure)

    def _abandon(self, why: str) -> None:
        """Ends everything that still runs or waits with an error."""
        with self._wake:
            left = [*self._by_sequence.values(), *self._arrived]
            self._by_sequence.clear()
            self._arrived.clear()
        for generation in left:
            self._emit(generation, Output(generation.index, "", finish_reason="error", error=why))
        self._send_outbox()

    def _load(self) -> None:
        self_check()
        self.model = Model(self.options.path, on_progress=self._on_progress)
        self._resources.callback(self.model.close)
        self.context_tokens = self.options.context_tokens or min(self.model.trained_context_tokens, GGUF_CONTEXT_TOKENS)
        slot_bytes = self.model.slot_bytes(self.context_tokens)
        self.parallel = self.options.parallel or default_parallel(self.model.shape, self.context_tokens, slot_bytes)
        busy_batch_tokens = max(self.options.busy_batch_tokens, 2 * self.parallel)
        batch_tokens = max(self.options.batch_tokens, busy_batch_tokens)
        threads = self.options.threads or default_threads()
        self.context = Context(
            self.model,
            slots=self.parallel,
            slot_tokens=self.context_tokens,
            batch_tokens=batch_tokens,
            threads=threads,
        )
        self._resources.callback(self.context.close)
        self.scheduler = Scheduler(
            slots=self.parallel,
            slot_tokens=self.context_tokens,
            batch_tokens=batch_tokens,
            busy_batch_tokens=busy_batch_tokens,
            max_waiting=self.options.max_waiting,
            partial_reuse=self.model.partial_reuse,
            min_copy_tokens=min_copy_tokens(slot_bytes, self.model.n_params),
            tiles=self.model.tiles(threads),
        )
        self._warm_up()
        self.progress = 1.0
        self.ready = True

    def _on_progress(self, value: float) -> None:
        self.progress = min(value, 0.99)  # the context and the first decode are still to come

    def _warm_up(self) -> None:
        """The first decode allocates and faults pages in: better now than in somebody's first token."""
        self.context.decode([0], [0], [0], [0])
        self.context.keep(0, 0)

    def _serve(self) -> None:
        while True:
            if not self._take_arrivals():
                return
            self._compute(self.scheduler.schedule())

    def _take_arrivals(self) -> bool:
        """Waits for work, moves it into the scheduler, drops what was cancelled. False when it is time to end."""
        with self._wake:
            if not (self._arrived or self._by_sequence or self._stopping):
                self._audit()
            while not (self._arrived or self._by_sequence or self._stopping):
                self._wake.wait()
            arrived, stopping = list(self._arrived), self._stopping
            for generation in arrived:
                self._by_sequence[generation.sequence] = generation
            self._arrived.clear()
        self.scheduler.submit([g.sequence for g in arrived])
        for generation in [g for g in self._by_sequence.values() if g.cancelled]:
            self._release(generation)
            self.counters.cancelled += 1
        return not stopping

    def _audit(self) -> None:
        """Nothing runs: does the cache hold what the scheduler believes? Some microseconds, and the metric tells."""
        slots = range(self.parallel)
        self.kv_mismatches = sum(self.context.held_tokens(s) != self.scheduler.held_tokens(s) for s in slots)

    def _compute(self, step: Step) -> None:
        """One turn: cache operations, then each batch, and one token for every row that ends its sequence."""
        for operation in step.operations:
            if isinstance(operation, Copy):
                self.context.copy(operation.source, operation.target, operation.length)
            else:
                self.context.keep(operation.slot, operation.length)
        for batch in step.batches:
            self._compute_batch(batch)
            self._send_outbox()

    def _compute_batch(self, batch: list[Row]) -> None:
        try:
            logits, sampled = self._compute_rows(batch)
        except DecodeError as error:
            self._fail_batch(batch, error)
            return
        self._decode_failures = 0
        self.counters.steps += 1
        self.scheduler.advance(batch)
        if sampled:
            self._postprocess(sampled, logits)

    def _compute_rows(self, rows: list[Row]) -> tuple[FloatMatrix, list[tuple[Row, int]]]:
        """One decode; returns the logits and, in the same order, the rows to sample with their index in the batch."""
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        sampled: list[tuple[Row, int]] = []
        for row in rows:
            tokens += row.tokens
            if row.sample:
                sampled.append((row, len(tokens) - 1))
            tokens += row.tokens[-1:] * row.filling
            length = len(row.tokens) + row.filling
            positions += range(row.start, row.start + length)
            slots += [row.sequence.slot] * length
        logits = self.context.decode(tokens, positions, slots, [index for _, index in sampled])
        for row in rows:
            if row.filling:
                self.context.keep(row.sequence.slot, row.start + len(row.tokens))
        return logits, sampled

    def _postprocess(self, sampled: list[tuple[Row, int]], logits: FloatMatrix) -> None:
        """One token for every row: greedy ones by one argmax over the batch, the others each by their sampler."""
        greedy: list[tuple[Generation, int]] = []
        for output, (row, batch_row) in enumerate(sampled):
            generation = self._by_sequence[row.sequence]
            sampler = generation.sampler or self._start_answer(generation)
            written = generation.completion_tokens
            if sampler.plain_greedy:
                sampler.ban(logits[output], written)
                greedy.append((generation, output))
            else:
                self._take_token(generation, *sampler.draw(self.context, logits[output], batch_row, written=written))
        if greedy:
            best = logits.argmax(axis=1).tolist()
            for generation, output in greedy:
                self._take_token(generation, best[output], None)

    def _start_answer(self, generation: Generation) -> TokenSampler:
        constraint = None if generation.grammar is None else Constraint(self.model, generation.grammar)
        generation.sampler = TokenSampler(
            generation.params, prompt=generation.prompt, end_tokens=self.model.end_tokens, constraint=constraint
        )
        self.counters.prompt_tokens += len(generation.prompt)
        self.counters.cached_tokens += generation.sequence.cached_tokens
        return generation.sampler

    def _take_token(self, generation: Generation, token: int, logprob: TokenLogprob | None) -> None:
        """Adds one token to an answer and ends the answer where it must end."""
        generation.completion_tokens += 1
        self.counters.generated_tokens += 1
        ended = token in self.model.end_tokens and not generation.params.ignore_eos
        text = "" if ended else generation.text.feed(self.model.pieces[token])
        reason = None
        if ended or generation.text.stopped is not None:
            reason = "stop"
        elif generation.completion_tokens >= generation.max_tokens:
            reason = "length"
        if reason is None:
            generation.sequence.tokens.append(token)
        else:
            text += generation.text.flush()
            self._release(generation)
            self.counters.finished += 1
        if text or reason or logprob:
            generation.held.append(Output(generation.index, text, token, logprob, reason))
        # Who waits for the whole answer need not be woken for each of its tokens.
        if generation.held and (reason or generation.streamed):
            self._outbox += [(generation, output) for output in generation.held]
            generation.held.clear()

    def _fail_batch(self, batch: list[Row], error: DecodeError) -> None:
        """Only the sequences of the failed batch are lost, and what their slots held."""
        logger.error("decode failed: %s", error)
        self._decode_failures += 1
        for sequence in {row.sequence for row in batch}:
            generation = self._by_sequence[sequence]
            self._release(generation, keep_tokens=False)
            self.context.keep(sequence.slot, 0)
            self.counters.failed += 1
            self._emit(
                generation, Output(generation.index, "", finish_reason="error", error="the model failed to compute")
            )
        if self._decode_failures >= _MAX_DECODE_FAILURES:
            self._send_outbox()
            raise error

    def _release(self, generation: Generation, *, keep_tokens: bool = True) -> None:
        """The one place where a sequence ends: slot, sampler and bookkeeping."""
        self.scheduler.finish(generation.sequence, keep_tokens=keep_tokens)
        del self._by_sequence[generation.sequence]
        if generation.sampler is not None:
            generation.sampler.close()

    def _emit(self, generation: Generation, output: Output) -> None:
        self._outbox.append((generation, output))

    def _send_outbox(self) -> None:
        if self._outbox:
            outbox, self._outbox = self._outbox, []
            self._post(_deliver, outbox)

    def _post(self, callback: Callable[[_T], None], argument: _T) -> None:
        with suppress(RuntimeError):  # the loop is closed: the process ends and nobody waits for this any more
            self._loop.call_soon_threadsafe(callback, argument)


def _deliver(outbox: list[tuple[Generation, Output]]) -> None:
    for generation, output in outbox:
        generation.deliver(output)
