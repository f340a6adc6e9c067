"""What one key may take, as numbers: the settings of key, tier and default resolved into one.

Neighbours: config/schema.py (the settings), auth.py (resolves them), ratelimit.py (enforces them).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from config.schema import LimitSettings


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits in force; None is no limit. `header_template` has the place of two values per limited kind;
    `counts_nothing` tells that no counter has to be kept."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None
    max_tokens_per_request: int | None = None
    header_template: bytes = field(init=False, repr=False, compare=False)
    counts_nothing: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        kinds = (("requests", self.requests_per_minute), ("tokens", self.tokens_per_minute))
        lines = [_template(kind, limit) for kind, limit in kinds if limit is not None]
        object.__setattr__(self, "header_template", b"".join(lines))
        object.__setattr__(self, "counts_nothing", not lines and self.concurrent is None)


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
