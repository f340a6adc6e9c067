"""Access lines: valid JSON, whole batches, nothing of the client's."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
from typing import Any

import pytest

from backends.base import Operation, Usage
from gateway import log
from gateway.keys import new_key
from gateway.log import FLUSH_LINES, AccessLog
from gateway.record import Record
from tests.canary import kinds


def a_record(**more: Any) -> Record:
    """Of a stream that took 1.23456 s."""
    record = Record(Operation.CHAT, "r-1", 100.0)
    usual = {"key": "alice", "model": 'mo"del', "backend": "b", "reason": "only", "status": 200, "stream": True}
    for name, value in {**usual, "bytes_in": 10, "bytes_out": 20, "usage": Usage(3, 4), **more}.items():
        setattr(record, name, value)
    return record


SECONDS = 1.23456


async def test_line_is_json_with_everything_about_the_request() -> None:
    written: list[str] = []
    access_log = AccessLog(written.append)
    access_log.add(a_record(), SECONDS, "")
    access_log.add(a_record(first_byte=100.5, first_token=100.6, stream=False, usage=None), SECONDS, "")
    access_log.add(a_record(status=502, stage="waiting"), SECONDS, "backend_error")
    access_log.flush()
    first, second, third = (json.loads(line) for line in "".join(written).splitlines())
    assert first | {"time": ""} == {
        "time": "",
        "event": "request",
        "request_id": "r-1",
        "operation": "chat",
        "key": "alice",
        "model": 'mo"del',
        "backend": "b",
        "reason": "only",
        "status": 200,
        "code": "",
        "stage": "",
        "stream": True,
        "duration_ms": 1234.6,
        "first_byte_ms": None,
        "first_token_ms": None,
        "bytes_in": 10,
        "bytes_out": 20,
        "prompt_tokens": 3,
        "completion_tokens": 4,
    }
    assert first["time"].endswith("Z")
    assert (second["first_byte_ms"], second["first_token_ms"], second["stream"]) == (500.0, 600.0, False)
    assert (second["prompt_tokens"], second["completion_tokens"]) == (0, 0)
    assert (third["status"], third["code"], third["stage"]) == (502, "backend_error", "waiting")


CONTROL: dict[str, Any] = {
    "request_id": "r-2",
    "method": "DELETE",
    "path": "/admin/keys/*",
    "status": 403,
    "duration_seconds": 0.01234,
    "key": 'al"ice',
}


async def test_lines_of_other_requests_say_what_was_asked_for() -> None:
    written: list[str] = []
    access_log = AccessLog(written.append)
    access_log.add_control(**CONTROL)
    access_log.flush()
    (text,) = written
    assert text.endswith("}\n")
    line = json.loads(text)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    shown = {"duration_ms" if name == "duration_seconds" else name: value for name, value in CONTROL.items()}
    assert line == {**shown, "event": "control", "duration_ms": 12.3}


async def test_full_batch_is_written_at_once() -> None:
    written: list[str] = []
    access_log = AccessLog(written.append)
    for _ in range(FLUSH_LINES):
        assert written == []
        access_log.add(a_record(), SECONDS, "")
    assert [text.count("\n") for text in written] == [FLUSH_LINES]
    access_log.flush()
    assert len(written) == 1


async def test_lonely_line_is_written_after_a_moment() -> None:
    arrived = asyncio.Event()
    AccessLog(lambda _: arrived.set()).add(a_record(), SECONDS, "")
    assert not arrived.is_set()
    async with asyncio.timeout(5):
        await arrived.wait()


async def test_reader_that_went_away_costs_nothing_but_its_lines() -> None:
    closed = io.StringIO()
    closed.close()
    log.writer(closed)("line\n")


def test_log_is_json_where_nobody_watches() -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    stream = io.StringIO()
    try:
        log.configure(stream=stream)
        try:
            raise ValueError("cause")
        except ValueError:
            logging.getLogger("x").exception("it %s", "broke")
    finally:
        root.handlers[:], root.level = before
    line = json.loads(stream.getvalue())
    assert (line["level"], line["logger"], line["message"]) == ("error", "x", "it broke")
    assert "ValueError: cause" in line["exception"]


@pytest.mark.parametrize("form", ["json", "pretty"])
def test_error_that_quotes_a_key_or_a_token_is_told_without(form: Any) -> None:
    key, token = new_key(), "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl"
    root = logging.getLogger()
    before = root.handlers[:], root.level
    stream = io.StringIO()
    try:
        log.configure(form, stream=stream)
        try:
            raise ValueError({b"authorization": f"Bearer {key}".encode(), b"x-api-key": token})
        except ValueError:
            logging.getLogger("x").exception("%s broke it", key)
    finally:
        root.handlers[:], root.level = before
    assert "ValueError" in stream.getvalue()
    assert "Bearer ***" in stream.getvalue()
    assert "*** broke it" in stream.getvalue()
    assert kinds(stream.getvalue().encode()) == set()


def test_log_is_plain_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    root = logging.getLogger()
    before = root.handlers[:], root.level
    stream = Terminal()
    try:
        log.configure(stream=stream)
        logging.getLogger("upshift").warning("careful")
    finally:
        root.handlers[:], root.level = before
    assert stream.getvalue().endswith("WARNING upshift: careful\n")


async def test_line_for_people_says_what_they_would_ask() -> None:
    written: list[str] = []
    pretty = log.access_log("pretty", io.StringIO(), written.append)
    pretty.add(a_record(first_token=100.05), SECONDS, "")
    failed = a_record(status=504, stage="waiting", key="", model="m", backend="", reason="")
    pretty.add(failed, SECONDS, "backend_timeout")
    pretty.add_control(**CONTROL)
    pretty.add_control(**{**CONTROL, "key": ""})
    pretty.add(a_record(usage=Usage()), SECONDS, "")
    pretty.flush()
    first, second, third, fourth, fifth = "".join(written).splitlines()
    assert first.endswith(' 200 chat mo"del on b (only) 1.23 s (first token 50 ms) 3+4 tokens for alice r-1')
    assert second.endswith(" 504 chat m 1.23 s 3+4 tokens backend_timeout while waiting r-1")
    assert third.endswith(' 403 DELETE /admin/keys/* 0.01 s for al"ice r-2')
    assert fourth.endswith(" 403 DELETE /admin/keys/* 0.01 s r-2")
    assert fifth.endswith(' 200 chat mo"del on b (only) 1.23 s for alice r-1')


@pytest.mark.parametrize(
    ("form", "terminal", "pretty"), [("auto", True, True), ("auto", False, False), ("json", True, False)]
)
def test_form_follows_the_settings_and_then_the_terminal(form: Any, terminal: bool, pretty: bool) -> None:
    stream = io.StringIO()
    stream.isatty = lambda: terminal  # type: ignore[method-assign]
    assert isinstance(log.access_log(form, stream, stream.write), log.PrettyAccessLog) is pretty
