"""Settings of what each key, each model and everybody together may take. Neighbours: schema.py (the tree)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from config.tree import ModelName, Tree

TierName = Annotated[
    str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", strict=True)
]
# The upper bound keeps the limiter's sums far below 2^63, and 2^53 at Redis (gateway/windows.py).
Limit = Annotated[int, Field(strict=True, ge=1, le=1_000_000_000)] | Literal["unlimited"] | None


OnRedisError = Literal["local", "open", "closed"]


class LimitSettings(Tree):
    """What one key may take. Unset: whatever the next wider place says (key, then its tier, then the default), and
    no limit where none says anything. `unlimited` lifts a wider limit."""

    requests_per_minute: Limit = None
    """Most requests admitted in any 60 seconds; all of them may come at once."""

    tokens_per_minute: Limit = None
    """Most tokens of prompts and answers in any 60 seconds: estimated when a request is admitted, corrected when it is
    over."""

    tokens_per_day: Limit = None
    """The same in any 24 hours."""

    concurrent: Limit = None
    """Requests that may run at the same time."""

    max_tokens_per_request: Limit = None
    """Most tokens one request may ask for, prompt and answers together; more is refused with 400."""


class LimitsSettings(Tree):
    """Limits of the keys, of models and of the whole gateway. A request has to fit all that concern it."""

    default: LimitSettings = LimitSettings()
    """For every key, and for everybody together where there are no keys."""

    tiers: dict[TierName, LimitSettings] = Field(default={}, max_length=100)
    """Limits by tier, for the keys that name one."""

    models: dict[ModelName, LimitSettings] = Field(default={}, max_length=1000)
    """Limits by model, for all keys together; an alias counts as its model."""

    total: LimitSettings = LimitSettings()
    """For all keys and models together."""

    on_redis_error: OnRedisError = "local"
    """While Redis does not answer: `local` counts in each gateway's own memory, `open` lets everything in, `closed`
    refuses everything that a limit concerns."""
