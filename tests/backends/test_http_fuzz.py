"""A small share of the fuzz run (tests/benchmarks/fuzz_http.py): answers at random, right and wrong, in any pieces."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backends.http_fuzz import CASES, SEEDS, Checker, by_h11, cut, mutated, valid
from tests.backends.reference import Refused, parse
from tests.backends.test_http_framing import REFUSED, SOUND


@pytest.fixture(scope="module")
def checker() -> Iterator[Checker]:
    checker = Checker()
    yield checker
    checker.close()


def test_thousands_of_answers_gone_wrong_are_judged_as_the_reference_does(checker: Checker) -> None:
    source = random.Random(20261121)
    for _ in range(10_000):
        data = mutated(source)
        checker.check(data, cut(source, data))
    assert checker.accepted > 1000
    assert checker.refused > 1000


def test_valid_answers_are_read_the_same_in_all_pieces_and_by_h11(checker: Checker) -> None:
    source = random.Random(7)
    for _ in range(1000):
        data = valid(source)
        outcome = checker.check(data, cut(source, data))
        assert outcome.error == ""
        assert by_h11(data) == (outcome.status, outcome.body)


@settings(max_examples=300)
@given(st.data())
def test_pieces_make_no_difference(checker: Checker, data: st.DataObject) -> None:
    sent = data.draw(st.sampled_from(SEEDS))
    ends = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=12)))
    edges = [0, *ends, len(sent)]
    checker.check(sent, [sent[start:end] for start, end in itertools.pairwise(edges) if start < end])


@settings(max_examples=300)
@given(st.lists(st.one_of(st.binary(max_size=20), st.sampled_from(SEEDS)), max_size=4))
def test_garbage_ends_in_an_answer_or_an_error(checker: Checker, pieces: list[bytes]) -> None:
    checker.check(b"".join(pieces), [piece for piece in pieces if piece])


@pytest.mark.parametrize("name", [name for name, sent in CASES.items() if sent in SEEDS])
def test_reference_agrees_with_the_table(name: str) -> None:
    try:
        answer = parse(CASES[name])
    except Refused:
        assert name in REFUSED
    else:
        assert name not in REFUSED
        assert answer.keepable == (name in SOUND)
