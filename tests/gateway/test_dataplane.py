"""Which requests are taken, by exact path and method, and what the others are told."""

from __future__ import annotations

import pytest

from tests.fakes import FakeBackend
from tests.gateway.running import CHAT, request, serving


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("GET", "/v1", 404, "not_found"),
        ("POST", "/v1/embeddings", 404, "not_found"),
        ("POST", "/v1/chat/completions/", 404, "not_found"),
        ("POST", "//v1/chat/completions", 404, "not_found"),
        ("POST", "/v1/chat/../completions", 404, "not_found"),
        ("POST", "/V1/chat/completions", 404, "not_found"),
        ("POST", "/v1/chat/completions;a=b", 404, "not_found"),
        ("GET", "/docs", 404, "not_found"),
        ("GET", "/redoc", 404, "not_found"),
        ("POST", "/tokenize", 404, "not_found"),
        ("GET", "/slots", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/chat/completions", 405, "method_not_allowed"),
        ("PUT", "/v1/completions", 405, "method_not_allowed"),
        ("TRACE", "/v1/completions", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("DELETE", "/v1/models/fake", 405, "method_not_allowed"),
        ("POST", "/metrics", 405, "method_not_allowed"),
    ],
)
async def test_what_is_not_served_is_refused_in_the_dialect(method: str, path: str, status: int, code: str) -> None:
    backend = FakeBackend()
    async with serving(backend) as gateway, gateway.connection() as (reader, writer):
        writer.write(request(b"{}", path=path, method=method))
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 %d " % status)
        assert b"\r\ncontent-type: application/json\r\n" in head
        assert b"\r\nx-request-id: " in head
        assert b"access-control" not in head
        assert (b"\r\nallow: " in head) == (status == 405)
        assert code.encode() in await reader.readuntil(b"}}")
        assert backend.requests == []


@pytest.mark.parametrize("query", ["?", "?api-version=2024-10-01"])
async def test_query_strings_do_not_matter(query: str) -> None:
    async with serving(FakeBackend()) as gateway:
        answer = await gateway.client.post(CHAT + query, json={"model": "fake"})
        assert answer.status_code == 200


@pytest.mark.parametrize(
    ("offered", "taken"),
    [
        ("my-id_1.2", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("a b", False),
        ('a"b', False),
        ("", False),
    ],
    ids=lambda value: str(value)[:10],
)
@pytest.mark.parametrize("path", [CHAT, "/livez", "/nothing"])
async def test_harmless_request_ids_of_clients_are_kept(path: str, offered: str, taken: bool) -> None:
    async with serving(FakeBackend()) as gateway:
        method = "POST" if path == CHAT else "GET"
        answer = await gateway.client.request(method, path, json={"model": "fake"}, headers=[("x-request-id", offered)])
        assert (answer.headers["x-request-id"] == offered) == taken
        assert answer.headers.get_list("x-request-id") == [answer.headers["x-request-id"]]
        again = await gateway.client.request(method, path, json={"model": "fake"})
        assert again.headers["x-request-id"] != answer.headers["x-request-id"]


@pytest.mark.parametrize("path", [CHAT, "/livez", "/metrics", "/v1/models"])
async def test_rebound_names_reach_nothing(path: str) -> None:
    backend = FakeBackend()
    async with serving(backend) as gateway:
        method = "POST" if path == CHAT else "GET"
        answer = await gateway.client.request(method, path, json={"model": "fake"}, headers={"host": "evil.example"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (421, "host_not_allowed")
        assert backend.requests == []


async def test_path_is_what_was_asked_and_not_what_the_host_says() -> None:
    async with serving(FakeBackend()) as gateway:
        for host in ("localhost/livez?x=", "localhost#@x", "localhost:1/metrics"):
            sent = request(b"{}", f"host: {host}", "connection: close", "content-length: 2", path="/nothing")
            answer = await gateway.raw(sent.replace(b"host: localhost\r\n", b""))
            assert answer.startswith(b"HTTP/1.1 421 ")


async def test_too_many_header_fields_are_refused() -> None:
    async with serving(FakeBackend()) as gateway:
        answer = await gateway.client.get("/livez", headers={f"x-{number}": "1" for number in range(100)})
        assert (answer.status_code, answer.json()["error"]["code"]) == (431, "headers_too_large")
