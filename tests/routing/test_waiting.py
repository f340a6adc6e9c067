"""Turns: priority, then keys one after another, then arrival."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from routing.waiting import FairQueue


def served(queue: FairQueue[str]) -> list[str]:
    """Everybody, one place after another."""
    found = []
    while queue:
        first = next(iter(queue))
        queue.remove(first, served=True)
        found.append(first)
    return found


def test_a_key_with_many_does_not_starve_one_with_a_single_one() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(100):
        queue.add(f"a{number}", 0, "a")
    queue.add("b0", 0, "b")
    queue.add("c0", 0, "c")
    assert served(queue)[:5] == ["a0", "b0", "c0", "a1", "a2"]


def test_higher_priority_goes_first() -> None:
    queue: FairQueue[str] = FairQueue()
    for name, priority in (("low", -1), ("usual", 0), ("high", 5), ("high too", 5)):
        queue.add(name, priority, name)
    assert served(queue) == ["high", "high too", "usual", "low"]


def test_who_leaves_is_gone_and_costs_nobody_a_turn() -> None:
    queue: FairQueue[str] = FairQueue()
    for name in ("a0", "a1", "b0"):
        queue.add(name, 0, name[0])
    queue.remove("a0")
    assert "a0" not in queue
    assert served(queue) == ["a1", "b0"]
    assert len(queue) == 0


@given(st.lists(st.sampled_from("abcd"), max_size=60))
def test_between_two_turns_of_a_key_every_other_one_has_at_most_one(keys: list[str]) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for number, key in enumerate(keys):
        queue.add((key, number), 0, key)
    order = list(queue)
    left = Counter(keys)
    for place, (key, number) in enumerate(order):
        # Until its last one, no key gets two turns while another one that waits gets none.
        since: Counter[str] = Counter()
        for other, _ in order[place + 1 :]:
            if other == key:
                break
            since[other] += 1
        if left[key] > 1:
            assert all(count == 1 for count in since.values())
        left[key] -= 1
        assert [n for k, n in order if k == key] == sorted(n for k, n in order if k == key), number


def test_room_is_made_by_the_lowest_and_then_by_whoever_has_most() -> None:
    queue: FairQueue[str] = FairQueue()
    assert queue.outranked(0, "a") is None
    for number in range(3):
        queue.add(f"a{number}", 0, "a")
    queue.add("b0", 0, "b")
    assert queue.outranked(0, "new") == "a2"
    assert queue.outranked(0, "b") == "a2"
    assert queue.outranked(0, "a") is None
    assert queue.outranked(-1, "new") is None
    queue.remove("a2")
    assert (queue.outranked(0, "new"), queue.outranked(0, "b")) == ("a1", None)
    queue.add("c0", -1, "c")
    assert (queue.outranked(0, "b"), queue.outranked(-1, "new"), queue.outranked(-2, "new")) == ("c0", None, None)
