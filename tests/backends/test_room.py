"""Who may load into the memory there is, who waits, who yields, and what is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.fit import GIB, MEMORY, Claim
from backends.room import LEAST_IDLE_SECONDS, Occupant, Ruling, Standing, rule

ASKS, LOADS, LOADED = Standing


def engine(
    name: str, gib: float, standing: Standing, *, idle: float | None = None, unseen: float = 0.0, place: str = MEMORY
) -> Occupant:
    """One that takes so much; `idle` seconds where it may yield."""
    claim = Claim({place: int(gib * GIB)}, int(unseen * GIB))
    return Occupant(name, claim, standing, idle is not None, idle or 0.0)


def ruled(free: float, *occupants: Occupant) -> Ruling:
    return rule(occupants, {MEMORY: int(free * GIB)})


def test_two_that_fit_load_together() -> None:
    assert ruled(8, engine("a", 3, ASKS), engine("b", 5, ASKS)).start == (0, 1)


def test_two_that_do_not_fit_load_one_after_the_other() -> None:
    first = ruled(7, engine("a", 3, ASKS), engine("b", 5, ASKS))
    assert (first.start, set(first.waiting), first.sleep) == ((0,), {1}, ())
    again = ruled(7, engine("a", 3, LOADS), engine("b", 5, ASKS))
    assert (again.start, set(again.waiting)) == ((), {1})
    # It took less than thought.
    assert ruled(5, engine("a", 3, LOADED), engine("b", 5, ASKS)).start == (1,)


def test_weights_that_are_mapped_do_not_count_as_free() -> None:
    loaded = engine("a", 3, LOADED, unseen=2.5)
    assert ruled(7, loaded, engine("b", 5, ASKS)).start == ()
    assert ruled(7.5, loaded, engine("b", 5, ASKS)).start == (1,)


def test_an_idle_one_yields_and_the_other_loads_once_it_is_gone() -> None:
    ruling = ruled(1, engine("a", 3, LOADED, idle=9), engine("b", 4, ASKS))
    assert (ruling.start, ruling.sleep, set(ruling.waiting)) == ((), (0,), {1})
    assert ruled(4, engine("b", 4, ASKS)).start == (0,)


@pytest.mark.parametrize(
    ("idle", "expected"),
    [
        ({"a": 5, "b": 9, "c": 7}, {"b"}),
        ({"a": 5, "b": 6, "c": 7}, {"c"}),
        ({"a": 9, "b": LEAST_IDLE_SECONDS / 2, "c": 0.1}, {"a"}),
    ],
)
def test_who_was_idle_for_longest_yields_and_no_more_than_it_takes(
    idle: Mapping[str, float], expected: set[str]
) -> None:
    loaded = [engine(name, 2, LOADED, idle=seconds) for name, seconds in idle.items()]
    ruling = ruled(1, engine("new", 3, ASKS), *loaded)
    assert {loaded[index - 1].name for index in ruling.sleep} == expected


def test_one_that_is_in_use_is_waited_for_and_nobody_is_sent_away_in_vain() -> None:
    ruling = ruled(1, engine("new", 6, ASKS), engine("busy", 3, LOADED, idle=0), engine("idle", 2, LOADED, idle=9))
    assert ruling == Ruling(waiting={0: "it needs 6.0 GiB, and 1.0 GiB is free"})


def test_beside_one_that_never_yields_it_is_refused_and_told_why() -> None:
    ruling = ruled(1, engine("new/vllm", 6, ASKS), engine("old/gguf", 5.5, LOADED))
    assert ruling.refused == {
        0: "it needs 6.0 GiB, and 1.0 GiB is free beside old/gguf (5.5 GiB), without idle_stop_seconds: "
        "with it that would yield while it has nothing to do"
    }


def test_what_would_not_fit_alone_either_is_started_when_all_have_yielded_that_can() -> None:
    asks, stays, idle = engine("new", 60, ASKS), engine("a", 2, LOADED), engine("b", 2, LOADED, idle=9)
    assert ruled(4, asks, stays, idle).sleep == (2,)
    assert ruled(6, asks, stays).start == (0,)


def test_places_are_apart() -> None:
    loading = engine("a", 60, LOADS, place="GPU-0")
    asks = engine("b", 60, ASKS, place="GPU-1"), engine("c", 2, ASKS), engine("d", 60, ASKS, place="GPU-0")
    ruling = rule([loading, *asks], {MEMORY: 4 * GIB, "GPU-0": 70 * GIB, "GPU-1": 70 * GIB})
    assert ruling.start == (1, 2)
    assert ruling.waiting == {3: "it needs 60.0 GiB on GPU-0, and 10.0 GiB on GPU-0 is free"}


def test_who_waits_is_not_overtaken_for_ever() -> None:
    ruling = ruled(4, engine("big", 5, ASKS), engine("small", 3, ASKS), engine("busy", 3, LOADED, idle=0))
    assert set(ruling.waiting) == {0, 1}


def test_one_of_unknown_size_starts() -> None:
    assert rule([Occupant("a", Claim(), ASKS), engine("b", 9, LOADED)], {MEMORY: 0}).start == (0,)


PLACES = (MEMORY, "GPU-0")


def _occupants() -> st.SearchStrategy[list[Occupant]]:
    sizes = st.dictionaries(st.sampled_from(PLACES), st.integers(0, 10), max_size=2)
    one = st.builds(
        Occupant,
        st.text("abc", min_size=1, max_size=3),
        st.builds(Claim, sizes, st.integers(0, 3)),
        st.sampled_from(Standing),
        st.booleans(),
        st.sampled_from([0.0, 2.0, 3.0]),
    )
    return st.lists(one, max_size=6)


def taken(occupants: list[Occupant], indices: Iterable[int], place: str) -> int:
    return sum(occupants[index].claim.sizes.get(place, 0) for index in indices)


@given(_occupants(), st.fixed_dictionaries(dict.fromkeys(PLACES, st.integers(0, 20))))
def test_what_is_ruled_holds(occupants: list[Occupant], free: dict[str, int]) -> None:
    ruling = rule(occupants, free)
    by = {standing: [i for i, one in enumerate(occupants) if one.standing is standing] for standing in Standing}
    assert sorted([*ruling.start, *ruling.waiting, *ruling.refused]) == by[ASKS], "each has one answer"
    assert all(occupants[index].is_idle and index in by[LOADED] for index in ruling.sleep)
    assert len(set(ruling.sleep)) == len(ruling.sleep)
    left, everything = dict(free), dict(free)
    for place in PLACES:
        unseen = sum(occupants[index].claim.unseen for index in by[LOADED]) if place == MEMORY else 0
        left[place] -= unseen + taken(occupants, by[LOADS], place)
        everything[place] = left[place] + taken(occupants, by[LOADED], place)
    started = [occupants[index].claim.sizes for index in ruling.start]
    if all(size <= everything[place] for sizes in started for place, size in sizes.items()):
        for place in {place for sizes in started for place, size in sizes.items() if size}:
            assert taken(occupants, ruling.start, place) <= left[place], "two load where there is room for one"
    if by[ASKS] and not by[LOADS] and not any(one.yields and not one.is_idle for one in occupants):
        assert ruling.start or ruling.sleep or ruling.refused, "nothing would ever change"
    first = by[ASKS][:1]
    if first and ruling.sleep and not ruling.start:
        assert set(first) <= {*ruling.waiting, *ruling.refused}
