"""Everything of one process that a configuration decides, and how it goes from one configuration to the next.

Neighbours: app.py (builds the application around this), served.py (the models), relay.py (the calls), reload.py (asks
for another configuration).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from backends.base import Backend
from backends.borrowed import BorrowedEngine
from backends.engine import EngineBackend
from backends.residency import Residency, Use
from config.schema import Settings
from gateway import health, keyswatch
from gateway.address import ClientAddress
from gateway.auth import Authenticator, Principal, keys_of, principals
from gateway.door import Door
from gateway.entrance import Entrance
from gateway.guesses import Guesses
from gateway.keysfile import KeysFile
from gateway.keystore import store_of
from gateway.limits import shared_accounts
from gateway.log import AccessLog
from gateway.metrics import GatewayCollector, Metrics, registry_for
from gateway.middleware import HostGuard
from gateway.oidc import issuer_of
from gateway.plans import plans_of
from gateway.ratelimit import RateLimiter
from gateway.ratelimit_store import LimitStore
from gateway.record import Journal
from gateway.relay import Relay
from gateway.replicas.limiter import SharedLimiter
from gateway.replicas.numbers import SharedLimitsCollector
from gateway.served import MakeBackends, Member, assemble
from gateway.tracing import Tracer
from gateway.usage import Usage
from routing.router import Router
from routing.tracefile import TraceFile
from routing.upstream import Upstream

if TYPE_CHECKING:
    from gateway.issuer import Issuer

# How often a member that has been replaced looks whether it may go.
LEAVING_SECONDS = 0.1

logger = logging.getLogger(__name__)


class Gateway:
    """All of one process that a configuration decides. `settings`, `served` and `authenticator` are those of now."""

    # What goes on beside the calls, where there is anything of the kind.
    _following: asyncio.Task[None] | None = None
    _counting: asyncio.Task[None] | None = None
    _asking: asyncio.Task[None] | None = None

    def __init__(
        self,
        settings: Settings,
        make_backends: MakeBackends,
        access_log: AccessLog,
        limits: LimitStore,
        place: tuple[int, int] = (0, 1),
    ) -> None:
        """`place` is which worker this is, and of how many. Nothing runs before `start`. Raises ConfigError for a keys
        file that cannot be used."""
        self.settings = settings
        self._make_backends = make_backends
        self._limits = limits
        self._worker, workers = place
        self.metrics = Metrics()
        self._tracer = Tracer(settings.tracing) if settings.tracing is not None else None
        self._journal = Journal(self.metrics, access_log, self._tracer)
        # Members without a place: as long as something runs on them, and while they are ended.
        self._leaving: dict[Member, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        # One connection to Redis for all configurations.
        self._shared = SharedLimiter(settings.redis) if settings.redis.urls else None
        self.access_log = access_log
        self._guesses = Guesses()
        self._keys = keys_of(settings)
        found = principals(settings, self._keys, limits.slot_of)
        client_keys = {} if settings.tls is None else settings.tls.client_keys
        self.authenticator = Authenticator(self._kept(found), certificates=client_keys)
        self.served = assemble(settings, make_backends)
        self.readiness = health.Readiness(self.served.upstreams)
        self.registry = registry_for(
            GatewayCollector(
                self.metrics, lambda: self.served.upstreams, lambda: self.router.waiting, self._still_running
            )
        )
        self.guard = _guard(settings)
        if self._shared is not None:
            self.registry.register(SharedLimitsCollector(self._shared))
        trace = settings.routing.trace
        self._trace = None if trace is None else TraceFile(trace, self._worker if workers > 1 else None)
        self.router = Router(self.served.catalog, plans_of(settings), workers, self._trace)
        self._issuer = issuer_of(settings, limits.slot_of)
        # Of every engine launched here; where this process is a worker, its keeper asks.
        self.usage: dict[Backend, Usage] = {}
        self._residency = Residency()
        self.entrance = self._entrance(settings, self._issuer)
        self.relay = self._relay(settings, self.guard, self.entrance)
        self._name_series()

    async def start(self) -> None:
        """Brings every engine up in the background."""
        self._follow_keys()
        self._ask_issuer()
        if self._shared is not None:
            self._counting = asyncio.create_task(self._shared.run())
            self._counting.add_done_callback(report_end)
        await self._start(self.served.members)

    async def stop(self) -> None:
        """Ends every engine and what still runs on it."""
        beside = [
            *self._leaving.values(),
            *(task for task in (self._following, self._counting, self._asking) if task is not None),
        ]
        for task in beside:
            task.cancel()
        await self._residency.stop()
        members = (*self.served.members, *self._leaving)
        stops = (member.membership.stop() for member in members)
        await asyncio.gather(*beside, *self._ending, *stops, return_exceptions=True)
        self._journal.close()
        if self._tracer is not None:
            await self._tracer.stop()
        if self._trace is not None:
            self._trace.flush()

    async def apply(self, settings: Settings) -> None:
        """Goes over to `settings` between two requests; those that run keep what they have.

        Artifacts that stay are not touched. A changed one is started beside the old one, which serves until the new one
        is ready and ends when nothing runs on it. Raises ConfigError and StoreFull, and then has changed nothing.
        """
        known = self._keys if settings.auth == self.settings.auth else None
        # Keys in a database or at Redis, GPUs that sleep: both may take seconds.
        keys, plans = await asyncio.to_thread(lambda: (keys_of(settings, known), plans_of(settings)))
        found = principals(settings, keys, self._limits.slot_of)
        before = (*self.served.members, *self._leaving)
        served = assemble(settings, self._make_backends, before)
        guard = _guard(settings)
        issuer = issuer_of(settings, self._limits.slot_of, self._issuer)
        entrance = self._entrance(settings, issuer)
        relay = self._relay(settings, guard, entrance)
        # From here on nothing can fail and nobody else runs until the new state is complete.
        self._keys = keys
        self.authenticator.replace(found)
        self.router.adopt(served.catalog, plans)
        self.settings = settings
        self._kept(found)
        self.served, self.guard, self.entrance, self.relay = served, guard, entrance, relay
        self.readiness.upstreams = tuple(served.upstreams)
        self._name_series()
        for task in self._leaving.values():
            task.cancel()
        leaving = [member for member in before if member not in served.members]
        self._leaving = {member: asyncio.create_task(self._leave(member)) for member in leaving}
        # Begins anew: a key may have been revoked since these were read, and refused already.
        self._follow_keys()
        self._issuer = issuer
        self._ask_issuer()
        await self._start([member for member in served.members if member not in before])

    async def _start(self, members: Iterable[Member]) -> None:
        members = tuple(members)
        for member in members:
            self._adopt(member)
        for member in members:
            await member.membership.start(self.metrics.series(member.model, member.kind).engine, self._swap)

    def _adopt(self, member: Member) -> None:
        """An engine that was launched here is put to sleep when nobody uses it."""
        backend = member.upstreams[0].backend
        if not isinstance(backend, EngineBackend | BorrowedEngine):
            return
        series = self.metrics.series(member.model, member.kind)
        usage = Usage(series, lambda: member.in_flight, lambda: self.router.waiting_for(member.model))
        self.usage[backend] = usage
        if isinstance(backend, EngineBackend):
            self._residency.adopt(backend, Use(usage.used, usage.let_go, lambda: None))

    def _still_running(self) -> list[tuple[str, Upstream]]:
        """(model, upstream) of those that get no new requests and have not gone yet."""
        asked = {upstream for _, upstream in self.served.upstreams}
        known = (
            (member.model, upstream)
            for member in (*self.served.members, *self._leaving)
            for upstream in (*member.upstreams, *member.membership.leaving)
        )
        return [(model, upstream) for model, upstream in known if upstream not in asked]

    def _swap(self, before: tuple[Upstream, ...], after: tuple[Upstream, ...]) -> None:
        """Replicas have joined or left: `after` take the places of `before` in the pool that has them."""
        for pool in self.served.catalog.pools:
            position = next((at for at, upstream in enumerate(pool.upstreams) if upstream in before), None)
            if position is not None:
                others = [upstream for upstream in pool.upstreams if upstream not in before]
                pool.upstreams = (*others[:position], *after, *others[position:])
        self.readiness.upstreams = tuple(self.served.upstreams)

    def _follow_keys(self) -> None:
        if self._following is not None:
            self._following.cancel()
            self._following = None
        store = store_of(self.settings)
        if store is not None:
            self._following = asyncio.create_task(keyswatch.follow(store, self._use_keys, self._keys))
            self._following.add_done_callback(report_end)

    def _ask_issuer(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None
        issuer = self._issuer
        self.authenticator.verify = None if issuer is None else issuer.tokens.principal
        if issuer is not None:
            self._asking = asyncio.create_task(issuer.run())
            self._asking.add_done_callback(report_end)

    def _use_keys(self, keys: KeysFile) -> None:
        self.authenticator.replace(self._kept(principals(self.settings, keys, self._limits.slot_of)))
        self._keys = keys

    def _kept(self, principals: dict[bytes, Principal]) -> dict[bytes, Principal]:
        """`principals`; they and the accounts that are configured keep their counters, whoever else needs room."""
        accounts = [each for some in shared_accounts(self.settings, self._limits.slot_of).values() for each in some]
        slots = [principal.slot for principal in principals.values()]
        self._limits.keep(self._worker, slots + [account.slot for account in accounts])
        return principals

    def _entrance(self, settings: Settings, issuer: Issuer | None) -> Entrance:
        addresses = ClientAddress(settings.server.trusted_proxies)
        return Entrance(self.authenticator, addresses, self._guesses, issuer)

    def _relay(self, settings: Settings, guard: HostGuard, entrance: Entrance) -> Relay:
        accounts = shared_accounts(settings, self._limits.slot_of)
        limiter = RateLimiter(self._limits, self._worker, shared=accounts)
        if self._shared is not None:
            self._shared.adopt(limiter, settings.limits.on_redis_error, accounts)
        door = Door(guard, entrance, limiter, self._shared)
        return Relay(settings.server, self.router, self._journal, door)

    def _name_series(self) -> None:
        for model, upstream in self.served.upstreams:
            self.metrics.series(model, upstream.backend.name)

    async def _leave(self, member: Member) -> None:
        """Takes a member that has no place any more out of its model's pool, once another can serve, and ends it when
        nothing runs on it."""
        for pool in self.served.catalog.pools:
            if pool.model != member.model or not set(pool.upstreams) & set(member.upstreams):
                continue
            others = [each for each in self.served.members if each.model == member.model]
            await _until(partial(_has_successor, member, others))
            pool.upstreams = tuple(upstream for upstream in pool.upstreams if upstream not in member.upstreams)
            self.readiness.upstreams = tuple(self.served.upstreams)
        await _until(lambda: not member.in_flight)
        # From here on no configuration can have it back.
        task = self._leaving.pop(member)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        backend = member.upstreams[0].backend
        self.usage.pop(backend, None)
        if isinstance(backend, EngineBackend):
            self._residency.dismiss(backend)
        await member.membership.stop()


def report_end(task: asyncio.Task[None]) -> None:
    """For a task that runs as long as the gateway: its end before that is a fault, which nobody else would see."""
    if not task.cancelled():
        logger.critical("a task of the gateway's ended before the gateway", exc_info=task.exception())


def _has_successor(member: Member, others: Iterable[Member]) -> bool:
    """Whether one of its kind serves; where there is none, or no room for it beside `member`, any."""
    same = [each for each in others if each.kind == member.kind]
    waits = same and not any(each.refused for each in same)
    return any(each.ready for each in (same if waits else others))


async def _until(condition: Callable[[], bool]) -> None:
    """Polls: engines and requests have a state, and tell nobody of its changes."""
    while not condition():  # noqa: ASYNC110 - as said
        await asyncio.sleep(LEAVING_SECONDS)


def _guard(settings: Settings) -> HostGuard:
    return HostGuard(settings.server.host, settings.server.allowed_hosts)
