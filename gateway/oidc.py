"""Whether tokens of an identity provider are asked for, and with what: PyJWT is loaded only where they are.

Neighbours: issuer.py and tokens.py (what is built), gateway.py (the caller).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from config.auth import AuthSettings
from config.errors import ConfigError, Problem
from config.schema import Settings
from gateway.slot import Slot

if TYPE_CHECKING:
    from gateway.issuer import Issuer


def issuer_of(settings: Settings, slot_of: Callable[[bytes], Slot], before: Issuer | None = None) -> Issuer | None:
    """The issuer that the settings name, if any, with the keys that the one `before` has, if it is the same. `slot_of`
    is LimitStore.slot_of. Raises ConfigError where PyJWT is not installed."""
    if not isinstance(settings.auth, AuthSettings) or settings.auth.jwt is None:
        return None
    try:
        from gateway.issuer import Issuer  # noqa: PLC0415 - an extra
        from gateway.tokens import Tokens  # noqa: PLC0415
    except ImportError as error:
        problem = Problem(("auth", "jwt"), "needs PyJWT: pip install 'upshift[oidc]'")
        raise ConfigError("settings", (problem,)) from error
    return Issuer(settings.auth.jwt, Tokens(settings, settings.auth.jwt, slot_of), before)
