"""Which trace a request belongs to."""

from __future__ import annotations

import json

import pytest

from gateway.trace import TraceContext, parse
from tests.fakes import FakeBackend
from tests.gateway.running import CHAT, body, serving

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (f"00-{TRACE}-{SPAN}-01", TraceContext(TRACE, SPAN, True)),
        (f"00-{TRACE}-{SPAN}-00", TraceContext(TRACE, SPAN, False)),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-brings", TraceContext(TRACE, SPAN, True)),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{TRACE[1:]}-{SPAN}-01", None),
        (f" 00-{TRACE}-{SPAN}-01", None),
        ("", None),
    ],
)
def test_header_is_read_as_the_standard_says(header: str, found: TraceContext | None) -> None:
    assert parse(header.encode()) == found


async def test_valid_context_goes_on_to_the_engine_and_into_exemplars() -> None:
    backend = FakeBackend()
    async with serving(backend) as gateway:
        for header in (f"00-{TRACE}-{SPAN}-01", "nonsense", None):
            headers = {} if header is None else {"traceparent": header}
            assert (await gateway.client.post(CHAT, json=body(), headers=headers)).status_code == 200
        accept = {"accept": "application/openmetrics-text; version=1.0.0"}
        shown = (await gateway.client.get("/metrics", headers=accept)).text
    sent = [dict(request.headers) for request in backend.requests]
    assert sent == [{b"traceparent": f"00-{TRACE}-{SPAN}-01".encode()}, {}, {}]
    assert f'trace_id="{TRACE}"' in shown
    assert "nonsense" not in shown + json.dumps(gateway.lines())
