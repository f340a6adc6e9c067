"""One inference call from its first body byte to its last answer byte, and the one place that lets go of everything.

Chunks are passed on unparsed; the client's leaving is watched from the moment its body is complete. Neighbours:
intake.py (body to request), events.py (where an SSE event ends), watch.py, record.py (metrics and log), errors.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from time import perf_counter
from typing import Any

from backends.base import BackendResponse, InferenceRequest, Operation
from backends.errors import BackendError, BackendProtocolError, BackendTimeout
from backends.sse import UsageSniffer, error_event
from config.schema import ServerSettings
from gateway import intake
from gateway.errors import BodyTimeout, ClientGone, ErrorAnswer, ShuttingDown, answer
from gateway.events import WholeEvents, is_opening
from gateway.intake import Receive
from gateway.record import Journal, Record
from gateway.watch import Watch
from routing.router import Routed, Router

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = dict[bytes, bytes]

# How long a refused client may go on sending its body, so that it gets to read why before the connection closes.
LINGER_SECONDS = 5.0
# How long the last words of a broken stream may wait for a client that reads slowly.
FAREWELL_SECONDS = 2.0

logger = logging.getLogger(__name__)


class Relay:
    """Carries requests from clients to the router and answers back."""

    def __init__(self, settings: ServerSettings, router: Router, journal: Journal) -> None:
        self._settings = settings
        self._router = router
        self._journal = journal

    async def serve(
        self, operation: Operation, headers: Headers, request_id: str, receive: Receive, send: Send
    ) -> None:
        """Answers one request and settles it exactly once, whatever becomes of it."""
        exchange = _Exchange(self._settings, Record(operation, request_id, perf_counter()), receive, send)
        record, watch = exchange.record, exchange.watch
        try:
            await exchange.run(self._router, headers)
        except asyncio.CancelledError:
            record.error = watch.recover() or ShuttingDown("The gateway is shutting down.")
        except Exception as error:  # noqa: BLE001 - the last stop: becomes a 500, is logged and counted
            record.error = error
        finally:
            watch.close()
            if record.error is not None:
                refusal = answer(record.error, record.request_id)
                record.status = refusal.status
            self._journal.settle(record)
        if record.error is not None:
            _report(record)
            await exchange.fail(refusal)


def _report(record: Record) -> None:
    """Failures that are nobody's refusal go to the log, with the cause that the client is not told."""
    error = record.error
    if record.status < 500:
        return
    if isinstance(error, BackendError | ShuttingDown):
        logger.warning("request %s on %s failed: %s", record.request_id, record.backend or record.model, error)
    else:
        logger.error("request %s failed unexpectedly", record.request_id, exc_info=error)


class _Exchange:
    """The state of one request between client and upstream."""

    def __init__(self, settings: ServerSettings, record: Record, receive: Receive, send: Send) -> None:
        self.record = record
        self.watch = Watch()
        self._settings = settings
        self._receive = receive
        self._send = send
        self._body_read = False
        self._started = False
        self._is_sse = False
        self._sending = False

    async def run(self, router: Router, headers: Headers) -> None:
        """Raises what went wrong; returns when the whole answer has been handed to the server."""
        request = await self._read(headers)
        arrived = perf_counter()
        self.watch.listen(self._receive)
        self.watch.expect(self._settings.response_timeout_seconds, self._too_late)
        record = self.record
        record.stage = "waiting"
        record.stream = request.stream
        record.model = router.catalog.resolve(request.model).model
        record.overhead_seconds = perf_counter() - arrived
        try:
            routed = await router.dispatch(request)
        except BackendError as error:
            record.backend = error.backend
            raise
        await self._pass_on(routed)

    async def _read(self, headers: Headers) -> InferenceRequest:
        limit = self._settings.max_body_bytes
        get = headers.get
        intake.check_headers(
            get(b"content-type", b""), get(b"content-encoding", b""), get(b"content-length", b""), limit
        )
        self.watch.expect(self._settings.body_timeout_seconds, _body_too_late)
        body = await intake.read_body(self._receive, limit)
        self._body_read = True
        self.record.bytes_in = len(body)
        return intake.decode(body, self.record.operation, self.record.request_id)

    async def _pass_on(self, routed: Routed) -> None:
        response, record = routed.response, self.record
        record.backend = routed.upstream.backend.name
        record.reason = routed.decision.reason
        sniffer = UsageSniffer()
        whole = False
        try:
            content_type = _header(response, b"content-type") or b"application/json"
            self._is_sse = content_type.startswith(b"text/event-stream")
            self.watch.expect(self._settings.idle_timeout_seconds, self._too_late)
            await (self._stream if self._is_sse else self._whole)(response, content_type, sniffer)
            record.status = response.status
            whole = True
        finally:
            # The one release: it returns or aborts the upstream connection, which frees the slot and stops the engine.
            # An abort is shielded: cancelled in the middle, it would leave an engine computing for nobody.
            record.usage = sniffer.usage
            self.watch.close()
            await (response.aclose() if whole else asyncio.shield(response.aclose()))

    async def _stream(self, response: BackendResponse, content_type: bytes, sniffer: UsageSniffer) -> None:
        record, watch, events = self.record, self.watch, WholeEvents()
        await self._deliver(self._head(response.status, content_type, _SSE_HEADERS))
        try:
            async for chunk in response.chunks:
                arrived = perf_counter()
                watch.progress()
                sniffer.feed(chunk)
                ready = events.feed(chunk)
                if ready:
                    await self._deliver({"type": "http.response.body", "body": ready, "more_body": True})
                    record.bytes_out += len(ready)
                    if record.first_byte is None:
                        self._note_first_byte(arrived)
                    if record.first_token is None and not is_opening(ready):
                        record.first_token = perf_counter()
        except BackendProtocolError:
            # An engine that dies after the last event has said everything.
            if not events.done:
                raise
        rest = events.finish()
        if not events.done:
            raise BackendProtocolError("The stream ended before it was complete.", backend=record.backend)
        watch.stop_listening()
        await self._deliver({"type": "http.response.body", "body": rest, "more_body": False})

    async def _whole(self, response: BackendResponse, content_type: bytes, sniffer: UsageSniffer) -> None:
        """Holds one chunk back until the next has come: an answer of one chunk is either whole or a clean error."""
        head = None
        held = b""
        length = _header(response, b"content-length")
        extra = ((b"content-length", length),) if length is not None else ()
        async for chunk in response.chunks:
            arrived = perf_counter()
            self.watch.progress()
            sniffer.feed(chunk)
            if held:
                if head is None:
                    head = self._head(response.status, content_type, extra)
                    await self._deliver(head)
                    self._note_first_byte(arrived)
                await self._deliver({"type": "http.response.body", "body": held, "more_body": True})
                self.record.bytes_out += len(held)
            held = chunk
        arrived = perf_counter()
        if head is None:
            await self._deliver(self._head(response.status, content_type, extra))
        self.watch.stop_listening()
        await self._deliver({"type": "http.response.body", "body": held, "more_body": False})
        self.record.bytes_out += len(held)
        if head is None:
            self._note_first_byte(arrived)

    def _note_first_byte(self, arrived: float) -> None:
        self.record.first_byte = now = perf_counter()
        self.record.overhead_seconds += now - arrived

    async def _deliver(self, message: dict[str, Any]) -> None:
        self._sending = True
        await self._send(message)
        self._sending = False
        self.watch.progress()

    def _head(self, status: int, content_type: bytes, extra: tuple[tuple[bytes, bytes], ...]) -> dict[str, Any]:
        record = self.record
        self._started = True
        record.stage = "streaming"
        headers = [
            (b"content-type", content_type),
            (b"x-request-id", record.request_id.encode()),
            (b"x-upshift-backend", record.backend.encode()),
            (b"x-upshift-reason", record.reason.encode()),
            (b"openai-processing-ms", b"%d" % ((perf_counter() - record.started) * 1000)),
            *extra,
        ]
        return {"type": "http.response.start", "status": status, "headers": headers}

    def _too_late(self) -> Exception:
        if self._sending:
            return ClientGone("The client did not read its answer in time.")
        return BackendTimeout("No answer in time.", backend=self.record.backend)

    async def fail(self, refusal: ErrorAnswer) -> None:
        """Tells the client, in the way that is still possible: a status, an error event, or a cut connection."""
        if isinstance(self.record.error, ClientGone):
            return
        if not self._started:
            await self._refuse(refusal)
        elif self._is_sse:
            # No [DONE] follows: a client must not take what it has for the whole answer.
            event = error_event(refusal.message, refusal.type, refusal.code)
            try:
                async with asyncio.timeout(FAREWELL_SECONDS):
                    await self._send({"type": "http.response.body", "body": event, "more_body": False})
            except TimeoutError:
                pass
        # A JSON body that broke off has no place for an error: returning without its end makes the server close the
        # connection short of the announced length, which every client reports.

    async def _refuse(self, refusal: ErrorAnswer) -> None:
        headers = [*refusal.headers, (b"x-request-id", self.record.request_id.encode())]
        if not self._body_read:
            headers.append((b"connection", b"close"))
        await self._send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": refusal.body, "more_body": True})
        if not self._body_read:
            await self._linger()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _linger(self) -> None:
        """Swallows what the client still sends. Closing at once would reset the connection under the refusal, and the
        client would see a broken pipe where it should read the reason."""
        if isinstance(self.record.error, BodyTimeout):
            return
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while (await self._receive()).get("more_body"):
                    pass
        except TimeoutError:
            pass


def _body_too_late() -> Exception:
    return BodyTimeout("The request body did not arrive in time.")


_SSE_HEADERS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))


def _header(response: BackendResponse, wanted: bytes) -> bytes | None:
    for name, value in response.headers:
        if name.lower() == wanted:
            return value
    return None
