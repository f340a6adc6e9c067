"""Which engines may load into the memory there is, and which have to yield for them. Pure: sizes and states in, indices
out.

Neighbours: residency.py (does what this says), claim.py (the sizes).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from backends.fit import MEMORY, Claim, gib

# One that was used so recently may get its next request at any moment; one that has just loaded has not had any yet.
LEAST_IDLE_SECONDS = 1.0


class Standing(Enum):
    """Where an engine is on its way into memory."""

    ASKS = auto()
    LOADS = auto()
    LOADED = auto()


@dataclass(frozen=True, slots=True)
class Occupant:
    """One engine. `yields` says whether it may be put to sleep for others, `idle_seconds` how long it has had nothing
    to do."""

    name: str
    claim: Claim
    standing: Standing
    yields: bool = False
    idle_seconds: float = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether it can be put to sleep now."""
        return self.yields and self.idle_seconds >= LEAST_IDLE_SECONDS


@dataclass(frozen=True, slots=True)
class Ruling:
    """By index: who of those that ask may load now, and who has to be put to sleep first; why the others wait, and why
    those that are `refused` need not."""

    start: tuple[int, ...] = ()
    sleep: tuple[int, ...] = ()
    waiting: Mapping[int, str] = field(default_factory=dict)
    refused: Mapping[int, str] = field(default_factory=dict)


def rule(occupants: Sequence[Occupant], free: Mapping[str, int]) -> Ruling:
    """What follows from what is `free` now, in bytes by place.

    Those that ask are served in their order. One that waits keeps what is free for itself: smaller ones behind it would
    overtake it for ever. What one takes that is loading is known once it has loaded: until then whoever does not fit
    beside it waits. One that would not fit if it were alone is started when all have yielded that can: the estimate may
    be wrong, and the engine itself says better what it lacks.
    """
    left = dict(free)
    unsettled: set[str] = set()
    for one in occupants:
        if one.standing is Standing.LOADS:
            _take(left, one.claim)
            unsettled |= one.claim.sizes.keys()
        elif one.standing is Standing.LOADED:
            left[MEMORY] = left.get(MEMORY, 0) - one.claim.unseen
    loaded = [index for index, one in enumerate(occupants) if one.standing is Standing.LOADED]
    start: list[int] = []
    sleep: list[int] = []
    waiting: dict[int, str] = {}
    refused: dict[int, str] = {}
    for index, one in enumerate(occupants):
        if one.standing is not Standing.ASKS:
            continue
        lacking = {place: size - left.get(place, 0) for place, size in one.claim.sizes.items()}
        lacking = {place: size for place, size in lacking.items() if size > 0}
        others = {other: occupants[other] for other in loaded if other not in sleep}
        verdict = _WAIT if not unsettled.isdisjoint(lacking) else _verdict(lacking, others)
        if verdict.refusal:
            refused[index] = _needs(one.claim, lacking, left) + verdict.refusal
            continue
        if verdict.starts:
            start.append(index)
        else:
            waiting[index] = _needs(one.claim, lacking, left)
        sleep += verdict.sleep
        _take(left, one.claim)
        unsettled |= one.claim.sizes.keys()
    return Ruling(tuple(start), tuple(sleep), waiting, refused)


@dataclass(frozen=True, slots=True)
class _Verdict:
    starts: bool = False
    sleep: tuple[int, ...] = ()
    refusal: str = ""


_WAIT, _START = _Verdict(), _Verdict(starts=True)


def _verdict(lacking: Mapping[str, int], loaded: Mapping[int, Occupant]) -> _Verdict:
    """About one that lacks so much in places where nobody loads; `loaded` are those that might go."""
    if not lacking:
        return _START
    here = {index: one for index, one in loaded.items() if not lacking.keys().isdisjoint(one.claim.sizes)}
    idle = sorted((index for index, one in here.items() if one.is_idle), key=lambda index: -here[index].idle_seconds)
    if _enough(lacking, (here[index] for index in idle)):
        return _Verdict(sleep=_fewest(lacking, idle, here))
    yielding = [one for one in here.values() if one.yields]
    if _enough(lacking, yielding):
        return _WAIT
    if _enough(lacking, here.values()):
        return _Verdict(refusal=_advice(lacking, [one for one in here.values() if not one.yields]))
    if idle:
        return _Verdict(sleep=tuple(idle))
    return _WAIT if yielding else _START


def _take(left: dict[str, int], claim: Claim) -> None:
    for place, size in claim.sizes.items():
        left[place] = left.get(place, 0) - size


def _enough(lacking: Mapping[str, int], gone: Iterable[Occupant]) -> bool:
    freed = [one.claim.sizes for one in gone]
    return all(sum(sizes.get(place, 0) for sizes in freed) >= size for place, size in lacking.items())


def _fewest(lacking: Mapping[str, int], idle: Sequence[int], here: Mapping[int, Occupant]) -> tuple[int, ...]:
    """Of `idle`, who are enough, none too many. Who was idle for longest goes first."""
    chosen = list(idle)
    for index in reversed(idle):
        others = [other for other in chosen if other != index]
        if _enough(lacking, (here[other] for other in others)):
            chosen = others
    return tuple(chosen)


def _needs(claim: Claim, lacking: Mapping[str, int], left: Mapping[str, int]) -> str:
    free = {place: max(left.get(place, 0), 0) for place in lacking}
    return f"it needs {_sizes(claim.sizes, lacking)}, and {_sizes(free, lacking)} is free"


def _advice(lacking: Mapping[str, int], stay: Sequence[Occupant]) -> str:
    names = " and ".join(f"{one.name} ({_sizes(one.claim.sizes, lacking)})" for one in stay)
    return f" beside {names}, without idle_stop_seconds: with it that would yield while it has nothing to do"


def _sizes(sizes: Mapping[str, int], places: Iterable[str]) -> str:
    shown = ((sizes.get(place, 0), "" if place == MEMORY else f" on {place}") for place in places)
    return " and ".join(f"{gib(size)}{where}" for size, where in shown)
