"""The life of a launched engine as a table, how long it waits for its next start, and what can be said of it at one
moment. Pure: no clock, no process.

Neighbours: process.py (EngineProcess), which tells what happened and does what follows; borrowed.py, which is told.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from backends.base import BackendState

FIRST_DELAY_SECONDS = 0.5
MAX_DELAY_SECONDS = 30.0
# Ready for this long means that the last trouble is over: the next one starts with the short delay again.
STEADY_SECONDS = 60.0
# An engine that was never ready and ends by a signal (killed by hand, or for memory) gets this many starts in all.
MAX_FIRST_STARTS = 3

# Engines end with these where trying again cannot help: the model does not load, the arguments are wrong.
REFUSED = 2
_REFUSALS = (1, REFUSED)


class Event(StrEnum):
    """What can happen to an engine."""

    START = "start"
    BECAME_READY = "became_ready"
    EXITED = "exited"
    DRAIN = "drain"
    STOPPED = "stopped"


TRANSITIONS: dict[tuple[BackendState, Event], BackendState] = {
    (BackendState.STOPPED, Event.START): BackendState.STARTING,
    (BackendState.STOPPED, Event.DRAIN): BackendState.DRAINING,  # one that kept its process while it slept
    (BackendState.FAILED, Event.START): BackendState.STARTING,
    (BackendState.STARTING, Event.BECAME_READY): BackendState.READY,
    (BackendState.STARTING, Event.EXITED): BackendState.FAILED,
    (BackendState.READY, Event.EXITED): BackendState.FAILED,
    (BackendState.STARTING, Event.DRAIN): BackendState.DRAINING,
    (BackendState.READY, Event.DRAIN): BackendState.DRAINING,
    (BackendState.FAILED, Event.DRAIN): BackendState.DRAINING,
    (BackendState.DRAINING, Event.STOPPED): BackendState.STOPPED,
}


class InvalidTransition(Exception):
    """Something happened that cannot happen in this state: a mistake of the caller."""


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What callers of an engine know of it. Plain values: with more than one worker it crosses to other processes.

    `address` is as HttpClient takes it and fixed for the engine's life; `progress` is the loading of the model from 0.0
    to 1.0; `failure` says in one line why it is FAILED; `restarts` how often it had to be started again; `asleep` that
    it was stopped for want of requests, or is being started after that; `warning` what is known to be wrong with its
    version; `refused` that it is FAILED for want of memory beside the other engines.
    """

    address: str
    state: BackendState
    progress: float = 0.0
    failure: str = ""
    restarts: int = 0
    asleep: bool = False
    warning: str = ""
    refused: bool = False


def going_to_sleep(status: EngineStatus) -> EngineStatus:
    """`status` of an engine that gets no more requests because it is about to sleep."""
    return replace(status, state=BackendState.DRAINING, asleep=True)


@dataclass(slots=True)
class Lifecycle:
    """State, starts and restart delays of one engine. `starts` counts since it was last STOPPED."""

    state: BackendState = BackendState.STOPPED
    starts: int = 0
    was_ready: bool = False
    _delay_seconds: float = FIRST_DELAY_SECONDS

    def on(self, event: Event) -> BackendState:
        """Moves to the state that follows and returns it. Raises InvalidTransition and stays where it was."""
        following = TRANSITIONS.get((self.state, event))
        if following is None:
            raise InvalidTransition(f"{event} while {self.state}")
        if event is Event.STOPPED:
            # `was_ready` stays: one that is started again on demand has a model that is known to load.
            self.starts = 0
            self._delay_seconds = FIRST_DELAY_SECONDS
        self.starts += event is Event.START
        self.was_ready |= event is Event.BECAME_READY
        self.state = following
        return following

    def restart_delay_seconds(self, exit_code: int | None, ready_seconds: float) -> float | None:
        """How long a FAILED engine waits for its next start; None: for ever, for trying again would not help.

        `exit_code` is negative for a signal, as in subprocess, and None if no process came to be; `ready_seconds` is
        how long it was READY before. Once it has been ready, it is always started again: its model is known to load.
        """
        if not self.was_ready and (exit_code in _REFUSALS or self.starts >= MAX_FIRST_STARTS):
            return None
        if ready_seconds >= STEADY_SECONDS:
            self._delay_seconds = FIRST_DELAY_SECONDS
        delay_seconds = self._delay_seconds
        self._delay_seconds = min(2 * delay_seconds, MAX_DELAY_SECONDS)
        return delay_seconds
