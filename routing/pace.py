"""How fast an upstream has been lately: moving averages of what its answers took. Pure.

Neighbours: upstream.py (keeps one), prediction.py (predicts with it), router.py (measures).
"""

from __future__ import annotations

from math import log, sqrt
from typing import NamedTuple

# A new measurement counts this much. Ten answers later the old picture is a third of the average.
_WEIGHT = 0.1
# In the steady average of a crowd all that are there at once count this much together: whatever else keeps the machine
# busy for a moment, all of them meet it. Less if they took less than 0.15 s, for the next ones will meet it, too.
_STEADY_WEIGHT = 0.05
_STEADY_SECONDS = 3.0
# So many answers are a round of a larger crowd too: one that grows for ever would not be known before it is over.
_ROUND = 32.0
# Older measurements of a crowd, and from so many answers ago, count for nothing beside a new one.
_ANEW_SECONDS = 300.0
_ANEW_ANSWERS = 30.0


class Crowd(NamedTuple):
    """What answers take in crowds of about `size` requests: seconds to the first token and between tokens (to the end,
    and 0.0, where none was a stream), by so many `answers` up to `measured_at`. Without any it is a guess of that
    moment by crowds that were measured."""

    size: float
    first_token_seconds: float
    inter_token_seconds: float
    measured_at: float = 0.0
    answers: int = 0

    @property
    def round_answers(self) -> float:
        """So many are a round: one for each that is there."""
        return min(self.size, _ROUND)


UNKNOWN = Crowd(1.0, 0.0, 0.0)
# From so many requests on all count as one crowd.
_LARGE = 2048
_CROWDS = _LARGE.bit_length() + 1


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
        self,
        now: float,
        service_seconds: float,
        first_token_seconds: float | None,
        tokens: int,
        in_flight: int = 1,
        *,
        steady: bool = False,
    ) -> Pace:
        """After one more whole answer, which was one of up to `in_flight`; 0 where that says nothing about this engine
        alone. Only streams have `first_token_seconds` and `tokens`. What crowds take follows the moment, unless it is
        to be `steady`."""
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
            answer = _new(Crowd, (float(in_flight), begins, pause, now, 1))
            weight = min(_STEADY_WEIGHT, service_seconds / _STEADY_SECONDS) / in_flight if steady else _WEIGHT
            # Guessing takes as long as a few decisions.
            guess = int(now) != int(measured_at)
            stale = now - max(_ANEW_SECONDS, _ANEW_ANSWERS * service)
            crowds = _counted(crowds, answer, weight, stale, steady=steady, guess=guess)
        return _new(Pace, (first, between, service, now, crowds))

    def in_crowd(self, requests: int) -> Crowd:
        """What is to be expected with so many requests there; 0.0 seconds where nothing is known."""
        if not self.crowds:
            return UNKNOWN
        size, first, between, measured_at, answers = self.crowds[_index_of(requests)]
        factor = sqrt(requests / size)
        return _new(Crowd, (size, first * factor, between * factor, measured_at, answers))


def _counted(
    crowds: tuple[Crowd, ...], answer: Crowd, weight: float, stale: float, *, steady: bool, guess: bool
) -> tuple[Crowd, ...]:
    """With one more `answer`, which counts as much as `weight` or as each of the first ones since `stale`; and the
    crowds that were not measured guessed again if that is wanted. A steady average forgets the first round of answers:
    they came while the crowd grew, or while the engine woke up to it."""
    in_flight, first_seconds, pause, now, _ = answer
    index = _index_of(int(in_flight))
    if not crowds:
        return _with_guesses({index: answer}, (), now)
    size, first, between, measured_at, answers = crowds[index]
    if answers == 0 or measured_at < stale:
        answers, guess = 0, True
    alike = max(answers - crowds[index].round_answers, 0) if steady else answers
    weight = max(1 / (alike + 1), weight)
    size += weight * (in_flight - size)
    first += weight * (first_seconds - first)
    between += weight * (pause - between)
    crowd = _new(Crowd, (size, first, between, now, answers + 1))
    if guess:
        return _with_guesses({**_measured(crowds), index: crowd}, crowds, now)
    return (*crowds[:index], crowd, *crowds[index + 1 :])


def _index_of(requests: int) -> int:
    return requests.bit_length() if requests < _LARGE else _LARGE.bit_length()


def _measured(crowds: tuple[Crowd, ...]) -> dict[int, Crowd]:
    return {index: crowd for index, crowd in enumerate(crowds) if crowd.answers}


def _with_guesses(measured: dict[int, Crowd], before: tuple[Crowd, ...], now: float) -> tuple[Crowd, ...]:
    """All crowds. A guess that is made again is as old as the first one: it was not tried."""
    since = [crowd.measured_at for crowd in before] or [now] * _CROWDS
    return tuple(measured.get(index) or _guess(index, measured, since[index]) for index in range(_CROWDS))


def _guess(index: int, measured: dict[int, Crowd], since: float) -> Crowd:
    """By the two crowds most like that one, or by a single one where no two are of clearly different size: how two of
    hardly different size differ says nothing."""
    size = 0.75 * 2**index if index > 1 else 1.0
    near, *others = (measured[number] for number in sorted(measured, key=lambda number: (abs(number - index), number)))
    other = next((crowd for crowd in others if not 2 / 3 < crowd.size / near.size < 3 / 2), near)
    sizes = size, near.size, other.size
    first = _extended(near.first_token_seconds, other.first_token_seconds, *sizes)
    return Crowd(size, first, _extended(near.inter_token_seconds, other.inter_token_seconds, *sizes), since)


def _extended(seconds: float, others_seconds: float, size: float, near: float, other: float) -> float:
    """What takes so long in crowds of `near` and `other`, in one of `size`."""
    ratio = size / near
    if seconds <= 0 or others_seconds <= 0 or near == other:
        # As in an engine that computes many at once: whoever thinks worse of one than it is never finds out.
        power = 1 / 3 if ratio > 1 else 1 / 2
    elif size < min(near, other):
        # A turn has a part that it takes for any number and a part for each.
        each = (others_seconds - seconds) / (other - near)
        return seconds * min(max(1 + each / seconds * (size - near), ratio), 1.0)
    else:
        power = min(max((log(others_seconds) - log(seconds)) / log(other / near), 0.0), 1.0)
    return float(seconds * ratio**power)


# What the constructor does, in a third of the time; this is done for each answer.
_new = tuple.__new__
