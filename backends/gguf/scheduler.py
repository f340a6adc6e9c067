"""Continuous batching, pure: which rows are computed next, and which slot holds what.

The KV cache is `slots` streams of `slot_tokens` cells. A sequence is admitted to a whole slot that holds its prompt +
max_tokens, so the cache never fills in mid-flight. Slots keep their tokens for later prompts that begin the same way.
llama.cpp computes neighbouring slots in one pass, so running sequences are kept side by side (docs/decisions/002).
runner.py executes what `schedule()` returns and reports back with `advance` and `finish`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise

from backends.gguf.prefix import common_prefix
from backends.gguf.tile import Tiles

# A sequence with fewer tokens still to write is not worth moving next to the others.
MIN_MOVE_TOKENS = 16


class QueueFull(Exception):
    """The bounded waiting list is full."""


class TooLong(Exception):
    """Prompt + max_tokens exceed a slot. Carries the figures for the message."""

    def __init__(self, prompt_tokens: int, max_tokens: int, slot_tokens: int) -> None:
        super().__init__(prompt_tokens, max_tokens, slot_tokens)
        self.prompt_tokens, self.max_tokens, self.slot_tokens = prompt_tokens, max_tokens, slot_tokens


@dataclass(slots=True, eq=False)
class Sequence:
    """One prompt being continued. `tokens` is prompt + answer so far; `computed` of them have their KV in `slot`. Only
    sequences of the same `salt` reuse each other's prefixes."""

    tokens: list[int]
    max_tokens: int
    prompt_tokens: int = 0
    salt: str = ""
    slot: int = -1
    computed: int = 0
    cached_tokens: int = 0
    # Waits for this earlier sequence to compute the first `shared` tokens, then copies them.
    leader: Sequence | None = None
    shared: int = 0

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.tokens)

    @property
    def reserved(self) -> int:
        return self.prompt_tokens + self.max_tokens


@dataclass(frozen=True, slots=True)
class Keep:
    """Cut a slot back to its first `length` tokens; 0 empties it."""

    slot: int
    length: int


@dataclass(frozen=True, slots=True)
class Copy:
    """Replace what `target` holds by the first `length` tokens of `source`."""

    source: int
    target: int
    length: int


@dataclass(frozen=True, slots=True)
class Row:
    """`tokens` of one sequence from position `start`; `sample` when they end it, so that a next token can be drawn.
    `filling` rows more are to be computed behind them and forgotten, because that is quicker."""

    sequence: Sequence
    start: int
    tokens: list[int]
    sample: bool
    filling: int = 0


@dataclass(slots=True)
class Step:
    """One turn of the engine: cache operations in order, then `batches` of rows one after the other: first a token for
    each answer, in slot order, then each prompt for itself, so that its first token need not wait for the next one."""

    operations: list[Keep | Copy] = field(default_factory=list)
    batches: list[list[Row]] = field(default_factory=list)


@dataclass(slots=True)
class _Slot:
    index: int
    sequence: Sequence | None = None
    tokens: list[int] = field(default_factory=list)  # what the cache holds while no sequence owns the slot
    salt: str = ""  # of those tokens, or of the sequence
    last_used: int = 0

    def known_tokens(self) -> list[int]:
        """What this slot holds or, while it is owned, is going to hold."""
        return self.tokens if self.sequence is None else self.sequence.tokens


def check_fits(prompt_tokens: int, max_tokens: int, slot_tokens: int) -> None:
    """Raises TooLong when a slot could never hold prompt and answer."""
    if prompt_tokens + max_tokens > slot_tokens:
        raise TooLong(prompt_tokens, max_tokens, slot_tokens)


class Scheduler:
    """Owns slots, the waiting list and the reuse of prefixes.

    `batch_tokens` bounds a step; `busy_batch_tokens` bounds it while answers are being written, so that a long prompt
    delays them by a chunk and not by its whole length; a tile that is begun is filled up beyond it (`tiles`, None for
    none). `partial_reuse` is False for models whose memory cannot be cut at an arbitrary token (recurrent layers,
    sliding windows): they reuse a prefix only as a whole. Fewer than `min_copy_tokens` shared tokens are computed
    again, for a copy moves a whole stream.
    """

    def __init__(
        self,
        *,
        slots: int,
        slot_tokens: int,
        batch_tokens: int,
        busy_batch_tokens: int,
        max_waiting: int,
        partial_reuse: bool = True,
        min_copy_tokens: int = 32,
        tiles: Tiles | None = None,
    ) -> None:
        if not 0 < slots < busy_batch_tokens <= batch_tokens:
            raise ValueError("need 0 < slots < busy_batch_tokens <= batch_tokens, or prefill could starve")
        self.slot_tokens = slot_tokens
        self.max_waiting = max_waiting
        self._batch_tokens = batch_tokens
        self._busy_batch_tokens = busy_batch_tokens
        self._partial_reuse = partial_reuse
        self._min_copy_tokens = min_copy_tokens
        self._tiles = tiles if partial_reuse else None
        self._slots = [_Slot(index) for index in range(slots)]
        self._uses = 0
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in the order of their admission

    # -- what comes in -------------------------------------------------------------------------------------------

    def submit(self, sequences: list[Sequence]) -> None:
        """Queues all of `sequences` or none. Raises TooLong or QueueFull."""
        for sequence in sequences:
            check_fits(sequence.prompt_tokens, sequence.max_tokens, self.slot_tokens)
        free = len(self._slots) - len(self.running)
        if len(self.waiting) + len(sequences) > self.max_waiting + free:
            raise QueueFull
        self.waiting.extend(sequences)

    def finish(self, sequence: Sequence, *, keep_tokens: bool = True) -> None:
        """Takes a sequence out, wherever it is; its slot stays reusable unless its content cannot be trusted."""
        if sequence.slot < 0:
            if sequence in self.waiting:
                self.waiting.remove(sequence)
            return
        slot = self._slots[sequence.slot]
        slot.sequence = None
        slot.tokens = sequence.tokens[: sequence.computed] if keep_tokens else []
        self.running.remove(sequence)

    # -- one step ------------------------------------------------------------------------------------------------

    def schedule(self) -> Step:
        """The next step. Empty when nothing runs or waits."""
        step = Step()
        for sequence in self.running:
            if sequence.leader is not None:
                self._follow(sequence, step)
        self._close_gap(step)
        while self.waiting and len(self.running) < len(self._slots):
            self._admit(self.waiting.popleft(), step)
        self._fill(step)
        return step

    def advance(self, batch: list[Row]) -> None:
        """A batch of the last step was computed."""
        for row in batch:
            row.sequence.computed += len(row.tokens)

    def _fill(self, step: Step) -> None:
        ready = [s for s in self.running if s.leader is None]
        writing = [s for s in ready if s.computed == len(s.tokens) - 1]
        reading = [s for s in ready if s.computed < len(s.tokens) - 1]
        if writing:
            writing.sort(key=lambda sequence: sequence.slot)
            step.batches.append([Row(s, s.computed, s.tokens[-1:], sample=True) for s in writing])
        budget = (self._busy_batch_tokens if writing else self._batch_tokens) - len(writing)
        for sequence in reading:
            if budget <= 0:
                break
            rows = self._whole(min(budget, len(sequence.tokens) - sequence.computed), sequence.computed)
            chunk = sequence.tokens[sequence.computed : sequence.computed + rows]
            sample = sequence.computed + len(chunk) == len(sequence.tokens)
            step.batches.append([Row(sequence, sequence.computed, chunk, sample, rows - len(chunk))])
            budget -= rows

    def _whole(self, rows: int, start: int) -> int:
        """`rows`, or with as many more as make a tile where that is quicker and has room."""
        whole = rows if self._tiles is None else rows + self._tiles.filling(rows, start)
        return whole if start + whole <= self.slot_tokens else rows

    # -- placement and reuse -------------------------------------------------------------------------------------

    def _admit(self, sequence: Sequence, step: Step) -> None:
        free = [slot for slot in self._slots if slot.sequence is None]
        shared = {slot.index: self._reusable(slot, sequence) for slot in self._slots}
        pieces = {slot.index: self._pieces_with(slot.index) for slot in free}
        oldest = min(free, key=lambda slot: (pieces[slot.index], slot.last_used))
        nearest = max(free, key=lambda slot: shared[slot.index])
        source = max(self._slots, key=lambda slot: shared[slot.index])
        in_place = shared[nearest.index]
        # Overwriting most of another conversation to save a copy would cost that conversation its cache.
        worth_overwriting = in_place * 2 >= len(nearest.tokens) or nearest is oldest
        if in_place + self._min_copy_tokens > shared[source.index] and worth_overwriting:
            target = nearest
            self._keep(target, in_place, sequence, step)
        elif shared[source.index] >= self._min_copy_tokens:
            target = oldest
            self._copy(source, target, shared[source.index], sequence, step)
        else:
            target = oldest
            self._keep(target, shared[oldest.index], sequence, step)
        sequence.tokens = list(sequence.tokens)  # its own from here on: choices wait with one prompt between them
        self._own(target, sequence)
        self.running.append(sequence)

    def _own(self, slot: _Slot, sequence: Sequence) -> None:
        self._uses += 1
        slot.last_used = self._uses
        slot.sequence, slot.tokens, slot.salt = sequence, [], sequence.salt
        sequence.slot = slot.index

    def _pieces_with(self, slot: int) -> int:
        """How many runs of neighbouring slots there are once `slot` runs too: passes over the weights per step."""
        busy = {s.slot for s in self.running} | {slot}
        return sum(index - 1 not in busy for index in busy)

    def _close_gap(self, step: Step) -> None:
        """Moves one sequence into the lowest gap between running slots. What it leaves behind stays reusable."""
        if not self.running:
            return
        busy = sorted(s.slot for s in self.running)
        gap = next((left + 1 for left, right in pairwise(busy) if right > left + 1), None)
        if gap is None:
            return
        source = self._slots[busy[-1]]
        moved = source.sequence
        if moved is None or moved.leader is not None or moved.reserved - moved.computed < MIN_MOVE_TOKENS:
            return
        step.operations.append(Copy(source.index, gap, moved.computed) if moved.computed else Keep(gap, 0))
        source.sequence, source.tokens = None, moved.tokens[: moved.computed]
        self._own(self._slots[gap], moved)

    def _reusable(self, slot: _Slot, sequence: Sequence) -> int:
        """Tokens of `slot` that `sequence` can start from; its last prompt token is always computed, for the logits."""
        if slot.salt != sequence.salt:
            return 0
        known = slot.known_tokens()
        shared = min(common_prefix(known, sequence.tokens), sequence.prompt_tokens - 1)
        if not self._partial_reuse and (slot.sequence is not None or shared < len(known)):
            return 0
        return shared

    @staticmethod
    def _keep(target: _Slot, length: int, sequence: Sequence, step: Step) -> None:
        if len(target.tokens) != length or length == 0:
            step.operations.append(Keep(target.index, length))
        sequence.computed = sequence.cached_tokens = length

    @staticmethod
    def _copy(source: _Slot, target: _Slot, length: int, sequence: Sequence, step: Step) -> None:
        leader = source.sequence
        if leader is not None and leader.computed < length:
            step.operations.append(Keep(target.index, 0))
            sequence.leader, sequence.shared = leader, length
            return
        step.operations.append(Copy(source.index, target.index, length))
        sequence.computed = sequence.cached_tokens = length

    def _follow(self, sequence: Sequence, step: Step) -> None:
        """Copies from the leader once it is far enough, or what it has if it ended early. Runs before any admission, so
        the slot of a leader that just ended still holds its tokens."""
        leader = sequence.leader
        assert leader is not None  # noqa: S101 - the caller selected on it
        alive = self._slots[leader.slot].sequence is leader
        if alive and leader.computed < sequence.shared:
            return
        available = leader.computed if alive else len(self._slots[leader.slot].tokens)
        length = min(sequence.shared, available)
        sequence.leader = None
        if length > 0:
            step.operations.append(Copy(leader.slot, sequence.slot, length))
            sequence.computed = sequence.cached_tokens = length

    # -- what is seen --------------------------------------------------------------------------------------------

    @property
    def reserved_tokens(self) -> int:
        """Cells promised to running sequences; at most slots x slot_tokens."""
        return sum(sequence.reserved for sequence in self.running)

    @property
    def used_tokens(self) -> int:
        """Cells computed for running sequences."""
        return sum(sequence.computed for sequence in self.running)

    def held_tokens(self, slot: int) -> int:
        """Cells that `slot` should hold now, running or kept for reuse."""
        owner = self._slots[slot].sequence
        return len(self._slots[slot].tokens) if owner is None else owner.computed
