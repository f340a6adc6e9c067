"""What a finished request leaves in metrics and log."""

from __future__ import annotations

import asyncio
import json
from time import perf_counter

import pytest

from backends.base import Operation, Usage
from backends.errors import BackendTimeout
from gateway.errors import ClientGone
from gateway.log import AccessLog
from gateway.metrics import Metrics
from gateway.record import Journal, Record


def finished(**fields: object) -> Record:
    record = Record(Operation.CHAT, "r", perf_counter())
    record.model, record.backend, record.reason, record.status = "m", "b", "only", 200
    vars(record).update(fields)
    return record


async def settle(record: Record) -> tuple[Metrics, dict[str, object]]:
    written: list[str] = []
    metrics, log = Metrics(), AccessLog(written.append)
    journal = Journal(metrics, log)
    journal.settle(record)
    journal.close()
    return metrics, json.loads(written[0])


async def test_success_is_counted_with_its_tokens() -> None:
    metrics, line = await settle(finished(usage=Usage(3, 4, 1), bytes_in=10, bytes_out=20))
    series = metrics.series("m", "b")
    assert series.requests == {(Operation.CHAT, 200): 1}
    assert (series.prompt_tokens, series.completion_tokens, series.cached_tokens) == (3, 4, 1)
    assert (line["prompt_tokens"], line["completion_tokens"], line["code"]) == (3, 4, "")


async def test_failure_is_logged_with_its_code() -> None:
    metrics, line = await settle(finished(status=504, error=BackendTimeout("x")))
    assert metrics.series("m", "b").requests == {(Operation.CHAT, 504): 1}
    assert line["code"] == "backend_timeout"
    assert metrics.cancelled == {"body": 0, "waiting": 0, "streaming": 0}


async def test_leaving_is_counted_by_stage() -> None:
    metrics, _ = await settle(finished(status=499, error=ClientGone("x"), stage="waiting"))
    assert metrics.cancelled == {"body": 0, "waiting": 1, "streaming": 0}


async def test_times_count_only_where_there_was_something_to_time() -> None:
    metrics, line = await settle(finished())
    series = metrics.series("m", "b")
    assert (sum(series.first_token.counts), sum(series.overhead.counts)) == (0, 0)
    assert line["first_byte_ms"] is None
    now = perf_counter()
    metrics, line = await settle(finished(started=now - 2, first_byte=now - 1, first_token=now, overhead_seconds=0.1))
    series = metrics.series("m", "b")
    assert (series.first_token.total, series.overhead.total) == (2, 0.1)
    assert line["first_byte_ms"] == 1000.0


async def test_one_that_cannot_be_written_down_takes_no_other_with_it(caplog: pytest.LogCaptureFixture) -> None:
    written: list[str] = []
    metrics, log = Metrics(), AccessLog(written.append)
    journal = Journal(metrics, log)
    journal.settle(finished(usage="not a usage"))
    journal.settle(finished(usage=Usage(3, 4, 1)))
    assert not metrics.items()
    await asyncio.sleep(0)  # the next turn
    log.flush()
    assert [json.loads(line)["prompt_tokens"] for line in written] == [3]
    assert [record.getMessage() for record in caplog.records] == ["request r could not be written down"]
