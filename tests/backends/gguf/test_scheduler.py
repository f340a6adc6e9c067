"""The scheduler: a model of the KV cache executes its steps and checks every promise of its docstring."""

from __future__ import annotations

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backends.gguf.scheduler import Copy, Keep, QueueFull, Row, Scheduler, Sequence, Step, TooLong
from backends.gguf.tile import TILE_ROWS, Tiles


class Cache:
    """What llama.cpp does with a step: rows must continue what their slot holds, copies and cuts must exist."""

    def __init__(self, slots: int, slot_tokens: int) -> None:
        self.slots: list[list[int]] = [[] for _ in range(slots)]
        self.slot_tokens = slot_tokens
        self.copied = 0

    def execute(self, step: Step) -> None:
        for operation in step.operations:
            if isinstance(operation, Copy):
                assert operation.source != operation.target
                assert len(self.slots[operation.source]) >= operation.length > 0
                self.slots[operation.target] = self.slots[operation.source][: operation.length]
                self.copied += operation.length
            else:
                assert len(self.slots[operation.slot]) >= operation.length
                del self.slots[operation.slot][operation.length :]
        slots = [row.sequence.slot for row in rows_of(step)]
        assert len(set(slots)) == len(slots), "two rows of one slot"
        for batch in step.batches:
            assert all(len(row.tokens) == 1 for row in batch) or len(batch) == 1, "prompts are computed one by one"
            assert [row.sequence.slot for row in batch] == sorted(row.sequence.slot for row in batch)
        for row in rows_of(step):
            held = self.slots[row.sequence.slot]
            assert row.start == len(held), "positions must continue the sequence"
            assert row.tokens
            assert row.start + len(row.tokens) + row.filling <= self.slot_tokens, "no room for what fills up"
            assert row.sample or not row.filling, "there are tokens left to fill up with"
            held.extend(row.tokens)
            assert len(held) <= self.slot_tokens, "the cache filled in mid-flight"
            assert held == row.sequence.tokens[: len(held)], "the slot holds somebody else's tokens"
            assert row.sample == (len(held) == len(row.sequence.tokens))


def rows_of(step: Step) -> list[Row]:
    return [row for batch in step.batches for row in batch]


def make(slots: int = 2, slot_tokens: int = 256, **options: int | bool | Tiles) -> tuple[Scheduler, Cache]:
    batch = max(slots + 1, 64)
    settings_: dict[str, int | bool | Tiles] = {
        "batch_tokens": batch,
        "busy_batch_tokens": batch,
        "max_waiting": 8,
        **options,
    }
    scheduler = Scheduler(slots=slots, slot_tokens=slot_tokens, **settings_)  # type: ignore[arg-type]
    return scheduler, Cache(slots, slot_tokens)


def turn(scheduler: Scheduler, cache: Cache, token: int = 7) -> Step:
    """One step of the engine; sequences that reached max_tokens end."""
    step = scheduler.schedule()
    cache.execute(step)
    for batch in step.batches:
        scheduler.advance(batch)
    for row in rows_of(step):
        if row.sample:
            written = len(row.sequence.tokens) - row.sequence.prompt_tokens
            if written + 1 >= row.sequence.max_tokens:
                scheduler.finish(row.sequence)
            else:
                row.sequence.tokens.append(token)
    return step


def run_until_idle(scheduler: Scheduler, cache: Cache, limit: int = 1000) -> int:
    for steps in range(limit):
        if not (scheduler.running or scheduler.waiting):
            return steps
        assert turn(scheduler, cache).batches, "work is there, but no row"
    raise AssertionError("a sequence starves")


def test_a_prompt_longer_than_a_batch_is_computed_in_chunks_beside_answers() -> None:
    scheduler, cache = make(batch_tokens=64, busy_batch_tokens=16)
    scheduler.submit([Sequence([1, 2], 50)])
    turn(scheduler, cache)
    scheduler.submit([Sequence(list(range(100, 200)), 2)])
    sizes = [[len(row.tokens) for row in rows_of(turn(scheduler, cache))] for _ in range(3)]
    assert sizes == [[1, 15]] * 3


def test_answers_are_computed_side_by_side_and_prompts_one_by_one_as_they_came() -> None:
    scheduler, cache = make(slots=5)
    scheduler.submit([Sequence([n], 9) for n in range(2)])
    turn(scheduler, cache)
    scheduler.submit([Sequence([n] * n, 9) for n in (3, 7, 5)])
    batches = turn(scheduler, cache).batches
    sizes = [[(row.sequence.slot, len(row.tokens)) for row in batch] for batch in batches]
    assert sizes == [[(0, 1), (1, 1)], [(2, 3)], [(3, 7)], [(4, 5)]]


def test_first_come_first_served() -> None:
    scheduler, cache = make(slots=1)
    sequences = [Sequence([n, n + 1], 2) for n in range(5)]
    scheduler.submit(sequences)
    ended: list[Sequence] = []
    while len(ended) < 5:
        turn(scheduler, cache)
        ended += [s for s in sequences if s.slot >= 0 and s not in scheduler.running and s not in ended]
    assert ended == sequences


def test_too_long_and_queue_full_take_nothing() -> None:
    scheduler, _ = make(slots=1, slot_tokens=10, max_waiting=1)
    with pytest.raises(TooLong):
        scheduler.submit([Sequence([1], 2), Sequence([1] * 8, 3)])
    with pytest.raises(QueueFull):
        scheduler.submit([Sequence([1], 1) for _ in range(3)])
    assert not scheduler.waiting
    scheduler.submit([Sequence([1] * 8, 2), Sequence([1], 1)])
    assert len(scheduler.waiting) == 2


def test_a_finished_conversation_is_continued_in_place() -> None:
    scheduler, cache = make()
    first = Sequence(list(range(40)), 4)
    scheduler.submit([first])
    run_until_idle(scheduler, cache)
    follow_up = Sequence([*first.tokens, *range(100, 110)], 4)
    scheduler.submit([follow_up])
    step = turn(scheduler, cache)
    assert follow_up.slot == first.slot
    assert follow_up.cached_tokens == first.computed == 43
    assert sum(len(row.tokens) for row in rows_of(step)) == 10


def test_a_shared_system_prompt_is_copied_and_the_other_conversation_kept() -> None:
    scheduler, cache = make()
    system = list(range(40))
    first = Sequence([*system, *range(200, 300)], 2)
    scheduler.submit([first])
    run_until_idle(scheduler, cache)
    second = Sequence([*system, 500, 501], 2)
    scheduler.submit([second])
    turn(scheduler, cache)
    assert second.slot != first.slot
    assert second.cached_tokens == 40
    assert scheduler.held_tokens(first.slot) == first.computed


@pytest.mark.parametrize("at_once", [True, False])
def test_other_salts_share_nothing(at_once: bool) -> None:
    scheduler, cache = make(slots=4)
    prompt = list(range(40))
    sequences = [Sequence(list(prompt), 2, salt=salt) for salt in ("a", "b", "", "a", "b", "")]
    for batch in [sequences] if at_once else [[sequence] for sequence in sequences]:
        scheduler.submit(batch)
        run_until_idle(scheduler, cache)
    assert [sequence.cached_tokens for sequence in sequences] == [0, 0, 0, 39, 39, 39]


def test_equal_prompts_at_once_are_computed_once() -> None:
    scheduler, cache = make(slots=4, batch_tokens=32, busy_batch_tokens=32)
    prompt = list(range(120))
    sequences = [Sequence(list(prompt), 3) for _ in range(4)]
    scheduler.submit(sequences)
    computed = 0
    while scheduler.running or scheduler.waiting:
        computed += sum(len(row.tokens) for row in rows_of(turn(scheduler, cache)))
    assert computed == 120 + 3 * 1 + 4 * 2  # one prompt, the last token of the others, and the answers
    assert [s.cached_tokens for s in sequences] == [0, 119, 119, 119]


def test_a_follower_goes_on_alone_when_its_leader_is_cancelled() -> None:
    scheduler, cache = make(batch_tokens=16, busy_batch_tokens=16)
    prompt = list(range(100))
    leader, follower = Sequence(list(prompt), 2), Sequence(list(prompt), 2)
    scheduler.submit([leader, follower])
    turn(scheduler, cache)
    scheduler.finish(leader)
    run_until_idle(scheduler, cache)
    assert follower.cached_tokens == 16
    assert follower.computed == 101


def test_a_failed_batch_forgets_its_slots() -> None:
    scheduler, cache = make()
    first = Sequence(list(range(40)), 4)
    scheduler.submit([first])
    turn(scheduler, cache)
    scheduler.finish(first, keep_tokens=False)
    cache.slots[first.slot].clear()
    again = Sequence(list(range(40)), 4)
    scheduler.submit([again])
    run_until_idle(scheduler, cache)
    assert again.cached_tokens == 0


def test_the_least_recently_used_slot_is_overwritten() -> None:
    scheduler, cache = make(slots=3)
    conversations = [[n] * 40 for n in (1, 2, 3)]
    for tokens in conversations:
        scheduler.submit([Sequence(list(tokens), 1)])
        run_until_idle(scheduler, cache)
    scheduler.submit([Sequence([1] * 40, 1)])  # used again: 2 is now the oldest
    run_until_idle(scheduler, cache)
    scheduler.submit([Sequence([9] * 40, 1)])
    run_until_idle(scheduler, cache)
    assert sorted(slot[0] for slot in cache.slots) == [1, 3, 9]


def test_running_sequences_are_moved_side_by_side() -> None:
    scheduler, cache = make(slots=4)
    sequences = [Sequence([n], 100) for n in range(4)]
    scheduler.submit(sequences)
    turn(scheduler, cache)
    scheduler.finish(sequences[1])
    turn(scheduler, cache)
    assert sorted(s.slot for s in scheduler.running) == [0, 1, 2]


def test_models_without_partial_memory_only_reuse_what_is_whole() -> None:
    scheduler, cache = make(partial_reuse=False)
    first = Sequence(list(range(60)), 2)
    scheduler.submit([first])
    run_until_idle(scheduler, cache)
    branch = Sequence([*range(50), 999], 2)
    scheduler.submit([branch])
    run_until_idle(scheduler, cache)
    assert branch.cached_tokens == 0
    longer = Sequence([*branch.tokens, 1, 2], 2)
    scheduler.submit([longer])
    run_until_idle(scheduler, cache)
    assert longer.cached_tokens == branch.computed


def test_a_copy_that_costs_more_than_it_saves_is_not_made() -> None:
    scheduler, cache = make()
    shared = list(range(31))
    scheduler.submit([Sequence([*shared, *range(100, 200)], 50)])
    turn(scheduler, cache)
    scheduler.submit([Sequence([*shared, 999], 2)])
    assert not any(isinstance(op, Copy) for op in turn(scheduler, cache).operations)


def test_sizes_that_could_starve_are_refused() -> None:
    with pytest.raises(ValueError, match="starve"):
        Scheduler(slots=8, slot_tokens=64, batch_tokens=8, busy_batch_tokens=8, max_waiting=1)


# Nothing but attention costs anything, and rows alone eight times as much.
EAGER = Tiles(even_tokens=1e-9, alone=8 * 2.4)


def filled(scheduler: Scheduler, cache: Cache) -> list[tuple[int, int]]:
    """Tokens and filling of each row of the next step."""
    return [(len(row.tokens), row.filling) for row in rows_of(turn(scheduler, cache))]


def test_a_short_prompt_is_filled_up_to_a_tile_and_answers_are_not() -> None:
    scheduler, cache = make(tiles=EAGER)
    scheduler.submit([Sequence(list(range(30)), 4)])
    assert filled(scheduler, cache) == [(30, TILE_ROWS - 30)]
    scheduler.submit([Sequence(list(range(100, 140)), 4)])
    assert filled(scheduler, cache) == [(1, 0), (40, TILE_ROWS - 40)]


def test_tokens_that_are_wanted_fill_up_first() -> None:
    scheduler, cache = make(tiles=EAGER, batch_tokens=40, busy_batch_tokens=40)
    scheduler.submit([Sequence(list(range(100)), 4)])
    assert filled(scheduler, cache) == [(TILE_ROWS, 0)]
    assert filled(scheduler, cache) == [(36, TILE_ROWS - 36)]


def test_nothing_is_filled_up_beyond_a_slot() -> None:
    scheduler, cache = make(tiles=EAGER, slot_tokens=96)
    scheduler.submit([Sequence(list(range(33)), 4)])
    turn(scheduler, cache)
    run_until_idle(scheduler, cache)
    scheduler.submit([Sequence(list(range(60)), 4)])
    assert filled(scheduler, cache) == [(27, 0)]


def test_memory_that_cannot_be_cut_is_not_filled_up() -> None:
    scheduler, cache = make(tiles=EAGER, partial_reuse=False)
    scheduler.submit([Sequence(list(range(30)), 4)])
    assert filled(scheduler, cache) == [(30, 0)]


# Shrinking a machine of lists takes minutes; the failing program is short enough to read.
NO_SHRINK = (Phase.explicit, Phase.reuse, Phase.generate)
SLOTS, SLOT_TOKENS = 3, 96
prompts = st.builds(
    lambda head, tail: [0] * head + tail,
    st.integers(1, 60),
    st.lists(st.integers(1, 3), max_size=20),
)


class EngineModel(RuleBasedStateMachine):
    """Any interleaving of submit, cancel, step and failure keeps the cache, the slots and the order right."""

    @initialize(partial=st.booleans(), busy=st.integers(4, 40), tiles=st.sampled_from([None, EAGER]))
    def start(self, partial: bool, busy: int, tiles: Tiles | None) -> None:
        self.scheduler = Scheduler(
            slots=SLOTS,
            slot_tokens=SLOT_TOKENS,
            batch_tokens=40,
            busy_batch_tokens=busy,
            max_waiting=4,
            partial_reuse=partial,
            tiles=tiles,
        )
        self.cache = Cache(SLOTS, SLOT_TOKENS)
        self.admitted: list[Sequence] = []

    @rule(prompt=prompts, max_tokens=st.integers(1, 16), choices=st.integers(1, 3))
    def submit(self, prompt: list[int], max_tokens: int, choices: int) -> None:
        before = len(self.scheduler.waiting)
        try:
            self.scheduler.submit([Sequence(list(prompt), max_tokens) for _ in range(choices)])
        except QueueFull:
            assert len(self.scheduler.waiting) == before
            assert before + choices > 4

    @rule(token=st.integers(0, 3))
    def step(self, token: int) -> None:
        first_waiting = self.scheduler.waiting[0] if self.scheduler.waiting else None
        had_room = len(self.scheduler.running) < SLOTS
        turn(self.scheduler, self.cache, token)
        if had_room and first_waiting is not None:
            assert first_waiting.slot >= 0, "the first in line was passed over"

    @precondition(lambda self: self.scheduler.running or self.scheduler.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        victim = data.draw(st.sampled_from([*self.scheduler.running, *self.scheduler.waiting]))
        self.scheduler.finish(victim)

    @precondition(lambda self: self.scheduler.running)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        victim = data.draw(st.sampled_from(self.scheduler.running))
        self.scheduler.finish(victim, keep_tokens=False)
        self.cache.slots[victim.slot].clear()

    @invariant()
    def slots_are_owned_once_and_reservations_fit(self) -> None:
        owned = [s.slot for s in self.scheduler.running]
        assert len(owned) == len(set(owned))
        assert self.scheduler.reserved_tokens <= SLOTS * SLOT_TOKENS
        assert self.scheduler.used_tokens <= self.scheduler.reserved_tokens
        for slot, held in enumerate(self.cache.slots):
            follows = any(s.slot == slot and s.leader for s in self.scheduler.running)
            assert len(held) == self.scheduler.held_tokens(slot) or follows

    def teardown(self) -> None:
        if hasattr(self, "scheduler"):
            run_until_idle(self.scheduler, self.cache)
            assert [self.scheduler.held_tokens(s) for s in range(SLOTS)] == [len(held) for held in self.cache.slots]


TestEngineModel = EngineModel.TestCase
TestEngineModel.settings = settings(max_examples=60, stateful_step_count=40, phases=NO_SHRINK)


@settings(max_examples=40)
@given(st.lists(st.tuples(prompts, st.integers(1, 12)), min_size=1, max_size=30))
def test_everything_ends_and_every_slot_comes_back(requests: list[tuple[list[int], int]]) -> None:
    scheduler, cache = make(slots=3, slot_tokens=96, batch_tokens=32, busy_batch_tokens=8, max_waiting=40)
    scheduler.submit([Sequence(prompt, max_tokens) for prompt, max_tokens in requests])
    run_until_idle(scheduler, cache, limit=5000)
    assert scheduler.reserved_tokens == 0


def test_keep_is_only_asked_for_what_is_held() -> None:
    scheduler, cache = make()
    scheduler.submit([Sequence([1, 2, 3], 1)])
    assert Keep(0, 0) in scheduler.schedule().operations
    assert cache.slots == [[], []]
