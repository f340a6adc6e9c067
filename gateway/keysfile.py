"""The keys file: names, hashes and rights of API keys, read as a whole or not at all, replaced in one step.

Neighbours: keys.py (the keys themselves), auth.py (principals from entries), cli/keys.py (edits the file).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import stat
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from config.document import parse
from config.errors import ConfigError, Problem
from config.limits import LimitSettings, TierName
from config.load import MAX_FILE_BYTES, read_text
from config.tree import ModelName, Network
from config.validate import validate

_HEADING = """\
# API keys of Upshift, without the keys: only their SHA-256. `upshift keys add|list|revoke|rotate` rewrites this file;
# comments of your own do not survive that.
"""

logger = logging.getLogger(__name__)


def expiry(text: str) -> float:
    """The first moment, in seconds since 1970, at which a key with `expires: text` no longer works.

    A date counts to its end; a time without zone is UTC. Raises ValueError.
    """
    try:
        moment = datetime.combine(date.fromisoformat(text), time()) + timedelta(days=1)
    except ValueError:
        moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


def _check_expiry(text: str) -> str:
    try:
        expiry(text)
    except (ValueError, OverflowError) as error:
        raise PydanticCustomError(
            "expiry", "should be a date or a time, such as 2027-01-31 or 2027-01-31T12:00Z"
        ) from error
    return text


KeyName = Annotated[
    str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._@+-]*$", strict=True)
]
KeyHash = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$", strict=True)]
# Parts of the gateway: the models, and /metrics with /admin.
Surface = Literal["openai", "operators"]
ALL_SURFACES: frozenset[Surface] = frozenset(get_args(Surface))
# What a key covers that does not say. The operators' see everybody's figures and make keys: nobody gets them unasked.
CLIENT_SURFACES = ALL_SURFACES - {"operators"}
Expiry = Annotated[str, StringConstraints(max_length=64, strict=True), AfterValidator(_check_expiry)]


class KeyEntry(BaseModel):
    """One key: what is known of it, and what it may do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: KeyName
    hash: KeyHash
    tier: TierName | None = None
    models: Annotated[tuple[ModelName, ...], Field(min_length=1, max_length=1000)] | None = None
    limits: LimitSettings = LimitSettings()
    expires: Expiry | None = None
    addresses: Annotated[tuple[Network, ...], Field(min_length=1, max_length=256)] | None = None
    surfaces: Annotated[tuple[Surface, ...], Field(min_length=1, max_length=16)] | None = None


class KeysFile(BaseModel):
    """All keys. Names and hashes are unique."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[KeyEntry, ...] = ()

    @model_validator(mode="after")
    def _are_unique(self) -> KeysFile:
        for field in ("name", "hash"):
            seen: dict[str, int] = {}
            for index, entry in enumerate(self.keys):
                first = seen.setdefault(getattr(entry, field), index)
                if first != index:
                    detail = {"place": ("keys", index, field), "first": str(first)}
                    raise PydanticCustomError("taken", "is already that of keys[{first}]", detail)
        return self


def load_keys(file: Path) -> KeysFile:
    """Reads and validates. Raises ConfigError that lists every problem with its place; warns of a file that every
    user of the machine can read."""
    document = parse(read_text(file), {})
    keys = validate(KeysFile, document, str(file))
    with contextlib.suppress(OSError):
        if file.stat().st_mode & stat.S_IROTH:
            logger.warning("%s can be read by every user of this machine: chmod o-r %s", file, file)
    return keys


def write_keys(file: Path, keys: KeysFile) -> None:
    """Replaces the file in one step, so that nobody ever reads half of it. A new file has mode 0600; an existing one
    keeps its owner and mode, less what others may do.

    Raises OSError, and ConfigError where the keys are more than could be read again.
    """
    file = file.resolve()
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    plain = keys.model_dump(mode="json", exclude_defaults=True) or {"keys": []}
    text = _HEADING + yaml.safe_dump(plain, sort_keys=False)
    too_large = Problem((), f"would be larger than {MAX_FILE_BYTES} bytes")
    problems = [too_large] if len(text) > MAX_FILE_BYTES else parse(text, {}).problems
    if problems:
        raise ConfigError(str(file), tuple(problems))
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            _keep_owner(file, stream.fileno())
            os.fsync(stream.fileno())
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _keep_owner(file: Path, descriptor: int) -> None:
    """The gateway may run as another user than the one who adds keys."""
    with contextlib.suppress(FileNotFoundError):
        old = file.stat()
        if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(descriptor, old.st_uid, old.st_gid)
        os.fchmod(descriptor, stat.S_IMODE(old.st_mode) & ~stat.S_IRWXO)


@contextlib.contextmanager
def editing(file: Path) -> Iterator[KeysFile]:
    """What the file says now (nothing where there is none), with every other editor kept waiting until the end of the
    block. Raises ConfigError."""
    try:
        folder = os.open(file.resolve().parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigError(str(file), (Problem((), f"its folder cannot be read: {error.strerror}"),)) from error
    try:
        # The lock is the folder's: the file itself is replaced under whoever would hold a lock on it.
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield load_keys(file) if file.exists() else KeysFile()
    finally:
        os.close(folder)
