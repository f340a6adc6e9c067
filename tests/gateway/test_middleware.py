"""Who a request is for, by its Host header."""

from __future__ import annotations

import pytest

from gateway.errors import HostRefused, OriginRefused, TooManyHeaders
from gateway.middleware import MAX_HEADER_FIELDS, HostGuard, is_loopback


def check(guard: HostGuard, *hosts: str, version: str = "1.1") -> None:
    guard.check([(b"host", host.encode()) for host in hosts], version)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8484",
        "localhost.",
        "app.localhost:1",
        "127.0.0.1",
        "127.9.9.9:8484",
        "[::1]",
        "[::1]:8484",
    ],
)
def test_loopback_listener_answers_to_loopback_names(host: str) -> None:
    check(HostGuard("127.0.0.1", ()), host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "192.168.1.2",
        "0.0.0.0",
        "[::]",
        "notlocalhost",
    ],
)
@pytest.mark.parametrize("listen", ["127.0.0.1", "localhost", "::1"])
def test_loopback_listener_refuses_other_names(listen: str, host: str) -> None:
    guard = HostGuard(listen, ())
    for _ in range(2):
        with pytest.raises(HostRefused, match="allowed_hosts"):
            check(guard, host)


def test_configured_names_are_answered_too() -> None:
    check(HostGuard("127.0.0.1", ("LLM.example",)), "llm.example:443")


@pytest.mark.parametrize("host", ["llm.example", "10.0.0.7:8484", "[fe80::1]:80"])
def test_open_listener_answers_to_any_name(host: str) -> None:
    check(HostGuard("0.0.0.0", ()), host)


@pytest.mark.parametrize(
    "host", ["", "a/v1?x=", "a b", "a:", "a:port", "user@localhost", "localhost#@x", "a\x00", "[::1", "a:123456", "é"]
)
@pytest.mark.parametrize("listen", ["127.0.0.1", "0.0.0.0"])
def test_malformed_hosts_are_refused_everywhere(listen: str, host: str) -> None:
    with pytest.raises(HostRefused):
        check(HostGuard(listen, ()), host)


def test_two_hosts_are_one_too_many_and_none_is_one_too_few() -> None:
    guard = HostGuard("127.0.0.1", ())
    for hosts in (("localhost", "localhost"), ("localhost", "evil.example"), ()):
        with pytest.raises(HostRefused):
            check(guard, *hosts)


def test_old_clients_may_leave_the_host_out() -> None:
    check(HostGuard("127.0.0.1", ()), version="1.0")


def test_header_fields_are_counted() -> None:
    guard = HostGuard("127.0.0.1", ())
    fields = [(b"host", b"localhost"), *[(b"x", b"1")] * (MAX_HEADER_FIELDS - 1)]
    guard.check(fields, "1.1")
    with pytest.raises(TooManyHeaders):
        guard.check([*fields, (b"x", b"1")], "1.1")


def test_remembered_hosts_stay_few() -> None:
    guard = HostGuard("0.0.0.0", ())
    for number in range(1000):
        check(guard, f"h{number}.example")
    assert len(guard._good) <= 64


def test_loopback_by_name_and_by_address() -> None:
    assert is_loopback("localhost")
    assert not is_loopback("10.0.0.1")


@pytest.mark.parametrize(
    ("origin", "welcome"),
    [
        ("http://localhost:3000", True),
        ("https://127.0.0.1", True),
        ("http://[::1]:3000", True),
        ("http://tauri.localhost", True),
        ("https://llm.example", True),
        ("app://obsidian.md", True),
        ("vscode-webview://1a2b", True),
        ("https://evil.example", False),
        ("http://localhost.evil.example", False),
        ("http://127.0.0.1.evil.example", False),
        ("null", False),
        ("", False),
        ("http://localhost@evil.example", False),
        ("chrome-extension://abcdef", False),
        ("javascript:localhost", False),
    ],
)
def test_pages_of_other_sites_are_refused_on_loopback(origin: str, welcome: bool) -> None:
    guard = HostGuard("127.0.0.1", ("llm.example",))
    headers = [(b"host", b"localhost"), (b"origin", origin.encode())]
    guard.check(headers[:1], "1.1")
    assert not guard.passes(dict(headers))
    if welcome:
        guard.check(headers, "1.1")
    else:
        with pytest.raises(OriginRefused):
            guard.check(headers, "1.1")


def test_beyond_loopback_origins_are_the_keys_business() -> None:
    HostGuard("0.0.0.0", ()).check([(b"host", b"localhost"), (b"origin", b"https://evil.example")], "1.1")
