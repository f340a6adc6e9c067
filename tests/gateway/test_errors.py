"""The table is complete, and each row says what architecture.md promises."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from backends import errors as backend
from gateway import errors as gateway
from gateway.errors import TABLE, answer
from routing import errors as routing


def tree(root: type[Exception]) -> Iterator[type[Exception]]:
    """The classes of the root's module. What other modules derive from them is covered by its nearest parent's row."""
    yield root
    for child in root.__subclasses__():
        if child.__module__ == root.__module__:
            yield from tree(child)


@pytest.mark.parametrize("root", [backend.BackendError, routing.RoutingError, gateway.GatewayError])
def test_every_class_of_the_three_trees_has_its_own_row(root: type[Exception]) -> None:
    assert [cls.__name__ for cls in tree(root) if cls not in TABLE] == []


def test_no_row_is_left_over() -> None:
    known = {*tree(backend.BackendError), *tree(routing.RoutingError), *tree(gateway.GatewayError)}
    assert set(TABLE) <= known


@pytest.mark.parametrize(
    ("error", "status", "code", "headers"),
    [
        (gateway.InvalidBody("bad", param="model"), 400, "invalid_request", {}),
        (gateway.UnsupportedMedia("bad"), 415, "unsupported_media_type", {}),
        (gateway.BodyTooLarge("bad"), 413, "request_too_large", {}),
        (gateway.BodyTimeout("bad"), 408, "request_timeout", {}),
        (gateway.HostRefused("bad"), 421, "host_not_allowed", {}),
        (gateway.UnknownPath("bad"), 404, "not_found", {}),
        (gateway.MethodRefused("bad", allow="POST"), 405, "method_not_allowed", {b"allow": b"POST"}),
        (gateway.TooManyHeaders("bad"), 431, "headers_too_large", {}),
        (gateway.InvalidKey("bad"), 401, "invalid_api_key", {b"www-authenticate": b"Bearer"}),
        (gateway.ModelNotAllowed("bad", param="model"), 403, "model_not_allowed", {}),
        (gateway.TooManyTokens("bad", param="max_tokens"), 400, "invalid_request", {}),
        (
            gateway.RateLimited(
                "bad", limit="tokens", retry_after_seconds=7200.25, headers=((b"x-ratelimit-a", b"1"),)
            ),
            429,
            "rate_limit_exceeded",
            {b"retry-after": b"7201", b"retry-after-ms": b"7200250", b"x-ratelimit-a": b"1"},
        ),
        (gateway.ShuttingDown("bad"), 503, "shutting_down", {b"retry-after": b"1"}),
        (gateway.ClientGone("bad"), 499, "client_disconnected", {}),
        (routing.ModelNotFound("x", ("y",)), 404, "model_not_found", {}),
        (routing.NoRoom("m"), 503, "no_room", {b"retry-after": b"30"}),
        (backend.BackendUnavailable("bad"), 503, "backend_unavailable", {b"retry-after": b"5"}),
        (backend.BackendLoading("bad"), 503, "model_loading", {b"retry-after": b"1", b"retry-after-ms": b"1000"}),
        (
            backend.BackendOverloaded("bad", retry_after_seconds=2.5),
            503,
            "overloaded",
            {b"retry-after": b"3", b"retry-after-ms": b"2500"},
        ),
        (backend.BackendTimeout("bad"), 504, "backend_timeout", {b"x-should-retry": b"false"}),
        (backend.BackendProtocolError("bad"), 502, "backend_error", {}),
        (backend.InvalidRequest("bad", param="top_p"), 400, "invalid_request", {}),
        (backend.ContextLengthExceeded("bad"), 400, "context_length_exceeded", {}),
        (backend.EngineStartFailed("bad"), 503, "backend_unavailable", {b"retry-after": b"30"}),
        (KeyError("bad"), 500, "internal_error", {}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_row(error: Exception, status: int, code: str, headers: dict[bytes, bytes]) -> None:
    refusal = answer(error, "r1")
    sent = dict(refusal.headers)
    detail = json.loads(refusal.body)["error"]
    assert (refusal.status, detail["code"]) == (status, code)
    default = "invalid_request_error" if status < 500 else "server_error"
    assert detail["type"] == {401: "authentication_error", 429: "rate_limit_error"}.get(status, default)
    assert detail["param"] == getattr(error, "param", None)
    assert sent.items() >= headers.items()
    assert sent[b"content-length"] == b"%d" % len(refusal.body)
    assert (b"retry-after" in sent) == (status in (429, 503))


def test_loading_says_how_far_it_is() -> None:
    detail = json.loads(answer(backend.BackendLoading("m loads", progress=0.4242), "r").body)["error"]
    assert detail["progress"] == 0.424


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("/secret"),
        backend.BackendUnavailable("no socket /secret"),
        backend.BackendProtocolError("/secret"),
        backend.BackendTimeout("/secret"),
        backend.BackendError("/secret"),
        backend.EngineStartFailed("/secret"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_client_is_told_nothing_about_our_insides(error: Exception) -> None:
    assert b"secret" not in answer(error, "r1").body


def test_unexpected_error_names_the_request_id() -> None:
    assert "r-77" in json.loads(answer(ValueError(), "r-77").body)["error"]["message"]


@pytest.mark.parametrize("seconds", [-1.0, 1e12])
def test_retry_after_of_an_engine_is_bounded(seconds: float) -> None:
    sent = dict(answer(backend.BackendOverloaded("x", retry_after_seconds=seconds), "r").headers)
    assert 0 <= int(sent[b"retry-after"]) <= 3600
