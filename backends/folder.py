"""The private folder that an engine's socket lies in.

Neighbour: process.py (EngineProcess), which makes it for each start and removes it.
"""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

SOCKET = "engine.sock"
# sockaddr_un holds 108 bytes with the NUL at the end. The longest path in the folder is that of a socket between
# processes of vLLM: "/rpc/" and a UUID.
_MAX_FOLDER_BYTES = 107 - 41


def new_folder() -> Path:
    """A name that nobody can guess, made when it is needed. In /tmp where the configured folder would make paths of
    sockets too long for the kernel."""
    name = f"upshift-{secrets.token_hex(8)}"
    for parent in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 - the name is random and the folder 0700
        folder = Path(parent, name)
        if len(os.fsencode(folder)) <= _MAX_FOLDER_BYTES:
            break
    return folder


def make_private(folder: Path) -> None:
    """Raises OSError unless `folder` is then ours alone."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} belongs to somebody else")
