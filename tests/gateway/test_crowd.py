"""Connections per address: counted by address or /64, given back once, proxies left out."""

from __future__ import annotations

import asyncio

import pytest

from gateway.address import ClientAddress
from gateway.crowd import Crowd
from tests.fakes import FakeBackend
from tests.gateway.running import serving


class At(asyncio.BaseTransport):
    def __init__(self, peer: object) -> None:
        super().__init__({"peername": peer})


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
    ],
)
def test_one_place_per_address_is_full_with_one(first: str, second: str, same: bool) -> None:
    crowd = Crowd(1)
    assert crowd.admit("a", At((first, 1)))
    assert crowd.admit("b", At((second, 2))) is not same
    for _ in range(2):
        crowd.leave("a")
        crowd.leave("b")
    assert crowd.admit("c", At((second, 3)))


def test_asking_again_takes_no_second_place() -> None:
    crowd = Crowd(2)
    assert all(crowd.admit("a", At(("192.0.2.1", 1))) for _ in range(5))
    assert crowd.admit("b", At(("192.0.2.1", 2)))
    assert not crowd.admit("c", At(("192.0.2.1", 3)))


@pytest.mark.parametrize("peer", [("10.1.2.3", 1), "", None])
def test_proxies_and_unix_sockets_are_not_counted(peer: object) -> None:
    crowd = Crowd(1, ClientAddress(["10.0.0.0/8"]).trusts)
    assert all(crowd.admit(number, At(peer)) for number in range(10))


async def test_one_address_cannot_take_all_places() -> None:
    async with serving(FakeBackend(), max_connections_per_address=2) as gateway:
        async with gateway.connection() as one, gateway.connection() as two:
            for reader, writer in (one, two):
                writer.write(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
                assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
            assert (await gateway.raw(b"GET /livez HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 503 ")
        gateway.disconnect()
        assert (await gateway.client.get("/livez")).status_code == 200


async def test_proxies_that_are_trusted_since_a_reload_are_not_counted_any_more() -> None:
    async with serving(FakeBackend(), max_connections_per_address=1) as gateway, gateway.connection():
        assert (await gateway.raw(b"GET /livez HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 503 ")
        server = {**gateway.settings.server.model_dump(), "trusted_proxies": ["127.0.0.0/8"]}
        await gateway.reload(server=server)
        head = b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        assert (await gateway.raw(head)).startswith(b"HTTP/1.1 200 ")
