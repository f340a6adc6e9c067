"""What the gateway writes: batched JSON access lines, and the few lines a person at a terminal wants to see.

Neither ever holds a body, a header value or a name the client made up. Neighbours: relay.py (one line per inference
request), dataplane.py (one for each other), server.py (chooses the streams).
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TextIO

from config.edge import LogFormat as Form

if TYPE_CHECKING:
    from gateway.record import Record

# Each batch wakes the thread that writes, which then wants the interpreter for itself: at 128 lines it did so 150
# times a second at full load, for 4 % of it.
FLUSH_LINES = 1024
FLUSH_SECONDS = 0.25

_STAGES = {"body": "reading its body", "waiting": "waiting", "streaming": "answering"}
_NAMES = ("operation", "key", "model", "backend", "reason")


@lru_cache(maxsize=4096)
def _fields(*names: str) -> str:
    """The names of a line as JSON: put together once for each combination, not once for each line."""
    return "".join(f'"{field}":{json.dumps(name)},' for field, name in zip(_NAMES, names, strict=True))


class AccessLog:
    """Collects lines of JSON and writes them 1024 at a time, or a quarter of a second after the first of a batch.

    `write` gets whole lines and belongs to the caller, who calls `flush` before closing what is behind it.
    """

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._lines: list[str] = []
        self._timer: asyncio.TimerHandle | None = None
        self._second = 0
        self._stamp = ""

    def add(self, record: Record, duration_seconds: float, code: str) -> None:
        """One finished request. Its names are configured ones, `request_id` is of the safe alphabet; `code` is that of
        its error, empty for success."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        started, first_byte, first_token, usage = record.started, record.first_byte, record.first_token, record.usage
        byte = "null" if first_byte is None else f"{(first_byte - started) * 1000:.1f}"
        token = "null" if first_token is None else f"{(first_token - started) * 1000:.1f}"
        fields = _fields(record.operation, record.key, record.model, record.backend, record.reason)
        self._put(
            f'{{"time":"{self._stamp}.{int((now - second) * 1000):03d}Z","event":"request",'
            f'"request_id":"{record.request_id}",{fields}"status":{record.status},'
            f'"code":"{code}","stage":"{record.stage if code else ""}",'
            f'"stream":{"true" if record.stream else "false"},"duration_ms":{duration_seconds * 1000:.1f},'
            f'"first_byte_ms":{byte},"first_token_ms":{token},"bytes_in":{record.bytes_in},'
            f'"bytes_out":{record.bytes_out},"prompt_tokens":{0 if usage is None else usage.prompt_tokens},'
            f'"completion_tokens":{0 if usage is None else usage.completion_tokens}}}\n'
        )

    def add_control(
        self, *, request_id: str, method: str, path: str, status: int, duration_seconds: float, key: str
    ) -> None:
        """One finished request that was no inference POST. `method` is one that HTTP knows, `path` made of words that
        we know, `key` the name of the key that came with it, empty where none was asked for."""
        self._put(
            f'{{"time":"{_stamp(time.time())}","event":"control","request_id":"{request_id}","method":"{method}",'
            f'"path":"{path}","key":{json.dumps(key)},"status":{status},"duration_ms":{duration_seconds * 1000:.1f}}}\n'
        )

    def _put(self, line: str) -> None:
        self._lines.append(line)
        if self._timer is None or len(self._lines) >= FLUSH_LINES:
            self._plan()

    def _plan(self) -> None:
        if len(self._lines) >= FLUSH_LINES:
            self.flush()
        else:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)

    def flush(self) -> None:
        """Writes what is collected, now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._lines:
            text = "".join(self._lines)
            self._lines.clear()
            self._write(text)


class PrettyAccessLog(AccessLog):
    """The same for a person who watches: a line to read, with less in it."""

    def add(self, record: Record, duration_seconds: float, code: str) -> None:
        """One finished request, told by the same fields."""
        words = [time.strftime("%H:%M:%S"), str(record.status), record.operation, record.model]
        if record.backend:
            words.append(f"on {record.backend} ({record.reason})" if record.reason else f"on {record.backend}")
        words.append(f"{duration_seconds:.2f} s")
        if record.first_token is not None:
            words.append(f"(first token {(record.first_token - record.started) * 1000:.0f} ms)")
        usage = record.usage
        if usage is not None and (usage.prompt_tokens or usage.completion_tokens):
            words.append(f"{usage.prompt_tokens}+{usage.completion_tokens} tokens")
        if code:
            words.append(f"{code} while {_STAGES[record.stage]}")
        if record.key:
            words.append(f"for {record.key}")
        self._put(" ".join([*words, record.request_id]) + "\n")

    def add_control(
        self, *, request_id: str, method: str, path: str, status: int, duration_seconds: float, key: str
    ) -> None:
        """The same for one that was no inference POST."""
        words = [time.strftime("%H:%M:%S"), str(status), method, path, f"{duration_seconds:.2f} s"]
        self._put(" ".join([*words, *([f"for {key}"] if key else []), request_id]) + "\n")


def access_log(form: Form, stream: TextIO, write: Callable[[str], object]) -> AccessLog:
    """The access log that writes to `stream` by `write`."""
    return (PrettyAccessLog if _is_pretty(form, stream) else AccessLog)(write)


def _is_pretty(form: Form, stream: TextIO) -> bool:
    return stream.isatty() if form == "auto" else form == "pretty"


def _stamp(seconds: float) -> str:
    """A time in seconds since 1970 as the lines have it: UTC, milliseconds."""
    whole = int(seconds)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{int((seconds - whole) * 1000):03d}Z"


def writer(stream: TextIO) -> Callable[[str], None]:
    """Writes and flushes; a reader that has gone away (a closed pipe) or a full disk costs its lines and nothing
    else."""

    def write(text: str) -> None:
        try:
            stream.write(text)
            stream.flush()
        except (OSError, ValueError):
            pass

    return write


# The text of an error that nobody expected may quote what was sent: keys of ours, whole tokens.
_SECRETS = re.compile(r"up-[0-9A-Za-z]{39}|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*")


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _SECRETS.sub("***", super().format(record))


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"time": _stamp(record.created), "event": "log"}
        line |= {"level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _SECRETS.sub("***", json.dumps(line))


def configure(form: Form = "auto", level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Points the logging of the whole process at stderr: plain lines, or JSON; `auto`: plain ones on a terminal.

    Does nothing to loggers that already have handlers of their own.
    """
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    plain = _Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S")
    handler.setFormatter(plain if _is_pretty(form, stream) else _JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # uvicorn says "Exception in ASGI application" whenever the relay cuts a connection on purpose; what matters of
    # that is logged here. httpx would log the address of every call.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # Its news are failures; that a model is ready is said in the gateway's own words.
    logging.getLogger("backends.process").setLevel(logging.WARNING)
