"""How fast an upstream has been lately: moving averages of what its answers took. Pure.

Neighbours: upstream.py (keeps one), prediction.py (predicts with it), router.py (measures).
"""

from __future__ import annotations

from math import log, sqrt
from typing import NamedTuple

# A new measurement counts this much. Ten answers later the old picture is a third of the average.
_WEIGHT = 0.1


class Crowd(NamedTuple):
    """What answers take in crowds of about `size` requests: seconds to the first token and between tokens (to the end,
    and 0.0, where none was a stream). One that is `guessed` goes by those that were measured."""

    size: float
    first_token_seconds: float
    inter_token_seconds: float
    guessed: bool = False


# From so many requests on all count as one crowd.
_LARGE = 2048


class Pace(NamedTuple):
    """Seconds, None while nothing was measured: from dispatch to the first token of a stream, between tokens, and from
    dispatch to the end of an answer; `measured_at` is `time.perf_counter()`. `crowds`, empty before that, has it by how
    many requests were there: at index n of those from 2 ** (n - 1) on to less than twice as many. What an engine does
    under load says little about what it does without.
    """

    first_token_seconds: float | None = None
    inter_token_seconds: float | None = None
    service_seconds: float | None = None
    measured_at: float = 0.0
    crowds: tuple[Crowd, ...] = ()

    def with_answer(
        self, now: float, service_seconds: float, first_token_seconds: float | None, tokens: int, in_flight: int = 1
    ) -> Pace:
        """After one more whole answer, which was one of up to `in_flight`; 0 where that says nothing about this engine
        alone. Only streams have `first_token_seconds` and `tokens`."""
        first, between, service, measured_at, crowds = self
        service = service_seconds if service is None else service + _WEIGHT * (service_seconds - service)
        pause = 0.0
        if first_token_seconds is not None:
            first = first_token_seconds if first is None else first + _WEIGHT * (first_token_seconds - first)
            if tokens > 1:
                pause = (service_seconds - first_token_seconds) / (tokens - 1)
                between = pause if between is None else between + _WEIGHT * (pause - between)
        if in_flight:
            begins = service_seconds if first_token_seconds is None else first_token_seconds
            # Guessing takes as long as a few decisions.
            crowds = _counted(crowds, in_flight, begins, pause, guess=int(now) != int(measured_at))
        return _new(Pace, (first, between, service, now, crowds))

    def in_crowd(self, requests: int) -> tuple[float, float]:
        """Seconds to the first token and between tokens that are to be expected with so many requests there; 0.0 where
        nothing is known."""
        if not self.crowds:
            return 0.0, 0.0
        size, first, between, _ = self.crowds[_index_of(requests)]
        factor = sqrt(requests / size)
        return first * factor, between * factor


def _counted(
    crowds: tuple[Crowd, ...], in_flight: int, first_seconds: float, pause: float, *, guess: bool
) -> tuple[Crowd, ...]:
    index = _index_of(in_flight)
    before = crowds[index] if crowds else None
    if before is None or before.guessed:
        return _with_guesses({**_measured(crowds), index: Crowd(float(in_flight), first_seconds, pause)})
    size, first, between, _ = before
    size += _WEIGHT * (in_flight - size)
    first += _WEIGHT * (first_seconds - first)
    between += _WEIGHT * (pause - between)
    crowd = _new(Crowd, (size, first, between, False))
    if guess:
        return _with_guesses({**_measured(crowds), index: crowd})
    return (*crowds[:index], crowd, *crowds[index + 1 :])


def _index_of(requests: int) -> int:
    return requests.bit_length() if requests < _LARGE else _LARGE.bit_length()


def _measured(crowds: tuple[Crowd, ...]) -> dict[int, Crowd]:
    return {index: crowd for index, crowd in enumerate(crowds) if not crowd.guessed}


def _with_guesses(measured: dict[int, Crowd]) -> tuple[Crowd, ...]:
    return tuple(measured.get(index) or _guess(index, measured) for index in range(_LARGE.bit_length() + 1))


def _guess(index: int, measured: dict[int, Crowd]) -> Crowd:
    """By the crowds most like that one, as far as they differ. By a single one, as the third root of a larger
    crowd and the root of a smaller one, as in an engine that computes many at once: whoever thinks worse of one than
    it is never finds out."""
    size = 0.75 * 2**index
    near, *others = sorted(measured, key=lambda number: (abs(number - index), number))
    crowd = measured[near]
    power = 1 / 3 if size > crowd.size else 1 / 2
    if others:
        other = measured[others[0]]
        took, took_there = (each.first_token_seconds + each.inter_token_seconds for each in (crowd, other))
        if took > 0 and took_there > 0 and crowd.size != other.size:
            power = min(max((log(took) - log(took_there)) / log(crowd.size / other.size), 0.0), 1.0)
    factor = (size / crowd.size) ** power
    first, between = crowd.first_token_seconds * factor, crowd.inter_token_seconds * factor
    return Crowd(size, first, between, guessed=True)


# What the constructor does, in a third of the time; this is done for each answer.
_new = tuple.__new__
