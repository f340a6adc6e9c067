"""Answers gone wrong at random, and what must hold for each of them. Deterministic for a seed.

Neighbours: wire.py (drives the client), reference.py (what is right), test_http_framing.py (where mutation starts).
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Sequence

import h11

from tests.backends import reference
from tests.backends.test_http_framing import DOUBTFUL, REFUSED, SOUND
from tests.backends.wire import Outcome, Talker

CASES = {**REFUSED, **{name: sent for name, (sent, _) in (DOUBTFUL | SOUND).items()}}
# Where mutation starts; the long ones are about limits, of which the reference knows nothing.
SEEDS = [sent for sent in CASES.values() if len(sent) < 800]

# What mistakes and attacks are made of.
DICTIONARY = [
    *(bytes([byte]) for byte in b"\r\n\0 \t:;,=\"\\0159afHg-+\x0b\x7f\x80\xff"),
    b"\r\n", b"\r\n\r\n", b"\n\n", b"\r\r\n", b"\r\n ", b"\r\n\t", b"0\r\n\r\n", b"1\r\nx\r\n", b";a=b", b';a="b"',
    b"HTTP/1.1 ", b"HTTP/1.0 ", b"HTTP/1.1 100 C\r\n\r\n", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 204 N\r\n\r\n",
    b"content-length: 0\r\n", b"content-length: 5\r\n", b"Content-Length:", b"content-length: 18446744073709551616\r\n",
    b"transfer-encoding: chunked\r\n", b"Transfer-Encoding:", b"chunked", b"gzip, ", b"identity",
    b"connection: close\r\n", b"connection: keep-alive\r\n", b"upgrade: h2c\r\nconnection: upgrade\r\n",
    b"ffffffffffffffff", b"0000000000000000001",
    b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"x: " + b"y" * 300 + b"\r\n",
]  # fmt: skip
GOOD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood"


class Disagreement(AssertionError):
    """Something that must hold does not; the message has the input."""


def valid(random_: random.Random) -> bytes:
    """An answer that is right, with all that the grammar allows in it."""
    pick, chance = random_.choice, random_.random
    parts = [b"HTTP/1.1 103 E\r\nlink: x\r\n\r\n"] * pick((0, 0, 0, 1, 2))
    parts += [
        b"HTTP/1.1 ",
        pick((b"200", b"200", b"204", b"304", b"404", b"500", b"413")),
        pick((b" OK\r\n", b" \r\n", b"\r\n")),
    ]
    for _ in range(pick((0, 1, 2, 4))):
        parts += [
            pick((b"Server", b"x", b"Content-Type")),
            pick((b":", b": ", b":\t")),
            pick((b"", b"v", b"a b", b"\xe9")),
        ]
        parts.append(b"\r\n")
    body = random_.randbytes(pick((0, 1, 5, 40)))
    if chance() < 0.4:
        return b"".join((*parts, b"Content-Length: %d\r\n\r\n" % len(body), body))
    if chance() < 0.1:
        return b"".join((*parts, b"\r\n", body))
    parts.append(pick((b"transfer-encoding: chunked\r\n\r\n", b"Transfer-Encoding: Chunked\r\n\r\n")))
    while body:
        size = random_.randint(1, len(body))
        parts += [
            pick((b"%x", b"%X", b"00%x")) % size,
            pick((b"", b"", b";a", b';a="b c";d=e')),
            b"\r\n",
            body[:size],
            b"\r\n",
        ]
        body = body[size:]
    return b"".join((*parts, b"0\r\n", pick((b"", b"", b"x-sum: 1\r\n")), b"\r\n"))


def mutated(random_: random.Random, seeds: Sequence[bytes] = SEEDS) -> bytes:
    """A seed or a valid answer with one to four things wrong with it."""
    data = bytearray(random_.choice(seeds) if random_.random() < 0.5 else valid(random_))
    for _ in range(random_.choice((1, 1, 1, 2, 2, 4))):
        at = int(random_.random() * (len(data) + 1))
        kind = int(random_.random() * 8)
        if kind <= 2:
            data[at:at] = random_.choice(DICTIONARY)
        elif kind == 3:
            data[at : at + random_.choice((1, 2, 5, 30))] = b""
        elif kind == 4 and at < len(data):
            data[at] = int(random_.random() * 256)
        elif kind == 5:
            data[at : at + 1] = random_.choice(DICTIONARY)
        elif kind == 6:
            start = int(random_.random() * (len(data) + 1))
            data[at:at] = data[start : start + random_.choice((1, 10, 60))]
        else:
            other = random_.choice(seeds)
            data[at:] = other[int(random_.random() * len(other)) :]
    return bytes(data)


def cut(random_: random.Random, data: bytes) -> list[bytes]:
    """The same bytes in other reads."""
    how = random_.random()
    if how < 0.2 and len(data) < 400:
        return [data[at : at + 1] for at in range(len(data))]
    cuts = sorted(int(random_.random() * (len(data) + 1)) for _ in range(random_.choice((1, 1, 2, 3, 8))))
    edges = [0, *cuts, len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges) if start < end]


class Checker:
    """Judges inputs, one after the other."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.accepted = self.kept = self.refused = 0

    def close(self) -> None:
        """No more inputs."""
        self.loop.close()

    def check(self, data: bytes, pieces: list[bytes]) -> Outcome:
        """Raises Disagreement where the client differs from the reference or from itself, or does not end cleanly."""
        try:
            whole, again = self._talk([data] if data else []), self._talk(pieces)
        except Exception as error:
            raise Disagreement(f"{type(error).__name__}: {error}\n{data!r}\n{pieces!r}") from error
        try:
            right = reference.parse(data)
        except reference.Refused as refusal:
            if not whole.error or not again.error:
                raise Disagreement(f"accepted, but {refusal}: {whole}\n{again}\n{data!r}") from None
            if (whole.status, whole.body) != (again.status, again.body):
                raise Disagreement(f"pieces make a difference: {whole}\n{again}\n{data!r}\n{pieces!r}") from None
            self.refused += 1
            return whole
        for outcome in (whole, again):
            if outcome.error or (outcome.status, outcome.headers, outcome.body) != (
                right.status,
                right.headers,
                right.body,
            ):
                raise Disagreement(f"{outcome}\nbut it is {right}\n{data!r}\n{pieces!r}")
            if outcome.kept and not right.keepable and data.strip(b"\r\n") == data:
                raise Disagreement(f"kept: {outcome}\nbut it is {right}\n{data!r}\n{pieces!r}")
        self.accepted += 1
        self.kept += whole.kept
        return whole

    def _talk(self, pieces: list[bytes]) -> Outcome:
        talker = Talker(self.loop)
        outcome = talker.ask(pieces)
        if outcome.kept:
            after = talker.ask([GOOD])
            assert (after.status, after.body, after.error, after.kept) == (200, b"good", "", True), f"poisoned: {after}"
        elif outcome.error:
            assert outcome.error.startswith(("BackendProtocolError: ", "NoAnswer: ")), outcome.error
        return outcome


def by_h11(data: bytes) -> tuple[int, bytes] | None:
    """Status and body as h11 reads them; None where it refuses."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="POST", target="/", headers=[("host", "x"), ("content-length", "0")]))
    connection.send(h11.EndOfMessage())
    status, body = 0, b""
    try:
        connection.receive_data(data)
        ended = False
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA and not ended:
                connection.receive_data(b"")
                ended = True
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return status, body
            elif not isinstance(event, h11.InformationalResponse):
                return None
    except h11.RemoteProtocolError:
        return None
