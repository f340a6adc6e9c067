"""Answers whose end two parsers could see in two places: refused, and the connection never used again.

Each comes on a connection that was good before, which stays open afterwards: nothing here depends on its end.
"""

from __future__ import annotations

import pytest

from backends.errors import BackendProtocolError
from tests.backends.peer import CHUNKED, Script, Talk, answer, fetch, serve

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])

OK = b"HTTP/1.1 200 OK\r\n"
HI = OK + b"content-length: 2\r\n"
END = b"\r\n\r\n"
# What a body is taken for by whoever sees its end too early.
POISON = answer(b"poison")


def says_once(sent: bytes, *, cut: bool = False) -> Script:
    """First connection: a good answer, then `sent`; others: good answers."""

    async def script(talk: Talk) -> None:
        turn = 0
        while True:
            await talk.request()
            turn += 1
            if (talk.number, turn) != (1, 2):
                await talk.send(answer(b"good"))
            else:
                await talk.send(*([sent[at : at + 1] for at in range(len(sent))] if cut else [sent]))

    return script


def status_line(line: bytes) -> bytes:
    return line + b"\r\ncontent-length: 2\r\n\r\nhi"


REFUSED = {
    # two ends
    "length-and-chunked": OK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + POISON,
    "chunked-and-length": OK + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n" + POISON,
    "two-lengths": OK + b"content-length: 5\r\ncontent-length: 2\r\n\r\nhello",
    "two-equal-lengths": OK + b"content-length: 5\r\ncontent-length: 5\r\n\r\nhello",
    "length-list": OK + b"content-length: 5, 5\r\n\r\nhello",
    "chunked-twice": OK + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked-chunked": OK + b"transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked-then-gzip": OK + b"transfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "gzip-then-chunked": OK + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "gzip": OK + b"transfer-encoding: gzip\r\n\r\nhello",
    "identity": OK + b"transfer-encoding: identity\r\n\r\nhello",
    "xchunked": OK + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked-with-parameter": OK + b"transfer-encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
    "chunked-quoted": OK + b'transfer-encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "chunked-after-vertical-tab": OK + b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "chunked-before-tab": OK + b"transfer-encoding: chunked\t\r\n\r\n0\r\n\r\n",
    "no-coding": OK + b"transfer-encoding:\r\n\r\n0\r\n\r\n",
    "chunked-http-1.0": b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked-http-1.0-kept": CHUNKED.replace(b"1.1", b"1.0").replace(END, b"\r\nconnection: keep-alive" + END)
    + b"0"
    + END,
    # lengths that are none
    "negative-length": OK + b"content-length: -5\r\n\r\n",
    "signed-length": OK + b"content-length: +5\r\n\r\nhello",
    "hex-length": OK + b"content-length: 0x5\r\n\r\nhello",
    "empty-length": OK + b"content-length:\r\n\r\n",
    "length-with-space": OK + b"content-length: 1 2\r\n\r\nhello",
    "fraction-length": OK + b"content-length: 5.0\r\n\r\nhello",
    "length-beyond-64-bit": OK + b"content-length: 99999999999999999999\r\n\r\n",
    "length-wraps-to-5": OK + b"content-length: 18446744073709551621\r\n\r\nhello",
    # lines
    "bare-lf": b"HTTP/1.1 200 OK\ncontent-length: 0\n\n",
    "bare-lf-after-status": b"HTTP/1.1 200 OK\ncontent-length: 0\r\n\r\n",
    "bare-lf-after-header": HI + b"x: y\n\r\nhi",
    "bare-lf-ends-head": HI + b"\nhi",
    "bare-cr-after-header": OK + b"x: y\rcontent-length: 2\r\n\r\nhi",
    "cr-cr-lf": OK + b"content-length: 2\r\r\n\r\nhi",
    "folded-header": HI + b"a: 1\r\n b: 2\r\n\r\nhi",
    "folded-by-tab": HI + b"a: 1\r\n\tb: 2\r\n\r\nhi",
    "folded-length": OK + b"content-length:\r\n 2\r\n\r\nhi",
    "space-before-first-header": OK + b" content-length: 2\r\n\r\nhi",
    "nul-in-value": HI + b"a: 1\0" + END + b"hi",
    "nul-in-name": HI + b"a\0: 1" + END + b"hi",
    "control-in-value": HI + b"a: \x01" + END + b"hi",
    "delete-in-value": HI + b"a: \x7f" + END + b"hi",
    "space-before-colon": OK + b"content-length : 2" + END + b"hi",
    "tab-before-colon": OK + b"transfer-encoding\t: chunked" + END + b"0\r\n\r\n",
    "space-in-name": OK + b"content length: 2" + END + b"hi",
    "no-colon": HI + b"hello" + END + b"hi",
    "no-name": HI + b": 1" + END + b"hi",
    "name-beyond-ascii": HI + b"\xe9: 1" + END + b"hi",
    # protocols
    "http-0.9": b"<html>hello</html>\r\n",
    "http-0.9-named": status_line(b"HTTP/0.9 200 OK"),
    "http-1.2": status_line(b"HTTP/1.2 200 OK"),
    "http-2": status_line(b"HTTP/2.0 200 OK"),
    "http-2-preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "http-2-settings": b"\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x80",
    "http-11.1": status_line(b"HTTP/11.1 200 OK"),
    "http-lower-case": status_line(b"http/1.1 200 OK"),
    "rtsp": status_line(b"RTSP/1.0 200 OK"),
    "ice": status_line(b"ICE/1.0 200 OK"),
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a-request": b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    "lf-before-status": b"\n" + HI + b"\r\nhi",
    "crlf-before-status": b"\r\n" + HI + b"\r\nhi",
    "space-before-status": b" " + HI + b"\r\nhi",
    # statuses
    "status-000": status_line(b"HTTP/1.1 000 S"),
    "status-099": status_line(b"HTTP/1.1 099 S"),
    "status-99": status_line(b"HTTP/1.1 99 S"),
    "status-600": status_line(b"HTTP/1.1 600 S"),
    "status-999": status_line(b"HTTP/1.1 999 S"),
    "status-2000": status_line(b"HTTP/1.1 2000 S"),
    "status-20x": status_line(b"HTTP/1.1 20x S"),
    "status-signed": status_line(b"HTTP/1.1 +20 S"),
    "status-after-two-spaces": status_line(b"HTTP/1.1  200 S"),
    "no-status": status_line(b"HTTP/1.1"),
    "upgrade": b"HTTP/1.1 101 S\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n" + POISON,
    "upgrade-to-nothing": b"HTTP/1.1 101 S\r\n\r\n" + POISON,
    # interim responses
    "interim-with-length": b"HTTP/1.1 103 E\r\ncontent-length: 3\r\n\r\nabc" + POISON,
    "interim-with-length-0": b"HTTP/1.1 103 E\r\ncontent-length: 0\r\n\r\n" + POISON,
    "continue-with-length": b"HTTP/1.1 100 C\r\ncontent-length: 3\r\n\r\n" + POISON,
    "interim-chunked": b"HTTP/1.1 103 E\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + POISON,
    "interim-that-closes": b"HTTP/1.1 103 E\r\nconnection: close\r\n\r\n" + POISON,
    "interim-http-1.0": b"HTTP/1.0 103 E\r\n\r\n" + POISON,
    "interim-http-1.0-kept": b"HTTP/1.0 103 E\r\nconnection: keep-alive\r\n\r\n" + POISON,
    "http-1.0-after-interim": b"HTTP/1.1 103 E\r\n\r\n" + POISON.replace(b"/1.1", b"/1.0"),
    "http-2-after-interim": b"HTTP/1.1 103 E\r\n\r\n" + POISON.replace(b"/1.1", b"/2.0"),
    # chunks
    "negative-chunk": CHUNKED + b"-1\r\nx\r\n0\r\n\r\n",
    "signed-chunk": CHUNKED + b"+1\r\nx\r\n0\r\n\r\n",
    "hex-prefix-chunk": CHUNKED + b"0x1\r\nx\r\n0\r\n\r\n",
    "chunk-is-no-number": CHUNKED + b"xyz\r\nx\r\n0\r\n\r\n",
    "no-chunk-size": CHUNKED + b"\r\nx\r\n0\r\n\r\n",
    "chunk-beyond-64-bit": CHUNKED + b"fffffffffffffffff\r\nx\r\n0\r\n\r\n",
    "chunk-wraps-to-1": CHUNKED + b"10000000000000001\r\nx\r\n0\r\n\r\n",
    "space-before-chunk-size": CHUNKED + b" 1\r\nx\r\n0\r\n\r\n",
    "space-after-chunk-size": CHUNKED + b"1 \r\nx\r\n0\r\n\r\n",
    "chunk-size-bare-lf": CHUNKED + b"1\nx\r\n0\r\n\r\n",
    "chunk-size-bare-cr": CHUNKED + b"1\rx\r\n0\r\n\r\n",
    "extension-bare-lf": CHUNKED + b"1;a\nx\r\n0\r\n\r\n",
    "extension-quoted-lf": CHUNKED + b'1;a="\n"\r\nx\r\n0\r\n\r\n',
    "extension-nul": CHUNKED + b"1;a\0\r\nx\r\n0\r\n\r\n",
    "chunk-longer-than-said": CHUNKED + b"1\r\nxyz\r\n0\r\n\r\n",
    "chunk-data-bare-lf": CHUNKED + b"1\r\nx\n0\r\n\r\n",
    "chunk-data-without-end": CHUNKED + b"1\r\nx0\r\n\r\n",
    "last-chunk-bare-lf": CHUNKED + b"1\r\nx\r\n0\n\r\n",
    "final-line-bare-lf": CHUNKED + b"1\r\nx\r\n0\r\n\n",
    # trailers
    "trailer-length": CHUNKED + b"1\r\nx\r\n0\r\ncontent-length: 9\r\n\r\n" + POISON,
    "trailer-chunked": CHUNKED + b"1\r\nx\r\n0\r\ntransfer-encoding: chunked\r\n\r\n" + POISON,
    "trailer-gzip": CHUNKED + b"1\r\nx\r\n0\r\nTransfer-Encoding: gzip\r\n\r\n" + POISON,
    "trailer-folded": CHUNKED + b"1\r\nx\r\n0\r\na: 1\r\n b\r\n\r\n",
    "trailer-bare-lf": CHUNKED + b"1\r\nx\r\n0\r\na: 1\n\r\n",
    "trailer-without-colon": CHUNKED + b"1\r\nx\r\n0\r\nhello\r\n\r\n",
    "trailer-space-before-colon": CHUNKED + b"1\r\nx\r\n0\r\na : 1\r\n\r\n",
    # limits
    "many-headers": answer(b"", *[b"x: 1"] * 200),
    "long-header": answer(b"", b"x: " + b"a" * 100_000),
}


@pytest.mark.parametrize("sent", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("cut", [False, True], ids=["at-once", "byte-by-byte"])
async def test_answer_is_refused_and_its_connection_not_used_again(sent: bytes, cut: bool) -> None:
    async with serve(says_once(sent, cut=cut and len(sent) < 4096)) as peer:
        client = peer.client(response_timeout_seconds=5, idle_timeout_seconds=5)
        assert await fetch(client) == b"good"
        with pytest.raises(BackendProtocolError):
            await fetch(client)
        assert await fetch(client) == b"good"
        assert peer.connections == 2
        await client.aclose()


DOUBTFUL = {
    "more": (answer(b"hi") + b"more", b"hi"),
    "a-second-answer": (answer(b"hi") + POISON, b"hi"),
    "half-a-status-line": (answer(b"hi") + b"HTT", b"hi"),
    "nul": (answer(b"hi") + b"\0", b"hi"),
    "after-chunks": (CHUNKED + b"2\r\nhi\r\n0\r\n\r\n" + POISON, b"hi"),
    "after-204": (b"HTTP/1.1 204 N\r\n\r\n" + POISON, b""),
    "204-with-length": (b"HTTP/1.1 204 N\r\ncontent-length: 54\r\n\r\n" + POISON, b""),
    "204-with-length-and-nothing": (b"HTTP/1.1 204 N\r\ncontent-length: 54\r\n\r\n", b""),
    "204-chunked": (b"HTTP/1.1 204 N\r\ntransfer-encoding: chunked\r\n\r\n", b""),
    "304-with-length": (b"HTTP/1.1 304 N\r\ncontent-length: 54\r\n\r\n", b""),
    "close": (answer(b"hi", b"connection: close"), b"hi"),
    "close-in-a-list": (answer(b"hi", b"Connection: x, Close"), b"hi"),
    "close-and-keep": (answer(b"hi", b"connection: keep-alive", b"connection: close"), b"hi"),
    "close-in-a-trailer": (CHUNKED + b"2\r\nhi\r\n0\r\nconnection: close\r\n\r\n", b"hi"),
    "http-1.0": (answer(b"hi").replace(b"/1.1", b"/1.0"), b"hi"),
    "http-1.0-kept": (answer(b"hi", b"connection: keep-alive").replace(b"/1.1", b"/1.0"), b"hi"),
    "http-1.0-both": (b"HTTP/1.0 200 OK\r\nconnection: close, keep-alive\r\ncontent-length: 2\r\n\r\nhi", b"hi"),
}


@pytest.mark.parametrize(("sent", "body"), DOUBTFUL.values(), ids=DOUBTFUL)
async def test_connection_of_doubtful_state_is_not_used_again(sent: bytes, body: bytes) -> None:
    async with serve(says_once(sent)) as peer:
        client = peer.client()
        assert [await fetch(client) for _ in range(3)] == [b"good", body, b"good"]
        assert peer.connections == 2
        await client.aclose()


SOUND = {
    "no-reason": (b"HTTP/1.1 200 \r\ncontent-length: 2\r\n\r\nhi", b"hi"),
    "leading-zero-length": (OK + b"content-length: 02\r\n\r\nhi", b"hi"),
    "blanks-around-values": (OK + b"content-length:\t2 \t\r\nx: \t y \t\r\n\r\nhi", b"hi"),
    "chunked-in-capitals": (OK + b"Transfer-Encoding: CHUNKED \r\n\r\n2\r\nhi\r\n0\r\n\r\n", b"hi"),
    "chunk-extensions": (CHUNKED + b'1;a;b=c;d="e \\" f"\r\nh\r\n01;x=y\r\ni\r\n000;z\r\n\r\n', b"hi"),
    "trailers": (CHUNKED + b"2\r\nhi\r\n0\r\nx-checksum: 1\r\nx-other:\r\n\r\n", b"hi"),
    "upgrade-offered": (answer(b"hi", b"upgrade: h2c", b"connection: upgrade"), b"hi"),
    "204": (b"HTTP/1.1 204 N\r\n\r\n", b""),
    "204-with-length-0": (b"HTTP/1.1 204 N\r\ncontent-length: 0\r\n\r\n", b""),
    "304": (b"HTTP/1.1 304 N\r\netag: x\r\n\r\n", b""),
    "interim-responses": (
        b"HTTP/1.1 100 C\r\n\r\nHTTP/1.1 102 P\r\n\r\nHTTP/1.1 103 E\r\nlink: x\r\n\r\n" + answer(b"hi"),
        b"hi",
    ),
}


@pytest.mark.parametrize(("sent", "body"), SOUND.values(), ids=SOUND)
@pytest.mark.parametrize("cut", [False, True], ids=["at-once", "byte-by-byte"])
async def test_unusual_but_sound_answer_is_read_and_its_connection_kept(sent: bytes, body: bytes, cut: bool) -> None:
    async with serve(says_once(sent, cut=cut)) as peer:
        client = peer.client()
        assert [await fetch(client) for _ in range(3)] == [b"good", body, b"good"]
        assert peer.connections == 1
        await client.aclose()
