"""A DNS server on loopback that says what a test tells it to, over UDP and, for answers that are too long, TCP."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from typing import cast

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

MAX_UDP_BYTES = 512


class NameServer(asyncio.DatagramProtocol):
    """`records` by name (with the final dot) and type, as text; what is not in it does not exist. `rcode` other than
    None is the answer to everything; a `mute` server says nothing. `asked` are the names and types in order."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], list[str]] = {}
        self.ttl = 0
        self.rcode: dns.rcode.Rcode | None = None
        self.mute = False
        self.asked: list[tuple[str, str]] = []
        self.over_tcp = 0
        self.port = 0
        self._transport: asyncio.DatagramTransport

    def put(self, name: str, kind: str, *values: str) -> None:
        """From now on `name` has exactly these records of this type; without any it has none, but exists."""
        self.records[name, kind] = list(values)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if self.mute:
            return
        answer = self._answer(data)
        wire = answer.to_wire()
        if len(wire) > MAX_UDP_BYTES:
            short = dns.message.make_response(dns.message.from_wire(data))
            short.flags |= dns.flags.TC
            wire = short.to_wire()
        self._transport.sendto(wire, addr)

    async def on_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One question over TCP."""
        (size,) = struct.unpack("!H", await reader.readexactly(2))
        wire = self._answer(await reader.readexactly(size)).to_wire()
        self.over_tcp += 1
        writer.write(struct.pack("!H", len(wire)) + wire)
        writer.close()

    def _answer(self, data: bytes) -> dns.message.Message:
        question = dns.message.from_wire(data)
        (asked,) = question.question
        name, kind = asked.name.to_text(), dns.rdatatype.to_text(asked.rdtype)
        self.asked.append((name, kind))
        answer = dns.message.make_response(question)
        values = self.records.get((name, kind), [])
        if self.rcode is not None:
            answer.set_rcode(self.rcode)
        elif values:
            answer.answer.append(dns.rrset.from_text(name, self.ttl, "IN", kind, *values))
        elif not any(known == name for known, _ in self.records):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        return answer


@contextlib.asynccontextmanager
async def name_server() -> AsyncIterator[NameServer]:
    """A running one; its port is free for UDP and TCP."""
    loop = asyncio.get_running_loop()
    server = NameServer()
    tcp = await asyncio.start_server(server.on_tcp, "127.0.0.1", 0)
    server.port = tcp.sockets[0].getsockname()[1]
    transport, _ = await loop.create_datagram_endpoint(lambda: server, local_addr=("127.0.0.1", server.port))
    try:
        yield server
    finally:
        transport.close()
        tcp.close()
        await tcp.wait_closed()
