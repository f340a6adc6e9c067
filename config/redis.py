"""Settings of the Redis that replicas of the gateway share. Neighbours: schema.py (the tree that has them)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

from config.tree import SourcePath, Tree


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """One server. `path` is a Unix socket's, in place of host and port; the password is in no text of this."""

    host: str
    port: int
    tls: bool = False
    path: str | None = None
    user: str = ""
    password: str = field(default="", repr=False)
    database: int = 0

    @property
    def shown(self) -> str:
        """Where it is, for people."""
        return self.path or f"{self.host}:{self.port}"


def parse_url(text: str) -> RedisUrl:
    """One server out of its URL. Raises ValueError."""
    parts = urlsplit(text)
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if parts.scheme == "unix" and parts.path and not parts.netloc:
        return RedisUrl("", 0, path=parts.path)
    database = parts.path.strip("/") or "0"
    if parts.scheme not in ("redis", "rediss") or not parts.hostname or not database.isdigit() or parts.query:
        raise ValueError
    return RedisUrl(parts.hostname, parts.port or 6379, parts.scheme == "rediss", None, user, password, int(database))


def _check(text: str) -> str:
    try:
        for part in text.split(",") if text else ():
            parse_url(part.strip())
    except ValueError as error:
        raise PydanticCustomError(
            "redis_url",
            "should be redis://[user:password@]host[:port][/database], rediss:// for TLS, or unix:///path; several "
            "servers of one group are separated by commas",
        ) from error
    return text


class RedisSettings(Tree):
    """The Redis (or Valkey) that counts the limits of all replicas together."""

    url: Annotated[str, StringConstraints(max_length=4096, strict=True), AfterValidator(_check)] = Field(
        default="", repr=False
    )
    """`redis://[user:password@]host[:port][/database]`, `rediss://` for TLS, `unix:///path`. Several servers of one
    replication group with commas between them: the one that takes writes is used. Empty: no Redis."""

    password_file: SourcePath | None = None
    """Instead of a password in the URL: a file that holds it; a relative path starts at the config file's folder."""

    prefix: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$", strict=True)] = "upshift"
    """Begins every key, as `{prefix}:`; gateways with the same prefix share their limits."""

    timeout_ms: Annotated[int, Field(strict=True, ge=1, le=1000)] = 20
    """Longest wait for Redis' answer; after that `limits.on_redis_error` decides."""

    @property
    def urls(self) -> tuple[RedisUrl, ...]:
        """The servers; none where Redis is not used."""
        return tuple(parse_url(part.strip()) for part in self.url.split(",")) if self.url else ()
