"""Keys are random, recognisable, and tell a typing mistake from an unknown key."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.keys import RANDOM_CHARACTERS, hash_of, is_intact, new_key


def test_key_has_the_published_form_and_enough_randomness() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(re.fullmatch(r"up-[0-9A-Za-z]{39}", key) for key in keys)
    assert all(is_intact(key) for key in keys)
    assert RANDOM_CHARACTERS * math.log2(62) >= 190


@given(st.integers(0, 41), st.characters(min_codepoint=33, max_codepoint=126))
def test_any_one_wrong_character_is_found(place: int, character: str) -> None:
    key = new_key()
    changed = key[:place] + character + key[place + 1 :]
    assert is_intact(changed) == (changed == key)


@pytest.mark.parametrize("cut", ["", "up-", "up-abc", new_key()[:-1], new_key() + "x", new_key()[3:], " " + new_key()])
def test_parts_of_a_key_are_not_intact(cut: str) -> None:
    assert not is_intact(cut)


def test_checksum_stays_what_it_is() -> None:
    """Keys in use, and scanners, depend on it."""
    key = "up-0123456789ABCDEFGHIJKLMNOPQRSTUVW2Ub9rS"
    assert is_intact(key)
    assert hash_of(key) == "sha256:d16e2a85e8a2a7033b8a3218873d772caa4779251550ab71d5fa1361b59e2ed4"
