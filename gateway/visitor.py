"""Who sends a request that is no inference POST: the address, the key, and what its access line tells of both.

Neighbours: entrance.py (who comes in), operators.py and api/ (the callers), dataplane.py (writes the line).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from gateway.auth import Principal
from gateway.entrance import Entrance
from gateway.errors import GatewayError
from gateway.keysfile import Surface

# An ASGI scope with a `state`, which the fronts see to.
Scope = Mapping[str, Any]


def peer_of(scope: Scope) -> str:
    """The address of an ASGI request's connection, empty for a Unix socket."""
    client = scope.get("client")
    return client[0] if client else ""


def check_key(entrance: Entrance, scope: Scope, surface: Surface) -> None:
    """Raises what speaks against a request to `surface`: what `Entrance.principal` does."""
    with _noted(scope):
        _note(scope, entrance.principal(scope["headers"], peer_of(scope), surface))


async def admit(entrance: Entrance, scope: Scope, surface: Surface) -> Principal:
    """Who sends a request to `surface`. Raises what `Entrance.admit` does."""
    with _noted(scope):
        return _note(scope, await entrance.admit(scope["headers"], peer_of(scope), surface))


def key_of(scope: Scope) -> str:
    """The name of the key that was shown and is known, allowed or not; empty where none was asked for so far."""
    return str(scope["state"].get("key", ""))


def _note(scope: Scope, principal: Principal) -> Principal:
    scope["state"]["key"] = principal.name
    return principal


@contextlib.contextmanager
def _noted(scope: Scope) -> Iterator[None]:
    try:
        yield
    except GatewayError as error:
        scope["state"]["key"] = error.key
        raise
