"""What may be taken, as numbers, and who it is counted for: keys, models, everybody.

Neighbours: config/limits.py (the settings), auth.py (the limits of keys), ratelimit.py (enforces them).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, fields

from config.limits import LimitSettings
from config.schema import Settings
from gateway.slot import Slot

# More than can ever be counted, and small enough that adding a request to it stays below 2^63.
UNLIMITED = 2**62


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits in force; None is no limit. `header_template` has the place of two values per limited kind; `most` are the
    limits of requests, tokens, tokens a day and running requests, UNLIMITED where there is none. `counts_nothing` tells
    that no counter has to be kept, three others which of them have, `told_by_minute` that headers have both kinds and
    both by the minute."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None
    max_tokens_per_request: int | None = None
    tokens_per_day: int | None = None
    header_template: bytes = field(init=False, repr=False, compare=False)
    most: tuple[int, int, int, int] = field(init=False, repr=False, compare=False)
    counts_nothing: bool = field(init=False, repr=False, compare=False)
    counts_requests: bool = field(init=False, repr=False, compare=False)
    counts_minute: bool = field(init=False, repr=False, compare=False)
    counts_day: bool = field(init=False, repr=False, compare=False)
    told_by_minute: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        minute, day = self.tokens_per_minute, self.tokens_per_day
        kinds = (("requests", self.requests_per_minute), ("tokens", day if minute is None else minute))
        lines = [_template(kind, limit) for kind, limit in kinds if limit is not None]
        object.__setattr__(self, "header_template", b"".join(lines))
        figures = (self.requests_per_minute, minute, day, self.concurrent)
        object.__setattr__(self, "most", tuple(UNLIMITED if figure is None else figure for figure in figures))
        object.__setattr__(self, "counts_nothing", figures == (None,) * 4)
        object.__setattr__(self, "counts_requests", self.requests_per_minute is not None)
        object.__setattr__(self, "counts_minute", minute is not None)
        object.__setattr__(self, "counts_day", day is not None)
        object.__setattr__(self, "told_by_minute", self.requests_per_minute is not None and minute is not None)


@dataclass(frozen=True, slots=True)
class Account:
    """Who beside a key pays for requests: a model, or everybody together. `whose` begins the sentences of refusals,
    `slot` is its place in the LimitStore, `digest` what it is called there and at Redis."""

    whose: str
    limits: Limits
    slot: Slot
    digest: bytes


def _template(kind: str, limit: int) -> bytes:
    return (
        f"x-ratelimit-limit-{kind}: {limit}\r\nx-ratelimit-remaining-{kind}: %d\r\nx-ratelimit-reset-{kind}: %b\r\n"
    ).encode()


def resolve(*layers: LimitSettings) -> Limits:
    """The limits that hold where the narrowest place comes first: each figure from the first layer that has it."""
    found: dict[str, int | None] = {}
    for name in (each.name for each in fields(Limits) if each.init):
        values = (getattr(layer, name) for layer in layers)
        value = next((value for value in values if value is not None), None)
        found[name] = None if value == "unlimited" else value
    return Limits(**found)


def shared_accounts(settings: Settings, slot_of: Callable[[bytes], Slot]) -> dict[str, tuple[Account, ...]]:
    """By model, the accounts beside the key's own that pay for its requests; models without any are left out.

    `slot_of` is LimitStore.slot_of. Its digests are of texts that no API key can be: a header holds no NUL.
    """

    def account(whose: str, name: str, limits: LimitSettings) -> tuple[Account, ...]:
        if limits == LimitSettings():
            return ()
        digest = hashlib.sha256(name.encode()).digest()
        return (Account(whose, resolve(limits), slot_of(digest), digest),)

    total = account("This gateway", "\0total", settings.limits.total)
    limited = settings.limits.models
    found = {
        model.name: account(f"The model '{model.name}'", f"\0model\0{model.name}", limited[model.name])
        if model.name in limited
        else ()
        for model in settings.models
    }
    return {name: (*accounts, *total) for name, accounts in found.items() if accounts or total}
