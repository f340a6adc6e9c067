"""Discovery: the replicas that a name in DNS stands for, looked up again and again.

Neighbours: config/remote.py (DnsName), factory.py (what a target becomes), routing/membership.py (who is in the pool).
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple

from backends.base import Backend, BackendResponse, BackendState, InferenceRequest
from backends.errors import BackendUnavailable
from config.remote import DnsName

if TYPE_CHECKING:
    import dns.asyncresolver

# Kubernetes' own records live 5 s, Consul's none at all; others may live for an hour, in which replicas die.
LEAST_SECONDS = 2.0
MOST_SECONDS = 30.0
FAILED_SECONDS = 5.0
MAX_TARGETS = 256

logger = logging.getLogger(__name__)


class Target(NamedTuple):
    """One replica: where it is, as HttpClient takes it, and whom its certificate names."""

    address: str
    server_name: str = ""


class Answer(NamedTuple):
    """What DNS says, and for how long."""

    targets: frozenset[Target]
    seconds: float


class LookupFailed(Exception):
    """DNS has no answer. The message says why, in a few words."""


class Discovery:
    """Knows the replicas of one name from start to stop. `name` is their kind of engine, `place` what is looked up, for
    logs; `backend` makes what calls one. `targets` are those of the last answer: no answer, or one with nobody in it,
    changes nothing, for whether a replica lives is seen by looking at it and not at DNS.

    As a backend it stands in a pool as long as nobody is known, STARTING or FAILED, and answers nothing.
    """

    def __init__(
        self,
        name: str,
        place: str,
        look_up: Callable[[], Awaitable[Answer]],
        backend: Callable[[Target], Backend],
        least_seconds: float = LEAST_SECONDS,
    ) -> None:
        self.name = name
        self.place = place
        self.state = BackendState.STOPPED
        self.failure = ""
        self.targets: tuple[Target, ...] = ()
        self.backend = backend
        self._look_up = look_up
        self._least_seconds = least_seconds
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    async def send(self, request: InferenceRequest) -> BackendResponse:  # noqa: ARG002 - as the protocol has it
        """Raises BackendUnavailable."""
        why = self.failure or "DNS has not answered yet"
        raise BackendUnavailable(f"No replica is known: {why}.", backend=self.name)

    async def start(self) -> None:
        """Begins to look up; returns at once. Idempotent."""
        if self._task is None:
            self.state = BackendState.STARTING
            self._task = asyncio.create_task(self._follow(), name=f"discovery of {self.place}")

    async def stop(self) -> None:
        """Idempotent. What `backend` made is for whoever had it made."""
        self.state = BackendState.STOPPED
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None

    async def changed(self) -> None:
        """Returns after the next change of `targets`."""
        await self._changed.wait()

    async def _follow(self) -> None:
        while True:
            seconds = FAILED_SECONDS
            try:
                answer = await self._look_up()
            except LookupFailed as error:
                self._fail(str(error))
            else:
                if answer.targets:
                    self._take(answer.targets)
                else:
                    self._fail("DNS names no replica")
                seconds = answer.seconds
            pause = min(max(seconds, self._least_seconds), MOST_SECONDS)
            # Out of step with other gateways.
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311

    def _take(self, found: frozenset[Target]) -> None:
        targets = tuple(sorted(found)[:MAX_TARGETS])
        if self.failure and self.targets:
            logger.info("replicas at %s are found again", self.place)
        self.failure = ""
        if targets != self.targets:
            if len(found) > MAX_TARGETS:
                logger.warning("there are %d replicas at %s, %d are used", len(found), self.place, MAX_TARGETS)
            self.targets = targets
            self._changed.set()
            self._changed = asyncio.Event()

    def _fail(self, why: str) -> None:
        if why != self.failure:
            kept = f"; the {len(self.targets)} known ones stay" if self.targets else ""
            logger.warning("replicas at %s are not found: %s%s", self.place, why, kept)
        self.failure = why
        self.state = BackendState.FAILED


class DnsLookup:
    """Asks DNS for the replicas behind `name`: SRV records for a service, otherwise addresses. `scheme` is "http" or
    "https". With search domains, and over TCP where an answer is long; /etc/hosts is not DNS."""

    def __init__(self, name: DnsName, scheme: str) -> None:
        self._name = name
        self._scheme = scheme
        self._resolver: dns.asyncresolver.Resolver | None = None

    async def __call__(self) -> Answer:
        """Raises LookupFailed."""
        import dns.exception  # noqa: PLC0415 - dnspython takes 0.1 s to load, and few configurations need it
        import dns.resolver  # noqa: PLC0415

        try:
            return await (self._services() if self._name.port is None else self._addresses())
        except dns.resolver.NXDOMAIN:
            raise LookupFailed(f"{self._name.host} does not exist") from None
        except dns.resolver.NoAnswer:
            return Answer(frozenset(), 0.0)
        except (dns.exception.Timeout, OSError):
            raise LookupFailed("the DNS server does not answer") from None
        except dns.exception.DNSException as error:
            raise LookupFailed(str(error).rstrip(".") or type(error).__name__) from None
        finally:
            # dnspython uses asyncio.wait_for, which before Python 3.12 loses a cancellation that crosses an answer.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise asyncio.CancelledError

    async def _addresses(self) -> Answer:
        # Pods of a dual-stack cluster have one of each family: taken together they would count twice.
        answers = await self._ask().resolve_name(self._name.host, search=True)
        by_family = list(answers.addresses_and_families())
        seconds = min((answer.rrset.ttl for answer in answers.values() if answer.rrset is not None), default=0)
        families = [family for _, family in by_family]
        targets = (
            Target(f"{self._scheme}://{_in_url(address)}:{self._name.port}", self._name.host.rstrip("."))
            for address, family in by_family
            if family == min(families)  # AF_INET before AF_INET6
        )
        return Answer(frozenset(targets), float(seconds))

    async def _services(self) -> Answer:
        answer = await self._ask().resolve(self._name.host, "SRV", search=True)
        records = [record for record in answer if record.target.to_text() != "."]  # "decidedly not available"
        first = min((record.priority for record in records), default=0)
        targets = (
            Target(f"{self._scheme}://{record.target.to_text(omit_final_dot=True)}:{record.port}")
            for record in records
            if record.priority == first
        )
        return Answer(frozenset(targets), float(answer.rrset.ttl if answer.rrset is not None else 0))

    def _ask(self) -> dns.asyncresolver.Resolver:
        import dns.asyncresolver  # noqa: PLC0415 - as above

        if self._resolver is None:
            self._resolver = dns.asyncresolver.Resolver(configure=self._name.server is None)
            if self._name.server is not None:
                self._resolver.nameservers = [self._name.server]
                self._resolver.port = self._name.server_port
        return self._resolver


def _in_url(address: str) -> str:
    return f"[{address}]" if ipaddress.ip_address(address).version == 6 else address
