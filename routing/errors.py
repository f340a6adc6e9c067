"""What can go wrong without any upstream's doing.

RoutingError
├── ModelNotFound      no model is served under that name      (not retryable)
├── RequestRejected    a rule of the configuration refuses it   (not retryable)
├── NotCapable         no upstream has what the request needs   (not retryable)
├── Overloaded         all upstreams are full, and so is the queue, or the wait is over
└── Unavailable        no upstream is up
    └── NoRoom         none can be started, for others have the memory

An upstream's own failures pass through as backends/errors.py has them. The client's status code is not this package's
business: gateway/errors.py holds the one table.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

# Longer names are cut in messages: whatever a client sends comes back to it in an error and may end up in a log.
_SHOWN_CHARACTERS = 128
_SHOWN_NAMES = 20
# Looking for a similar name costs 25 µs for each: not more than 2 ms of the event loop for a mistyped name.
_COMPARED_NAMES = 80


class RoutingError(Exception):
    """Base of everything in this module. `message` is meant for the client."""

    retryable = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ModelNotFound(RoutingError):
    """Nothing is served under `model`. `known` are the names that are, aliases included."""

    param = "model"

    def __init__(self, model: str, known: tuple[str, ...]) -> None:
        super().__init__(_not_found(model, known))
        self.model = model
        self.known = known


class RequestRejected(RoutingError):
    """A rule says `use: reject`."""

    def __init__(self, model: str) -> None:
        super().__init__(f"A rule of this gateway refuses such requests for the model {model!r}.")


class NotCapable(RoutingError):
    """No upstream of `model` has all features that the request uses. `lacking` says what each kind lacks of them."""

    def __init__(self, model: str, lacking: Mapping[str, frozenset[str]]) -> None:
        details = "; ".join(f"{kind} lacks {', '.join(sorted(features))}" for kind, features in lacking.items())
        super().__init__(f"No backend of the model {model!r} can serve this request: {details}.")
        self.lacking = lacking


class Overloaded(RoutingError):
    """`model` has as much work as it can take. `retry_after_seconds` is when that should have changed."""

    def __init__(self, model: str, retry_after_seconds: float) -> None:
        super().__init__(f"The model {model!r} has as much work as it can take.")
        self.retry_after_seconds = retry_after_seconds


class Unavailable(RoutingError):
    """Nothing that serves `model` is up. `retry_after_seconds` is when one is tried again, None where nobody knows."""

    why = "The model {model!r} is not available now; GET /readyz tells why."

    def __init__(self, model: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(self.why.format(model=model))
        self.retry_after_seconds = retry_after_seconds


class NoRoom(Unavailable):
    """What could serve `model` cannot be loaded beside the engines that are. When one of those goes nobody knows."""

    why = "There is no room in memory for the model {model!r} now; GET /readyz tells why."


def _not_found(model: str, known: tuple[str, ...]) -> str:
    shown = model if len(model) <= _SHOWN_CHARACTERS else model[:_SHOWN_CHARACTERS] + "..."
    text = f"The model {shown!a} does not exist."
    near = difflib.get_close_matches(shown, known[:_COMPARED_NAMES], n=1)
    if near:
        return f"{text} Did you mean {near[0]!r}?"
    if len(known) > _SHOWN_NAMES:
        return f"{text} GET /v1/models lists the {len(known)} names that do."
    return f"{text} Known: {', '.join(known)}."
