"""Who is asking: the API key of a request becomes a Principal, with its models and its limits.

One SHA-256 and one dictionary lookup; the key itself is kept nowhere and repeated in no message. Neighbours:
keysfile.py (the entries), limits.py (the figures), ratelimit.py (counts by the principal's slot).
"""

from __future__ import annotations

import hashlib
import ipaddress as ip
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hmac import compare_digest
from typing import ClassVar

from config.auth import AuthSettings
from config.errors import ConfigError, Problem
from config.limits import LimitSettings
from config.schema import Settings
from gateway.errors import InvalidKey, ModelNotAllowed
from gateway.keys import is_intact, looks_like_token
from gateway.keysfile import ALL_SURFACES, CLIENT_SURFACES, KeyEntry, KeysFile, Surface, expiry
from gateway.keystore import store_of
from gateway.limits import Limits, resolve
from gateway.middleware import is_loopback
from gateway.slot import Slot

# Stands where the SHA-256 of a key would: no text has this hash, and no memory that nobody has written to.
ANONYMOUS = b"\xff" * 32
MAX_KEY_BYTES = 512
# Where a connection puts the names of its client's certificate. No header that is sent can have this name.
CERTIFICATE = b":certificate"


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever holds one key. `models` and `networks` are None where every model and address is allowed; `slot` is its
    place in the LimitStore."""

    name: str
    tier: str | None
    models: frozenset[str] | None
    limits: Limits
    slot: Slot
    expires_at: float | None = None
    whose: ClassVar[str] = "This API key"
    digest: bytes = field(default=ANONYMOUS, repr=False)
    networks: tuple[ip.IPv4Network | ip.IPv6Network, ...] | None = None
    surfaces: frozenset[Surface] = CLIENT_SURFACES

    def has_expired(self, now: Callable[[], float]) -> bool:
        """Whether its last moment is over; `now` gives seconds since 1970 and is asked only if there is one."""
        return self.expires_at is not None and now() >= self.expires_at


def salt_of(principal: Principal) -> str:
    """What parts its prompts from everybody else's in prefix caches: 64 hex digits, the same on every gateway, and not
    to be guessed from the key's name."""
    return hashlib.sha256(b"prefix cache\0%b\0%b" % (principal.digest, principal.name.encode())).hexdigest()


def keys_of(settings: Settings, before: KeysFile | None = None) -> KeysFile | None:
    """The keys that the settings name, read now; None where they name none. Of a store that holds nothing, or has lost
    everything, those of `before`. Raises ConfigError."""
    if not isinstance(settings.auth, AuthSettings):
        return None
    store = store_of(settings)
    return (store.load() if store is not None else None) or before or KeysFile()


def principals(settings: Settings, keys: KeysFile | None, slot_of: Callable[[bytes], Slot]) -> dict[bytes, Principal]:
    """Everybody who may come in, by the SHA-256 of their key; without `keys` the one entry ANONYMOUS.

    `slot_of` is LimitStore.slot_of, which may raise StoreFull. Raises ConfigError for a tier that the settings do not
    have.
    """
    if keys is None:
        limits = resolve(settings.limits.default)
        slot = slot_of(ANONYMOUS)
        return {ANONYMOUS: Principal("anonymous", None, None, limits, slot, surfaces=ALL_SURFACES)}
    check_tiers(settings, keys)
    names = {alias: model.name for model in settings.models for alias in model.aliases}
    found = {}
    for entry in keys.keys:
        digest = bytes.fromhex(entry.hash.removeprefix("sha256:"))
        found[digest] = _principal(settings, entry, names, digest, slot_of(digest))
    return found


def check_tiers(settings: Settings, keys: KeysFile) -> None:
    """Raises ConfigError for every key of a tier that the settings do not have."""
    tiers = settings.limits.tiers
    known = ", ".join(tiers) or "none"
    problems = [
        Problem(("keys", index, "tier"), f"there is no tier '{entry.tier}' in limits.tiers (known there: {known})")
        for index, entry in enumerate(keys.keys)
        if entry.tier is not None and entry.tier not in tiers
    ]
    if problems:
        source = settings.auth.keys_file if isinstance(settings.auth, AuthSettings) else None
        raise ConfigError(source or "keys", tuple(problems))


def _principal(settings: Settings, entry: KeyEntry, names: Mapping[str, str], digest: bytes, slot: Slot) -> Principal:
    tier = LimitSettings() if entry.tier is None else settings.limits.tiers[entry.tier]
    models = None if entry.models is None else frozenset(names.get(model, model) for model in entry.models)
    limits = resolve(entry.limits, tier, settings.limits.default)
    expires_at = None if entry.expires is None else expiry(entry.expires)
    networks = None if entry.addresses is None else tuple(map(ip.ip_network, entry.addresses))
    surfaces = CLIENT_SURFACES if entry.surfaces is None else frozenset(entry.surfaces)
    return Principal(entry.name, entry.tier, models, limits, slot, expires_at, digest, networks, surfaces)


Verify = Callable[[bytes, bytes], Principal]


class Authenticator:
    """Finds the principal of a request. `now` gives seconds since 1970; `certificates` are key names by the names in a
    client's certificate."""

    def __init__(
        self,
        principals: Mapping[bytes, Principal],
        now: Callable[[], float] = time.time,
        certificates: Mapping[str, str] | None = None,
    ) -> None:
        self._principals = principals
        self._now = now
        self._certificates = certificates or {}
        # Verifies a token, which comes with its SHA-256, where tokens may stand for keys.
        self.verify: Verify | None = None

    def replace(self, principals: Mapping[bytes, Principal]) -> None:
        """Other keys from the next request on; running requests keep what they have."""
        self._principals = principals

    def has_unguessable(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether the key in `headers` is one of ours as it was printed, known or not; or a client's certificate stands
        for it, or none is needed."""
        if ANONYMOUS in self._principals or CERTIFICATE in headers:
            return True
        try:
            key = _key(headers)
            return is_intact(key.decode("latin-1")) or (self.verify is not None and looks_like_token(key))
        except InvalidKey:
            return False

    def principal(self, headers: Mapping[bytes, bytes]) -> Principal:
        """Who sends these headers (names in lower case). Raises InvalidKey."""
        found = self._principals.get(ANONYMOUS)
        if found is not None:
            return found
        if CERTIFICATE in headers and b"authorization" not in headers and b"x-api-key" not in headers:
            found = self._by_certificate(headers[CERTIFICATE])
        else:
            key = _key(headers)
            digest = hashlib.sha256(key).digest()
            found = self._principals.get(digest)
            if found is None and self.verify is not None and looks_like_token(key):
                return self.verify(key, digest)
            if found is None or not compare_digest(found.digest, digest):
                raise InvalidKey(_what_is_wrong(key))
        if found.has_expired(self._now):
            raise InvalidKey("The API key has expired.", key=found.name)
        return found

    def knows(self, principal: Principal) -> bool:
        """Whether `principal` is still who it was: its key is there as it was and has not expired."""
        return self._principals.get(principal.digest) is principal and not principal.has_expired(self._now)

    def _by_certificate(self, names: bytes) -> Principal:
        keys = {self._certificates[name] for name in names.decode().split("\n") if name in self._certificates}
        found = [principal for principal in self._principals.values() if principal.name in keys]
        if len(found) != 1:
            raise InvalidKey("The client certificate stands for no API key, and none was sent.")
        return found[0]


def check_keys(settings: Settings) -> None:
    """Raises ConfigError where the keys that the settings name could not be used."""
    keys = keys_of(settings)
    if keys is not None:
        check_tiers(settings, keys)


def check_repeated(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Raises InvalidKey where a header that may hold a key is there twice: two readers could take different ones."""
    names = [name for name, _ in headers]
    if names.count(b"authorization") > 1 or names.count(b"x-api-key") > 1:
        raise InvalidKey("The header with the API key is there more than once.")


def check_model(principal: Principal, model: str) -> None:
    """Raises ModelNotAllowed. `model` is the configured name, not an alias."""
    if principal.models is not None and model not in principal.models:
        raise ModelNotAllowed(f"This API key does not cover the model '{model}'.", param="model")


def _key(headers: Mapping[bytes, bytes]) -> bytes:
    """The key of a request. Two that differ are refused: another reader of the request could take the other one."""
    key = headers.get(b"x-api-key")
    authorization = headers.get(b"authorization")
    if authorization is not None and key is None and authorization.startswith(b"Bearer "):
        key = authorization[7:].strip()  # as nearly always
    elif authorization is not None:
        if authorization[:7].lower() != b"bearer ":
            raise InvalidKey("The Authorization header should be `Bearer` and an API key.")
        bearer = authorization[7:].strip()
        if key is not None and key != bearer:
            raise InvalidKey("Authorization and x-api-key hold different API keys.")
        key = bearer
    if not key:
        raise InvalidKey("An API key is needed: send the header `Authorization: Bearer KEY`.")
    if len(key) > MAX_KEY_BYTES and not looks_like_token(key):
        raise InvalidKey("The API key is not valid.")
    return key


def _what_is_wrong(key: bytes) -> str:
    # The checksum is no secret: whoever can guess a key with a right one has still guessed nothing.
    text = key.decode("latin-1")
    if text.startswith("up-") and not is_intact(text):
        return "The API key is not valid: it is incomplete or mistyped."
    return "The API key is not valid."


def check_exposure(settings: Settings) -> str | None:
    """Why these settings must not be served, and what to do about it; None where nothing speaks against them."""
    hosts = [settings.server.host, *([settings.admin.host] if settings.admin is not None else [])]
    host = next((host for host in hosts if not is_loopback(host)), None)
    if settings.auth is not None or host is None:
        return None
    return (
        f"{host} is reachable from other machines and there are no API keys. Make one with `upshift keys add NAME "
        "--file keys.yaml` and serve with `--auth keys.yaml` (auth: {keys_file: keys.yaml}), or with `--auth none` "
        "(auth: none) if whoever reaches it may use it"
    )
