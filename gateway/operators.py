"""Which paths are for those who operate the gateway, and who may ask for them on which listener.

Neighbours: dataplane.py and admin.py, the two listeners; visitor.py (who asks).
"""

from __future__ import annotations

from config.auth import AuthSettings
from config.edge import AdminSettings
from config.schema import Settings
from gateway.entrance import Entrance
from gateway.errors import GatewayError, UnknownPath
from gateway.middleware import is_loopback
from gateway.visitor import Scope, check_key


def is_for_operators(path: str) -> bool:
    """Whether `path` tells or changes how the gateway is doing; health and version are anybody's."""
    return path in {"/metrics", "/admin"} or path.startswith("/admin/")


def check_on_main(settings: Settings, entrance: Entrance, scope: Scope) -> None:
    """What speaks against a request to such a path on the clients' listener: everything where operators have one of
    their own, a missing key of theirs where clients need one. On loopback too, for a reverse proxy may be there. Raises
    UnknownPath and what the entrance does."""
    if settings.admin is not None:
        raise UnknownPath("There is nothing at this path; the API starts at /v1.")
    if isinstance(settings.auth, AuthSettings):
        check_key(entrance, scope, "operators")


def check_on_theirs(admin: AdminSettings, settings: Settings, entrance: Entrance, scope: Scope) -> None:
    """The same on the operators' listener, which was opened by `admin`, whatever the `settings` of now would open:
    whoever reaches it on loopback is welcome. Raises what the entrance does."""
    if not is_loopback(admin.host) and isinstance(settings.auth, AuthSettings):
        check_key(entrance, scope, "operators")


def may_know_on_main(settings: Settings, entrance: Entrance, scope: Scope) -> bool:
    """Whether whoever asks the clients' listener for health may know of models and their failures. Where clients need a
    key, all but operators learn whether it is well and no more."""
    if not isinstance(settings.auth, AuthSettings):
        return True
    try:
        check_key(entrance, scope, "operators")
    except GatewayError:
        return False
    return True


def may_know_on_theirs(admin: AdminSettings, settings: Settings, entrance: Entrance, scope: Scope) -> bool:
    """The same on the operators' listener."""
    try:
        check_on_theirs(admin, settings, entrance, scope)
    except GatewayError:
        return False
    return True
