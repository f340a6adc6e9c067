"""One inference call from its first body byte to its last answer byte, and the one place that lets go of everything.

Chunks are passed on unparsed; the client's leaving cancels whatever is waited for. Neighbours: call.py (the client's
side), door.py and ratelimit.py (who may), cost.py (what it takes), intake.py (body to request), events.py (where an SSE
event ends), farewell.py (what a failure is told as), head.py (header lines), record.py (metrics and log).
"""

from __future__ import annotations

import asyncio
from time import perf_counter

from backends.base import BackendResponse, InferenceRequest
from backends.errors import BackendError, BackendProtocolError, BackendTimeout
from backends.sse import UsageSniffer, usage_of
from config.schema import ServerSettings
from gateway import intake
from gateway.auth import Principal, check_model, salt_of
from gateway.bodies import is_long
from gateway.call import Call
from gateway.cost import DEFAULT_OUTPUT_TOKENS, estimate_tokens, settle
from gateway.door import Door, Reserved
from gateway.errors import BodyTimeout, ClientGone, ShuttingDown, answer
from gateway.events import WholeEvents, without_usage
from gateway.farewell import tell
from gateway.head import SSE_HEADERS, answer_head, tell_position
from gateway.pace import Pace
from gateway.record import Journal, Record, report
from routing.errors import Overloaded
from routing.routed import Routed
from routing.router import Router
from routing.ticket import Ticket

_NO_BODY = "The request body did not arrive in time."


class Relay:
    """Carries requests from clients to the router and answers back."""

    def __init__(self, settings: ServerSettings, router: Router, journal: Journal, door: Door) -> None:
        self._settings = settings
        self._router = router
        self._journal = journal
        self._door = door

    async def serve(self, call: Call, request_id: str) -> None:
        """Answers one call and settles it exactly once, whatever becomes of it."""
        call.begin()
        record = Record(call.head.operation, request_id, perf_counter())
        exchange = _Exchange(self._settings, record, call, self._journal)
        try:
            try:
                await exchange.run(self._door, self._router)
            except asyncio.CancelledError:
                record.error = call.recover() or ShuttingDown("The gateway is shutting down.")
            except Exception as error:  # noqa: BLE001 - the last stop: becomes a 500, is logged and counted
                record.error = error
            exchange.settle()
            failure = record.error
            if failure is None:
                self._journal.settle(record)
                return
            call.settle()
            refusal = answer(failure, request_id)
            record.status = refusal.status
            record.key = record.key or getattr(failure, "key", "")
            self._journal.settle(record)
            report(record)
            await tell(call, failure, refusal, request_id, exchange.limit_lines(), in_events=exchange.is_sse)
        finally:
            call.end()


class _Exchange:
    """The state of one request between client and upstream."""

    __slots__ = ("_call", "_hides_usage", "_journal", "_pace", "_reservation", "_settings", "is_sse", "record")

    def __init__(self, settings: ServerSettings, record: Record, call: Call, journal: Journal) -> None:
        self.record = record
        self._journal = journal
        self._settings = settings
        self._call = call
        self.is_sse = False
        self._hides_usage = False
        self._reservation: Reserved | None = None
        self._pace: Pace | None = None

    async def run(self, door: Door, router: Router) -> None:
        """Raises what went wrong; returns when the whole answer has been handed to the connection."""
        record, call = self.record, self._call
        principal = door.known(call.head) or await self._let_in(door)
        record.key = principal.name
        if call.more_body:
            await self._wait_for_body(door, principal)
        request = self._decode(principal)
        record.arrived = arrived = perf_counter()
        call.expect(self._settings.response_timeout_seconds, self._no_answer)
        record.stage = "waiting"
        record.stream = request.stream
        record.model = model = router.catalog.resolve(request.model).model
        if principal.models is not None:
            check_model(principal, model)
        cap, default = request.max_output_tokens, DEFAULT_OUTPUT_TOKENS
        if cap is None and (most := door.limiter.most_tokens(principal, model)) is not None:
            request, default = intake.capped(request, most - estimate_tokens(record.bytes_in, 0, 1, 0), default)
        estimate = estimate_tokens(record.bytes_in, cap, request.choices, default)
        if door.shared is None:
            self._reservation = door.limiter.reserve(principal, estimate, model)
        else:
            self._reservation = await door.shared.reserve(principal, estimate, model)
        record.overhead_seconds = perf_counter() - arrived
        try:
            session = call.head.fields.get(b"x-session-id", b"")
            notify = self._ping if request.stream else None
            record.ticket = ticket = Ticket(principal.name, principal.tier, session, notify)
            routed = await router.dispatch(request, ticket)
            ticket.notify = None  # or all of a stream would be left to the garbage collector
            del request  # nobody needs it any more, and a stream may last for an hour
            if call.held:
                call.let_go_of_body()
        except BackendError as error:
            record.backend = error.backend
            raise
        await self._pass_on(routed)

    async def _let_in(self, door: Door) -> Principal:
        call, head = self._call, self._call.head
        principal = await door.admit(call)
        self.record.key = principal.name
        intake.check_headers(head.fields, self._settings.max_body_bytes)
        head.door, head.principal = door, principal
        return principal

    async def _wait_for_body(self, door: Door, principal: Principal) -> None:
        if door.shared is None and is_long(self._call.head.fields):
            # It is not read for a key that is at its limits. Redis is asked once, for the whole request.
            door.limiter.look(principal)
        self._call.expect(self._settings.body_timeout_seconds, lambda: BodyTimeout(_NO_BODY))
        await self._call.whole_body(self._settings.max_body_bytes, principal.digest)

    def settle(self) -> None:
        """Settles what was reserved for it, once it is over."""
        settle(self.record, self._reservation, self._pace)

    def _decode(self, principal: Principal) -> InferenceRequest:
        limit = self._settings.max_body_bytes
        body = self._call.take_body(limit, principal.digest)
        if body is None:
            raise intake.too_large(limit)
        record = self.record
        record.bytes_in = len(body)
        media, salt = self._settings.remote_media, salt_of(principal) if self._settings.isolate_caches else ""
        request = intake.decode(body, record.operation, record.request_id, remote_media=media, cache_salt=salt)
        self._hides_usage = request.hides_usage
        traceparent = self._call.head.fields.get(b"traceparent")
        if traceparent is None and self._journal.tracer is None:
            return request
        passed_on = self._journal.trace(record, traceparent)
        return request if passed_on is None else request._replace(headers=((b"traceparent", passed_on),))

    def _ping(self, position: int) -> None:
        self.is_sse = True
        tell_position(self._call, self.record, position, self.limit_lines())

    def limit_lines(self) -> bytes:
        """The key's x-ratelimit lines since its limits have been asked."""
        return b"" if self._reservation is None else self._reservation.header_lines()

    async def _pass_on(self, routed: Routed) -> None:
        response, record, call = routed.response, self.record, self._call
        record.dispatched = routed.dispatched_at
        record.backend = routed.upstream.backend.name
        record.reason = routed.reason
        try:
            if response.body is not None:
                last = self._one_piece(response, response.body)
            else:
                last = await self._chunks(response)
            record.status = response.status
            # The client first: what it came to can be written down while the answer is on its way.
            call.finish(last)
            if response.body is not None:
                record.usage = usage_of(response.body)
            routed.succeeded(record.first_token, self._pace.tokens if self._pace is not None else 0)
        except BackendError as error:
            routed.failed(error)
            raise
        finally:
            # The one release: it returns or aborts the upstream connection, which frees the slot and stops the engine.
            routed.close()

    async def _chunks(self, response: BackendResponse) -> bytes:
        self.is_sse = response.content_type.startswith(b"text/event-stream")
        if self._call.response_started and not self.is_sse:
            raise BackendProtocolError("It answered a stream with something else.", backend=self.record.backend)
        self._call.expect(self._settings.idle_timeout_seconds, self._too_late)
        sniffer = UsageSniffer()
        try:
            return await (self._stream if self.is_sse else self._pieces)(response, sniffer)
        finally:
            self.record.usage = sniffer.usage

    async def _stream(self, response: BackendResponse, sniffer: UsageSniffer) -> bytes:
        record, call, events = self.record, self._call, WholeEvents()
        self._pace = pace = Pace(record, self._journal.between_tokens(record))
        self._start(response, SSE_HEADERS, None)
        # With the first events if they are here already, and without waiting for them if not.
        asyncio.get_running_loop().call_soon(call.flush)
        try:
            async for chunk in response.chunks:
                arrived = perf_counter()
                call.progress()
                sniffer.feed(chunk)
                ready = events.feed(chunk)
                if sniffer.usage is not None and self._hides_usage:
                    ready = without_usage(ready)
                if not ready:
                    continue
                call.write(ready)
                record.bytes_out += len(ready)
                if record.first_byte is None:
                    self._note_first_byte(arrived)
                pace.note(ready, arrived)
                if call.paused:
                    await call.drain()
                    call.progress()
                    pace.go_on()
        except BackendProtocolError:
            # An engine that dies after the last event has said everything.
            if not events.done:
                raise
        rest = events.finish()
        if not events.done:
            raise BackendProtocolError("The stream ended before it was complete.", backend=record.backend)
        return rest

    async def _pieces(self, response: BackendResponse, sniffer: UsageSniffer) -> bytes:
        """Holds one chunk back until the next has come: an answer of one chunk is either whole or a clean error."""
        record, call = self.record, self._call
        held = b""
        started = False
        async for chunk in response.chunks:
            arrived = perf_counter()
            call.progress()
            sniffer.feed(chunk)
            if held:
                if not started:
                    started = True
                    self._start(response, b"", response.content_bytes)
                    self._note_first_byte(arrived)
                call.write(held)
                record.bytes_out += len(held)
                if call.paused:
                    await call.drain()
                    call.progress()
            held = chunk
        if not started:
            return self._one_piece(response, held)
        record.bytes_out += len(held)
        return held

    def _one_piece(self, response: BackendResponse, body: bytes) -> bytes:
        arrived = perf_counter()
        self._start(response, b"", len(body))
        self._note_first_byte(arrived)
        self.record.bytes_out += len(body)
        return body

    def _note_first_byte(self, arrived: float) -> None:
        self.record.first_byte = now = perf_counter()
        self.record.overhead_seconds += now - arrived

    def _start(self, response: BackendResponse, extra: bytes, content_bytes: int | None) -> None:
        record = self.record
        record.stage = "streaming"
        if not self._call.response_started:  # while it waited
            head = answer_head(record, response.content_type, self.limit_lines(), extra)
            self._call.start(response.status, head, content_bytes)

    def _no_answer(self) -> Exception | None:
        """What it has waited for a place is not the engine's fault."""
        ticket = self.record.ticket
        if ticket is not None and ticket.upstream is not None:
            until = self.record.arrived + ticket.waited_seconds + self._settings.response_timeout_seconds
            if (left := until - perf_counter()) > 0:
                self._call.expect(left, self._no_answer)
                return None
        return self._too_late()

    def _too_late(self) -> Exception:
        if self._call.paused:
            return ClientGone("The client did not read its answer in time.")
        ticket = self.record.ticket
        upstream = None if ticket is None else ticket.upstream
        if upstream is None:  # nobody has been asked
            return Overloaded(self.record.model, 1.0)
        error = BackendTimeout("No answer in time.", backend=upstream.kind)
        upstream.breaker.failed(perf_counter())
        return error
