"""A listener that lets nobody new in still hands out who was there."""

from __future__ import annotations

import socket

import pytest

from gateway.lastcall import admit_no_more


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def test_who_has_connected_is_served_and_nobody_else_gets_in(family: socket.AddressFamily) -> None:
    host = "127.0.0.1" if family is socket.AF_INET else "::1"
    try:
        listener = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with listener, socket.create_connection(listener.getsockname()[:2]) as early, socket.socket(family) as late:
        admit_no_more([listener])
        late.settimeout(0.1)
        with pytest.raises(TimeoutError):
            late.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            early.sendall(b"hello")
            assert accepted.recv(5) == b"hello"
            accepted.sendall(b"bye")
            assert early.recv(3) == b"bye"
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_socket_that_takes_no_filter_is_left_as_it_is() -> None:
    closed = socket.socket()
    closed.close()
    admit_no_more([closed])
