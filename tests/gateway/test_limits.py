"""Which limit holds: the key's own before its tier's before the default."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from config.limits import LimitSettings
from config.schema import Settings
from gateway.limits import Limits, resolve, shared_accounts
from gateway.ratelimit_store import LimitStore


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
        (Limits(tokens_per_day=1), False),
    ],
    ids=str,
)
def test_limits_know_whether_anything_is_counted(limits: Limits, nothing: bool) -> None:
    assert limits.counts_nothing is nothing


def settings(**limits: Any) -> Settings:
    models = [{"name": name, "gguf": {"source": "demo"}} for name in ("a", "b")]
    return Settings.model_validate({"models": models, "limits": limits})


def test_models_and_the_whole_gateway_have_accounts_of_their_own() -> None:
    store = LimitStore(8)
    found = shared_accounts(settings(models={"a": {"concurrent": 2}}, total={"tokens_per_day": 9}), store.slot_of)
    assert [(account.whose, account.limits) for account in found["a"]] == [
        ("The model 'a'", Limits(concurrent=2)),
        ("This gateway", Limits(tokens_per_day=9)),
    ]
    assert found["b"] == found["a"][1:]
    assert len({account.slot for account in found["a"]}) == 2
    assert set(shared_accounts(settings(models={"a": {"concurrent": 2}}), store.slot_of)) == {"a"}
    assert shared_accounts(settings(default={"concurrent": 2}), store.slot_of) == {}


def test_limited_model_must_exist() -> None:
    with pytest.raises(ValidationError, match="there is no model 'c'"):
        settings(models={"c": {"concurrent": 2}})
