"""Whom an address header is believed."""

from __future__ import annotations

import pytest

from gateway.address import ClientAddress

PROXIES = ClientAddress(["10.0.0.0/8", "2001:db8::/32", "127.0.0.1"])


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("192.0.2.1", ["1.2.3.4"], "192.0.2.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["1.2.3.4"], "1.2.3.4"),
        ("10.0.0.1", ["6.6.6.6, 1.2.3.4"], "1.2.3.4"),
        ("10.0.0.1", ["6.6.6.6", "1.2.3.4"], "1.2.3.4"),
        ("10.0.0.1", ["6.6.6.6, 1.2.3.4, 10.9.9.9"], "1.2.3.4"),
        ("10.0.0.1", ["10.1.1.1, 10.2.2.2"], "10.1.1.1"),
        ("10.0.0.1", ["1.2.3.4:5678"], "1.2.3.4"),
        ("2001:db8::1", ["[2a00::1]:443"], "2a00::1"),
        ("10.0.0.1", ["2a00::1"], "2a00::1"),
        ("10.0.0.1", ["::ffff:1.2.3.4"], "1.2.3.4"),
        ("10.0.0.1", ["1.2.3.4, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["1.2.3.4, \xff, 10.3.3.3"], "10.3.3.3"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("", ["1.2.3.4"], ""),
    ],
)
def test_rightmost_address_that_no_proxy_has_is_the_clients(peer: str, forwarded: list[str], client: str) -> None:
    headers = [(b"host", b"x"), *((b"x-forwarded-for", value.encode("latin-1")) for value in forwarded)]
    assert PROXIES.of(peer, headers) == client


def test_without_trusted_proxies_the_header_means_nothing() -> None:
    assert ClientAddress([]).of("127.0.0.1", [(b"x-forwarded-for", b"1.2.3.4")]) == "127.0.0.1"
