"""Listening sockets, bound before anything is started. Neighbours: server.py (one process), workers/start.py (more)."""

from __future__ import annotations

import errno
import socket

BACKLOG = 2048


class ListenError(Exception):
    """The address cannot be listened on. The message says which and why."""


def bind(host: str, port: int, option: str = "--port") -> list[socket.socket]:
    """Listening sockets on every address that `host` names (localhost is IPv4 and IPv6). Raises ListenError.

    Bound before engines are started, so that a second gateway on the port ends at once and leaves nothing behind.
    `option` is where another port could be chosen.
    """
    where = f"{host}:{port}"
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise ListenError(f"cannot listen on {where}: {error.strerror}") from error
    sockets: list[socket.socket] = []
    for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
        # With port 0 the first socket's choice holds for all.
        chosen = sockets[0].getsockname()[1] if sockets and port == 0 else port
        try:
            sockets.append(_listen(family, (address[0], chosen)))
        except OSError as error:
            if sockets and isinstance(error, OSError) and family == socket.AF_INET6:
                continue  # a machine may have IPv6 in its hosts file and not on its interfaces
            for bound in sockets:
                bound.close()
            taken = error.errno == errno.EADDRINUSE
            hint = f"; another program uses it, choose a different one with {option}" if taken else ""
            raise ListenError(f"cannot listen on {where}: {error.strerror}{hint}") from error
    return sockets


def bind_each(host: str, port: int, workers: int, option: str = "--port") -> list[list[socket.socket]]:
    """`bind` once for each worker: the kernel spreads new connections over them. Raises ListenError.

    Sockets of its own and not one for all: with one, a worker that wakes up takes every connection that waits.
    """
    first = bind(host, port, option)
    try:
        # Only now: a socket that allows sharing from the beginning would join those of a gateway that runs already.
        for listener in first:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        others = [
            [_listen(listener.family, listener.getsockname(), shared=True) for listener in first]
            for _ in range(workers - 1)
        ]
    except OSError as error:
        for listener in first:
            listener.close()
        raise ListenError(f"cannot listen on {host}:{port} with {workers} workers: {error.strerror}") from error
    return [first, *others]


def _listen(family: int, address: tuple[object, ...], *, shared: bool = False) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener
