"""Stops new connections at the door, so that a listener can be closed without losing those already inside.

Closing a listening socket resets every connection that the kernel has accepted and the program has not; closing a
connection loses the request that it has brought. Neighbours: server.py, which waits between the two, listener.py.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import socket
import struct
import termios
from collections.abc import Iterable
from contextlib import suppress

# How long after a signal a connection that exists may send a request.
LAST_CALL_SECONDS = 0.2

_SO_ATTACH_FILTER = 26  # asm-generic/socket.h; the socket module does not name it

# A classic BPF program over the TCP header, (code, jump if true, jump if false, constant) per line. Handshakes that
# have begun go on; a first SYN is dropped, and its repetition a second later finds the port closed.
_NO_SYN = (
    (0x30, 0, 0, 13),  # load the byte of the flags
    (0x45, 0, 1, 0x02),  # SYN set?
    (0x06, 0, 0, 0),  # then drop the packet,
    (0x06, 0, 0, 0xFFFFFFFF),  # else keep all of it
)


def admit_no_more(listeners: Iterable[socket.socket]) -> None:
    """From now on nobody new connects to `listeners`; who has connected can still be accepted. Where the kernel does
    not allow it, nothing happens."""
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in _NO_SYN))
    # struct sock_fprog: a count, and the pointer at its natural alignment.
    described = struct.pack("HP", len(_NO_SYN), ctypes.addressof(program))
    for listener in listeners:
        with suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)


def has_unread(transport: asyncio.Transport) -> bool:
    """Whether something has come on a connection that its protocol has not been given yet."""
    connection = transport.get_extra_info("socket")
    if connection is None or transport.is_closing():
        return False
    (count,) = struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.FIONREAD, bytes(4)))
    return bool(count)
