"""Which limit holds: the key's own before its tier's before the default."""

from __future__ import annotations

import pytest

from config.schema import LimitSettings
from gateway.limits import Limits, resolve


def test_narrowest_place_that_says_something_wins_figure_by_figure() -> None:
    key = LimitSettings(requests_per_minute=1)
    tier = LimitSettings(requests_per_minute=2, tokens_per_minute=20)
    default = LimitSettings(requests_per_minute=3, tokens_per_minute=30, concurrent=4)
    assert resolve(key, tier, default) == Limits(1, 20, 4, None)


def test_unlimited_lifts_a_wider_limit() -> None:
    assert resolve(LimitSettings(concurrent="unlimited"), LimitSettings(concurrent=4)) == Limits()


@pytest.mark.parametrize(
    ("limits", "nothing"),
    [
        (Limits(), True),
        (Limits(max_tokens_per_request=5), True),
        (Limits(requests_per_minute=1), False),
        (Limits(tokens_per_minute=1), False),
        (Limits(concurrent=1), False),
    ],
    ids=str,
)
def test_limits_know_whether_anything_is_counted(limits: Limits, nothing: bool) -> None:
    assert limits.counts_nothing is nothing
