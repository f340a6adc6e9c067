"""What a request begins with, and what is refused before a byte of it is sent."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.http import HttpClient
from backends.http_head import Heads
from tests.backends.peer import answer, says, serve

HEADS = Heads(b"engine:8000")


def test_head_is_what_was_asked_for() -> None:
    headers = [(b"content-type", b"application/json"), (b"X-Empty", b"")]
    head = b"POST /v1/x?y HTTP/1.1\r\nhost: engine:8000\r\ncontent-type: application/json\r\nX-Empty: \r\n"
    for _ in range(2):  # the second time from what was kept
        assert HEADS.render("POST", "/v1/x?y", headers, 12) == head + b"content-length: 12\r\n\r\n"
        assert HEADS.render("POST", "/v1/x?y", headers, 0) == head + b"content-length: 0\r\n\r\n"


def test_get_without_a_body_has_no_length() -> None:
    assert HEADS.render("GET", "/", (), 0) == b"GET / HTTP/1.1\r\nhost: engine:8000\r\n\r\n"
    assert HEADS.render("PUT", "/", (), 1) == b"PUT / HTTP/1.1\r\nhost: engine:8000\r\ncontent-length: 1\r\n\r\n"


REFUSED = [
    pytest.param("GET", "/", [(b"x", b"1\r\ny: 2")], id="crlf-in-value"),
    pytest.param("GET", "/", [(b"x", b"1\ny: 2")], id="lf-in-value"),
    pytest.param("GET", "/", [(b"x", b"1\ry")], id="cr-in-value"),
    pytest.param("GET", "/", [(b"x", b"\0")], id="nul-in-value"),
    pytest.param("GET", "/", [(b"x", b"1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n")], id="a-request-in-a-value"),
    pytest.param("GET", "/", [(b"x: 1\r\ny", b"2")], id="crlf-in-name"),
    pytest.param("GET", "/", [(b"x\n", b"2")], id="lf-in-name"),
    pytest.param("GET", "/", [(b"x\0", b"2")], id="nul-in-name"),
    pytest.param("GET", "/", [(b"transfer-encoding: chunked, x", b"2")], id="colon-in-name"),
    pytest.param("GET", "/", [(b"x ", b"2")], id="space-in-name"),
    pytest.param("GET", "/", [(b"x\xe9", b"2")], id="name-beyond-ascii"),
    pytest.param("GET", "/", [(b"", b"2")], id="no-name"),
    pytest.param("POST", "/", [(b"content-length", b"2")], id="second-length"),
    pytest.param("POST", "/", [(b"Transfer-Encoding", b"chunked")], id="length-and-chunked"),
    pytest.param("POST", "/", [(b"HOST", b"other")], id="second-host"),
    pytest.param("GET", "/ HTTP/1.1\r\nx: y", [], id="crlf-in-path"),
    pytest.param("GET", "/\n", [], id="lf-in-path"),
    pytest.param("GET", "/\0", [], id="nul-in-path"),
    pytest.param("GET", "/ HTTP/1.0", [], id="space-in-path"),
    pytest.param("GET", "/é", [], id="path-beyond-ascii"),
    pytest.param("GET", "http://other/", [], id="path-is-an-address"),
    pytest.param("GET", "", [], id="no-path"),
    pytest.param("GET /\r\n", "/", [], id="crlf-in-method"),
    pytest.param("GET /", "/", [], id="space-in-method"),
    pytest.param("", "/", [], id="no-method"),
    pytest.param("HEAD", "/", [], id="head"),
    pytest.param("CONNECT", "/", [], id="connect"),
]


@pytest.mark.parametrize(("method", "path", "headers"), REFUSED)
async def test_what_would_be_another_request_is_not_sent(
    method: str, path: str, headers: list[tuple[bytes, bytes]]
) -> None:
    async with serve(says(answer(b""))) as peer:
        client = HttpClient(peer.address)
        for _ in range(2):  # nothing of it was taken for good
            with pytest.raises(ValueError):  # noqa: PT011 - each has words of its own
                await client.request(method, path, headers)
        assert peer.connections == 0
        await client.aclose()


@given(
    st.text(string.ascii_uppercase + " \r\n\0:/", max_size=5),
    st.text("/aé \r\n\0?#", max_size=6),
    st.lists(st.tuples(st.binary(max_size=4), st.binary(max_size=6)), max_size=4),
    st.integers(0, 10**9),
)
def test_head_is_one_request_or_refused(
    method: str, path: str, headers: list[tuple[bytes, bytes]], body_bytes: int
) -> None:
    try:
        head = Heads(b"h").render(method, path, headers, body_bytes)
    except ValueError:
        return
    lines = head.split(b"\r\n")
    assert lines[0] == f"{method} {path} HTTP/1.1".encode()
    assert lines[0].count(b" ") == 2
    assert lines[1] == b"host: h"
    assert [line.partition(b": ")[::2] for line in lines[2 : 2 + len(headers)]] == headers
    length = [b"content-length: %d" % body_bytes] if body_bytes or method == "POST" else []
    assert lines[2 + len(headers) :] == [*length, b"", b""]
