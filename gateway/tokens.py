"""Tokens of an identity provider: a JSON Web Token becomes a Principal, by the provider's current keys.

The only module that imports PyJWT. What a token says of how it should be verified (`alg`, `jku`, `x5u`, `jwk`) decides
nothing. Neighbours: issuer.py (fetches the keys), auth.py (asks), config/auth.py (the settings).
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import jwt

from config.auth import JwtSettings
from config.limits import LimitSettings
from config.schema import Settings
from gateway.auth import Principal
from gateway.errors import InvalidKey, LimitsUnavailable, SignerUnknown
from gateway.limits import resolve
from gateway.ratelimit_store import StoreFull
from gateway.slot import Slot

MAX_TOKEN_BYTES = 8192
# The gateway's clock and the provider's may differ by so much.
LEEWAY_SECONDS = 30
# Verified tokens that need no second look: a signature costs 50 times what a lookup does.
MAX_KNOWN = 4096

logger = logging.getLogger("upshift")

_INVALID = "The token is not valid"
_UNSAFE = re.compile(r"[^A-Za-z0-9._@+-]")


class Tokens:
    """Verifies tokens of the issuer that `about` tells of, whose keys are given by `use`. `slot_of` is
    LimitStore.slot_of; `now` gives seconds since 1970."""

    def __init__(
        self,
        settings: Settings,
        about: JwtSettings,
        slot_of: Callable[[bytes], Slot],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._about = about
        self._slot_of = slot_of
        self._now = now
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._known: dict[bytes, Principal] = {}

    def use(self, document: Mapping[str, Any]) -> int:
        """Takes the keys of a JWKS document in place of those before, and forgets tokens that others have signed.
        Returns how many can be used."""
        keys: dict[str | None, jwt.PyJWK] = {}
        listed = document.get("keys")
        for entry in listed if isinstance(listed, list) else ():
            if not isinstance(entry, dict) or entry.get("use", "sig") != "sig" or entry.get("kty") == "oct":
                continue
            try:
                keys[entry.get("kid")] = jwt.PyJWK.from_dict(entry)
            except jwt.PyJWTError:
                continue  # of a kind that we do not know
        self._keys = keys
        self._known.clear()
        return len(keys)

    def take_over(self, before: Tokens) -> bool:
        """Goes on with the keys of `before`; False where it has none. What its tokens stood for is not taken over."""
        self._keys = before._keys
        return bool(self._keys)

    def principal(self, token: bytes, digest: bytes) -> Principal:
        """Whom `token`, whose SHA-256 is `digest`, stands for. Raises InvalidKey, SignerUnknown where the issuer's
        newest keys might know better, and LimitsUnavailable where there is no place to count for one more."""
        found = self._known.get(digest)
        if found is None:
            found = self._principal(self._claims(token))
            while len(self._known) >= MAX_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[digest] = found
        if found.has_expired(self._now):
            raise InvalidKey("The token has expired.", key=found.name)
        return found

    def _claims(self, token: bytes) -> Mapping[str, Any]:
        if len(token) > MAX_TOKEN_BYTES:
            raise InvalidKey(f"{_INVALID}: it is longer than {MAX_TOKEN_BYTES} bytes.")
        try:
            header = jwt.get_unverified_header(token)
            key = self._key(header)
            claims: dict[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=[str(header["alg"])],
                audience=self._about.audience,
                issuer=self._about.issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise InvalidKey(f"{_INVALID} ({type(error).__name__}).") from None
        return claims

    def _key(self, header: Mapping[str, Any]) -> jwt.PyJWK:
        """The issuer's key for a token with this header, whose `alg` is one of ours and of the key's kind."""
        algorithm, name = header.get("alg"), header.get("kid")
        if algorithm not in self._about.algorithms or "crit" in header:
            raise InvalidKey(f"{_INVALID}: it is signed in a way that is not accepted.")
        if name is None and len(self._keys) == 1:
            key = next(iter(self._keys.values()))
        else:
            found = self._keys.get(name if isinstance(name, str) else None)
            if found is None:
                raise SignerUnknown(f"{_INVALID}: the key that signed it is none of the issuer's.")
            key = found
        if not _fits(str(algorithm), key):
            raise InvalidKey(f"{_INVALID}: it is signed in a way that its key is not for.")
        return key

    def _principal(self, claims: Mapping[str, Any]) -> Principal:
        about, settings = self._about, self._settings
        subject = claims["sub"]
        name = claims.get(about.name_claim, subject)
        if not isinstance(subject, str) or not subject or not isinstance(name, str) or not name:
            raise InvalidKey(f"{_INVALID}: `sub` or `{about.name_claim}` is no text.")
        tier = claims.get(about.tier_claim) if about.tier_claim is not None else None
        if tier is not None and (not isinstance(tier, str) or tier not in settings.limits.tiers):
            raise InvalidKey(f"{_INVALID}: its tier is not known here.")
        limits = resolve(settings.limits.tiers[tier] if tier is not None else LimitSettings(), settings.limits.default)
        digest = hashlib.sha256(f"\0jwt\0{about.issuer}\0{subject}".encode()).digest()
        expires_at = float(claims["exp"]) + LEEWAY_SECONDS
        # In the log it stands beside names that are words of the configuration.
        shown = _UNSAFE.sub("_", name)[:64]
        try:
            slot = self._slot_of(digest)
        except StoreFull as error:
            logger.error("a token's limits cannot be counted: %s", error)
            raise LimitsUnavailable("The limits of this token cannot be counted now.") from None
        return Principal(shown, tier, self._models(claims), limits, slot, expires_at, digest)

    def _models(self, claims: Mapping[str, Any]) -> frozenset[str] | None:
        if self._about.models_claim is None:
            return None
        listed = claims.get(self._about.models_claim, [])
        words = listed.split() if isinstance(listed, str) else listed
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise InvalidKey(f"{_INVALID}: `{self._about.models_claim}` is no list of models.")
        names = {alias: model.name for model in self._settings.models for alias in model.aliases}
        return frozenset(names.get(word, word) for word in words)


def _fits(algorithm: str, key: jwt.PyJWK) -> bool:
    """Whether a key of this kind signs in this way; one that names an algorithm does so in that way alone."""
    kinds = {"R": "RSA", "P": "RSA", "E": "OKP" if algorithm == "EdDSA" else "EC"}
    return key.key_type == kinds[algorithm[0]] and (key.algorithm_name == algorithm or not _names_algorithm(key))


def _names_algorithm(key: jwt.PyJWK) -> bool:
    return "alg" in key._jwk_data
