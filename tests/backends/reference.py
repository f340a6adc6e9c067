"""What a strict reader makes of an answer: RFC 9112 as regular expressions over the whole of it, slow and simple.

Where the client's parser has words of its own that are harmless, they are named here: a missing space and any reason
after the status, line breaks between an interim response and the next, blanks kept at the end of a value, no tab
behind a transfer coding, holes in chunk extensions (which nobody reads), HTTP/1.0 connections not kept.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [^\r\n]*)?\r\n")
_NEXT_STATUS = re.compile(rb"[\r\n]*(?:HTTP|RTSP|ICE)/1\.(1) ([1-5][0-9][0-9])(?: [^\r\n]*)?\r\n")
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_HEADER = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([\t -~\x80-\xff]*)\r\n")
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
_EXTENSION = rb";(?=[^ \r])(?:" + _TOKEN + rb")?(?:=(?:" + _TOKEN + rb")?(?:" + _QUOTED + rb")?)?"
_CHUNK = re.compile(rb"([0-9A-Fa-f]+)(?:" + _EXTENSION + rb")*\r\n")
_FRAMING = (b"content-length", b"transfer-encoding")
_BLANKS = {b"content-length": b" \t", b"transfer-encoding": b" "}


class Refused(Exception):
    """This is no answer, or no whole one."""


@dataclass(slots=True)
class Answer:
    """What was said. `keepable`: nothing speaks against another request on the same connection."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    keepable: bool


def parse(data: bytes) -> Answer:
    """The answer that `data`, followed by the end of the connection, is. Raises Refused."""
    pattern, at = _STATUS, 0
    while True:
        line = pattern.match(data, at)
        if line is None:
            raise Refused("status line")
        old, status = line[1] == b"0", int(line[2])
        headers, at = _headers(data, line.end())
        framing = [(name, value.strip(_BLANKS[name])) for name, value in headers if name in _FRAMING]
        if status >= 200:
            break
        if status == 101 or framing or old or _says(headers, b"close"):
            raise Refused("interim response")
        pattern = _NEXT_STATUS
    if len(framing) > 1 or (old and framing and framing[0][0] == b"transfer-encoding"):
        raise Refused("framing")
    body, end, trailers = _body(data, at, status, framing)
    keepable = (
        not old
        and end == len(data)
        and not _says(headers + trailers, b"close")
        and (status in (204, 304) or bool(framing))
    )
    if status in (204, 304) and framing and framing[0][1].strip(b"0"):
        keepable = False
    return Answer(status, headers, body, keepable)


def _headers(data: bytes, at: int) -> tuple[list[tuple[bytes, bytes]], int]:
    headers = []
    while not data.startswith(b"\r\n", at):
        header = _HEADER.match(data, at)
        if header is None:
            raise Refused("header")
        headers.append((header[1].lower(), header[2]))
        at = header.end()
    return headers, at + 2


def _body(
    data: bytes, at: int, status: int, framing: list[tuple[bytes, bytes]]
) -> tuple[bytes, int, list[tuple[bytes, bytes]]]:
    """Body, where it ends, trailers."""
    name, value = framing[0] if framing else (b"", b"")
    if name == b"content-length" and (not value.isdigit() or int(value) >= 2**64):
        raise Refused("length")
    if name == b"transfer-encoding" and value.lower() != b"chunked":
        raise Refused("coding")
    if status in (204, 304):
        return b"", at, []
    if name == b"content-length":
        end = at + int(value)
        if end > len(data):
            raise Refused("cut short")
        return data[at:end], end, []
    if name == b"transfer-encoding":
        return _chunks(data, at)
    return data[at:], len(data), []


def _chunks(data: bytes, at: int) -> tuple[bytes, int, list[tuple[bytes, bytes]]]:
    pieces = []
    while True:
        chunk = _CHUNK.match(data, at)
        if chunk is None or (size := int(chunk[1], 16)) >= 2**64:
            raise Refused("chunk")
        at = chunk.end()
        if not size:
            break
        pieces.append(data[at : at + size])
        at += size
        if not data.startswith(b"\r\n", at):
            raise Refused("end of chunk")
        at += 2
    trailers, at = _headers(data, at)
    if any(name in _FRAMING for name, _ in trailers):
        raise Refused("trailer")
    return b"".join(pieces), at, trailers


def _says(headers: list[tuple[bytes, bytes]], option: bytes) -> bool:
    return any(
        option in [each.strip(b" \t").lower() for each in value.split(b",")]
        for name, value in headers
        if name in (b"connection", b"proxy-connection")
    )
