"""common_prefix against its definition."""

from __future__ import annotations

from itertools import takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.gguf.prefix import common_prefix


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_equals_the_definition(left: list[int], right: list[int]) -> None:
    assert common_prefix(left, right) == len(
        list(takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))
    )


@pytest.mark.parametrize("shared", [0, 1, 63, 64, 65, 128, 200])
def test_block_borders(shared: int) -> None:
    assert common_prefix([*range(shared), -1, 7], [*range(shared), -2, 7]) == shared
