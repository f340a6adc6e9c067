"""How a client learns that its call has failed: a status, an error event, or a connection that is cut.

Neighbours: relay.py (the caller), errors.py (the words), call.py (the way to the client).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from backends.sse import error_event
from gateway.call import Call
from gateway.errors import BodyTimeout, ClientGone, ErrorAnswer

# How long a refused client may go on sending its body, so that it gets to read why before the connection closes.
LINGER_SECONDS = 5.0
# How long the last words of a broken stream may wait for a client that reads slowly.
FAREWELL_SECONDS = 2.0


async def tell(
    call: Call, error: BaseException, refusal: ErrorAnswer, request_id: str, limits: bytes, *, in_events: bool
) -> None:
    """Says `refusal` in the way that is still possible, with the lines `limits` where it has a head. `in_events`: the
    answer that broke off is a stream."""
    if isinstance(error, ClientGone) or call.response_complete:
        return
    if not call.response_started:
        await _refuse(call, error, refusal, request_id, limits)
    elif in_events:
        # No [DONE] follows: a client must not take what it has for the whole answer.
        if call.paused and not await _within(FAREWELL_SECONDS, call.drain()):
            return
        call.finish(error_event(refusal.message, refusal.type, refusal.code))
    # A JSON body that broke off has no place for an error: without its end the connection is cut.


async def _refuse(call: Call, error: BaseException, refusal: ErrorAnswer, request_id: str, limits: bytes) -> None:
    unread = call.more_body
    if unread:
        call.keep_alive = False
    # The framing is the call's to add.
    headers = [header for header in refusal.headers if header[0] != b"content-length"]
    headers.append((b"x-request-id", request_id.encode()))
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    call.start(refusal.status, lines + limits, len(refusal.body))
    if not unread or isinstance(error, BodyTimeout):
        call.finish(refusal.body)
        return
    call.write(refusal.body)
    call.flush()
    # Closing at once would reset the connection under the refusal, and the client would see a broken pipe where it
    # should read the reason.
    await _within(LINGER_SECONDS, call.discard_body())
    call.finish()


async def _within(seconds: float, waiting: Awaitable[None]) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await waiting
    except TimeoutError:
        return False
    return True
