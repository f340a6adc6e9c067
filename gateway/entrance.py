"""Who comes in, with which key, from where, to what: the one way in for requests of every kind.

Neighbours: auth.py (keys), address.py (whose address), guesses.py (who has to wait), door.py and operators.py (the
callers).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gateway.address import ClientAddress
from gateway.auth import Authenticator, Principal, check_repeated
from gateway.errors import AddressNotAllowed, InvalidKey, SignerUnknown, SurfaceNotAllowed
from gateway.guesses import Guesses
from gateway.keysfile import Surface

if TYPE_CHECKING:
    from gateway.issuer import Issuer

Fields = Sequence[tuple[bytes, bytes]]

# What to do about a key that does not cover a surface.
_HINTS: Mapping[Surface, str] = {
    "operators": "; make one that does with `upshift keys add prometheus --surfaces operators`"
}


class Entrance:
    """`authenticator` knows the keys, `issuer` has those of its tokens; `addresses` tells clients behind trusted
    proxies apart."""

    def __init__(
        self,
        authenticator: Authenticator,
        addresses: ClientAddress,
        guesses: Guesses,
        issuer: Issuer | None = None,
    ) -> None:
        self.authenticator = authenticator
        self._issuer = issuer
        self._addresses = addresses
        self._guesses = guesses

    def principal(
        self, fields: Fields, peer: str, surface: Surface, headers: Mapping[bytes, bytes] | None = None
    ) -> Principal:
        """Who sends a request with the header `fields` (`headers` as a mapping, where the caller has one and none is
        repeated) over a connection from `peer` to `surface`.

        Raises InvalidKey, TooManyGuesses, AddressNotAllowed and SurfaceNotAllowed.
        """
        if headers is None:
            check_repeated(fields)
            headers = dict(fields)
        if self._guesses and not self.authenticator.has_unguessable(headers):
            self._guesses.check(self._addresses.of(peer, fields))
        try:
            found = self.authenticator.principal(headers)
        except SignerUnknown:
            raise
        except InvalidKey:
            if b"authorization" in headers or b"x-api-key" in headers:
                self._guesses.failed(self._addresses.of(peer, fields))
            raise
        if found.networks is not None:
            _check_address(found, self._addresses.of(peer, fields))
        if surface not in found.surfaces:
            hint = _HINTS.get(surface, "")
            raise SurfaceNotAllowed(f"This API key does not cover the surface '{surface}'{hint}.", key=found.name)
        return found

    def knows(self, principal: Principal) -> bool:
        """Whether somebody found here before would be found again. Who has been let in is not guessing."""
        return self.authenticator.knows(principal)

    def is_proxy(self, peer: str) -> bool:
        """Whether connections from `peer` are many clients'."""
        return self._addresses.trusts(peer)

    async def admit(self, fields: Fields, peer: str, surface: Surface) -> Principal:
        """The same; where a token names a key that its issuer may have since a moment, it is asked before."""
        try:
            return self.principal(fields, peer, surface)
        except SignerUnknown:
            if self._issuer is None:
                raise
            await self._issuer.refresh()
            return self.principal(fields, peer, surface)


def _check_address(principal: Principal, text: str) -> None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:  # a Unix socket has none
        address = None
    if address is None or not any(address in network for network in principal.networks or ()):
        raise AddressNotAllowed("This API key may not be used from this address.", key=principal.name)
