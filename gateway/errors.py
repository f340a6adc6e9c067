"""The one table from what went wrong to what the client is told, and the gateway's own errors.

GatewayError
├── InvalidBody            not the JSON object it should be; `param` names the field
├── UnsupportedMedia       a body that is not application/json
├── BodyTooLarge           more bytes than server.max_body_bytes
├── TooManyBodies          other requests' bodies take what memory there is for them
├── BodyTimeout            the body did not arrive in time
├── HostRefused            a Host header that this listener does not answer to
├── OriginRefused          a web page of another site, on a loopback listener
├── UnknownPath            no such path
├── MethodRefused          the path exists, the method does not
├── TooManyHeaders         more header fields than any client needs
├── InvalidKey             no API key, or none that is known and in force
│   └── SignerUnknown      a token that the issuer may have signed with a key that is new
├── TooManyGuesses         too many wrong API keys came from the address
├── AddressNotAllowed      the key may not be used from there
├── SurfaceNotAllowed      a part of the gateway that the key does not cover
├── KeyNameTaken           a key of that name is there already
├── UnknownKey             there is no key of that name
├── KeysUnavailable        the keys can not be read or written now
├── ModelNotAllowed        a model that the key does not cover
├── TooManyTokens          a request for more tokens than the key may ask for at once
├── RateLimited            one of the key's limits is used up; says which, and for how long
├── LimitsUnavailable      the counters cannot be asked, and the settings say that nobody passes uncounted
├── ShuttingDown           the gateway stops before the answer was complete
└── ClientGone             the client left first; nobody is told, logs and metrics say 499

Neighbours: backends/errors.py and routing/errors.py, the other two trees; a test proves that every class of the
three has its row.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from backends import errors as backend
from routing import errors as routing


class GatewayError(Exception):
    """Base of the gateway's own refusals. The message goes to the client; `key`, to the log, is the name of the API key
    that is refused, where it is known."""

    def __init__(self, message: str, *, param: str | None = None, key: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.key = key


class InvalidBody(GatewayError):
    """The body is not the JSON object it should be."""


class UnsupportedMedia(GatewayError):
    """Content-Type or Content-Encoding is not what the endpoint reads."""


class BodyTooLarge(GatewayError):
    """More bytes than `server.max_body_bytes`, announced or sent."""


class TooManyBodies(GatewayError):
    """The bodies that are in memory take `server.max_bodies_bytes`."""


class BodyTimeout(GatewayError):
    """The body did not arrive within `server.body_timeout_seconds`."""


class HostRefused(GatewayError):
    """The Host header names something else than this listener: what DNS rebinding looks like."""


class OriginRefused(GatewayError):
    """The Origin header names another site than this machine's own."""


class UnknownPath(GatewayError):
    """Nothing is served there."""


class MethodRefused(GatewayError):
    """The path is served, but not with this method. `allow` are the methods that are."""

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class TooManyHeaders(GatewayError):
    """More header fields than any client needs."""


class InvalidKey(GatewayError):
    """No API key, or none that is known and in force. The message never repeats what was sent."""


class SignerUnknown(InvalidKey):
    """A token names a key that the issuer did not have when it was asked last."""


class TooManyGuesses(GatewayError):
    """Too many wrong API keys came from this address lately."""

    def __init__(self, message: str, *, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class AddressNotAllowed(GatewayError):
    """The key is in force, and not where this request comes from."""


class SurfaceNotAllowed(GatewayError):
    """The key is in force, and not for this part of the gateway."""


class KeyNameTaken(GatewayError):
    """A key of that name is there already."""


class UnknownKey(GatewayError):
    """There is no key of that name."""


class KeysUnavailable(GatewayError):
    """The store of the keys cannot be read or written now."""


class ModelNotAllowed(GatewayError):
    """The model exists, and the key does not cover it."""


class TooManyTokens(GatewayError):
    """The request asks for more tokens than `max_tokens_per_request`: waiting would not help, so it is no 429."""


class RateLimited(GatewayError):
    """One of the key's limits is used up.

    `limit` is `requests`, `tokens`, `tokens_per_day` or `concurrent`; `headers` are the x-ratelimit fields.
    """

    def __init__(
        self, message: str, *, limit: str, retry_after_seconds: float, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        super().__init__(message)
        self.limit = limit
        self.retry_after_seconds = retry_after_seconds
        self.headers = headers


class LimitsUnavailable(GatewayError):
    """Redis does not answer and `limits.on_redis_error` is `closed`."""


class ShuttingDown(GatewayError):
    """The drain time is over and the answer was not complete."""


class ClientGone(GatewayError):
    """The client closed its connection before the answer was complete."""


@dataclass(frozen=True, slots=True)
class Row:
    """What the client sees. `message` replaces the error's own where that tells about our insides."""

    status: int
    type: str
    code: str
    message: str | None = None
    retry_after_seconds: float | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()


_REQUEST = "invalid_request_error"
_SERVER = "server_error"

TABLE: dict[type[Exception], Row] = {
    GatewayError: Row(500, _SERVER, "internal_error", "Internal error."),
    InvalidBody: Row(400, _REQUEST, "invalid_request"),
    UnsupportedMedia: Row(415, _REQUEST, "unsupported_media_type"),
    BodyTooLarge: Row(413, _REQUEST, "request_too_large"),
    TooManyBodies: Row(503, _SERVER, "overloaded", retry_after_seconds=1.0),
    BodyTimeout: Row(408, _REQUEST, "request_timeout"),
    HostRefused: Row(421, _REQUEST, "host_not_allowed"),
    OriginRefused: Row(403, _REQUEST, "origin_not_allowed"),
    UnknownPath: Row(404, _REQUEST, "not_found"),
    MethodRefused: Row(405, _REQUEST, "method_not_allowed"),
    TooManyHeaders: Row(431, _REQUEST, "headers_too_large"),
    InvalidKey: Row(401, "authentication_error", "invalid_api_key", headers=((b"www-authenticate", b"Bearer"),)),
    SignerUnknown: Row(401, "authentication_error", "invalid_api_key", headers=((b"www-authenticate", b"Bearer"),)),
    TooManyGuesses: Row(429, "authentication_error", "too_many_attempts", retry_after_seconds=3.0),
    AddressNotAllowed: Row(403, _REQUEST, "address_not_allowed"),
    SurfaceNotAllowed: Row(403, _REQUEST, "surface_not_allowed"),
    KeyNameTaken: Row(409, _REQUEST, "key_name_taken"),
    UnknownKey: Row(404, _REQUEST, "key_not_found"),
    KeysUnavailable: Row(503, _SERVER, "keys_unavailable", "The keys cannot be read or written now.", 5.0),
    ModelNotAllowed: Row(403, _REQUEST, "model_not_allowed"),
    TooManyTokens: Row(400, _REQUEST, "invalid_request"),
    RateLimited: Row(429, "rate_limit_error", "rate_limit_exceeded", retry_after_seconds=1.0),
    LimitsUnavailable: Row(503, _SERVER, "limits_unavailable", retry_after_seconds=1.0),
    ShuttingDown: Row(503, _SERVER, "shutting_down", retry_after_seconds=1.0),
    ClientGone: Row(499, _REQUEST, "client_disconnected"),
    routing.RoutingError: Row(500, _SERVER, "internal_error", "Internal error."),
    routing.ModelNotFound: Row(404, _REQUEST, "model_not_found"),
    routing.RequestRejected: Row(403, _REQUEST, "request_rejected"),
    routing.NotCapable: Row(400, _REQUEST, "invalid_request"),
    routing.Overloaded: Row(503, _SERVER, "overloaded", retry_after_seconds=1.0),
    routing.Unavailable: Row(503, _SERVER, "backend_unavailable", retry_after_seconds=5.0),
    # An engine that was refused asks again after half a minute.
    routing.NoRoom: Row(503, _SERVER, "no_room", retry_after_seconds=30.0),
    backend.BackendError: Row(502, _SERVER, "backend_error", "The model's engine failed."),
    backend.BackendUnavailable: Row(
        503, _SERVER, "backend_unavailable", "The model is not available now; GET /readyz tells why.", 5.0
    ),
    backend.BackendLoading: Row(503, _SERVER, "model_loading", retry_after_seconds=1.0),
    backend.BackendOverloaded: Row(503, _SERVER, "overloaded", "The model has as much work as it can take.", 1.0),
    backend.BackendTimeout: Row(
        504,
        _SERVER,
        "backend_timeout",
        "The model's engine did not answer in time.",
        # The engine may still be computing this answer: an SDK that retries would ask for it twice.
        headers=((b"x-should-retry", b"false"),),
    ),
    backend.BackendProtocolError: Row(502, _SERVER, "backend_error", "The model's engine failed while answering."),
    backend.InvalidRequest: Row(400, _REQUEST, "invalid_request"),
    backend.ContextLengthExceeded: Row(400, _REQUEST, "context_length_exceeded"),
    backend.EngineStartFailed: Row(
        503, _SERVER, "backend_unavailable", "The model could not be started; GET /readyz tells why.", 30.0
    ),
}
UNEXPECTED = Row(500, _SERVER, "internal_error", "Internal error.")


def row_for(error: BaseException) -> Row:
    """The row of the error's class, or of the nearest class above it that has one."""
    for cls in type(error).__mro__:
        row = TABLE.get(cls)
        if row is not None:
            return row
    return UNEXPECTED


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """One error as OpenAI's dialect says it: status, headers (content-type included) and JSON body."""

    status: int
    type: str
    code: str
    message: str
    headers: list[tuple[bytes, bytes]]
    body: bytes


def answer(error: BaseException, request_id: str) -> ErrorAnswer:
    """What to send for `error`. An error of no known tree becomes a 500 that names only the request id."""
    row = row_for(error)
    message = row.message or str(getattr(error, "message", "")) or row.code
    if row.status == 500:
        message = f"{message} Request id: {request_id}"
    detail: dict[str, Any] = {"message": message, "type": row.type}
    detail |= {"param": getattr(error, "param", None), "code": row.code}
    if isinstance(error, backend.BackendLoading):
        detail["progress"] = round(error.progress, 3)
    body = json.dumps({"error": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *row.headers]
    headers += _retry_headers(error, row)
    if isinstance(error, MethodRefused):
        headers.append((b"allow", error.allow.encode()))
    if isinstance(error, RateLimited):
        headers += error.headers
    return ErrorAnswer(row.status, row.type, row.code, message, headers, body)


def _retry_headers(error: BaseException, row: Row) -> list[tuple[bytes, bytes]]:
    seconds = getattr(error, "retry_after_seconds", None)
    if row.retry_after_seconds is None:
        return []
    if seconds is None:
        seconds = row.retry_after_seconds
    elif isinstance(error, backend.BackendError):
        # An engine's word, so it is bounded; a key's limit is our own count and may be further off.
        seconds = min(max(float(seconds), 0.0), 3600.0)
    return [(b"retry-after", b"%d" % math.ceil(seconds)), (b"retry-after-ms", b"%d" % math.ceil(seconds * 1000))]
