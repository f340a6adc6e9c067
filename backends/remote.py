"""RemoteBackend: a model served by an endpoint that somebody else runs, behind the Backend seam.

Neighbours: access.py (where it is), openai.py and ollama/ (calls), inquiry.py (is it well), factory.py (builds this).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from backends.access import Access, Header, Unusable
from backends.base import BackendResponse, BackendState, InferenceRequest
from backends.errors import BackendError, BackendUnavailable
from backends.http import HttpClient
from backends.inquiry import ANSWER_SECONDS, Health, Inquiry
from backends.ollama.calls import OllamaCalls
from backends.openai import OpenAIBackend
from backends.release import Asked

# An engine that does not answer a look in time: so many in a row, and it gets no more requests; so many, and those that
# wait for its first byte are given up. One slow look of a busy engine means nothing.
SLOW_LOOKS_TO_FAIL = 2
SLOW_LOOKS_TO_GIVE_UP = 3

logger = logging.getLogger(__name__)


class Dialect(NamedTuple):
    """How to talk to one kind of endpoint: `calls` makes the calling side, `look` asks how it is; a `metered` one tells
    its load, one with a `release` its version."""

    calls: Callable[[HttpClient, Callable[[], BackendState]], OpenAIBackend | OllamaCalls]
    look: Callable[[Inquiry], Awaitable[Health]]
    metered: bool = True
    release: Asked | None = None


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How often an endpoint is looked at, in seconds: while it is well, and at first while it is not (then doubling up
    to `steady`). Each pause is up to a fifth shorter or longer, so that gateways do not ask in step. Whatever calls
    meet, there is `least` between two looks. A look waits for each answer for `answer`."""

    steady_seconds: float = 5.0
    trouble_seconds: float = 0.5
    least_seconds: float = 0.1
    answer_seconds: float = ANSWER_SECONDS


class RemoteBackend:
    """The calls to one endpoint, whose connections it owns. `name` is the kind of engine there, `address` where it is.

    From start to stop it is looked at: STARTING until the first look and while its model loads, then READY or FAILED,
    `failure` being why. `inquiry` asks it how busy it is, None for one that cannot tell; `warning` is what is known to
    be wrong with its version, in one line."""

    def __init__(self, name: str, access: Access, dialect: Dialect, rhythm: Rhythm | None = None) -> None:
        self.name = name
        self.address = access.address
        self.state = BackendState.STOPPED
        self.failure = ""
        self.warning = ""
        self._access = access
        self._dialect = dialect
        self._rhythm = rhythm or Rhythm()
        # No deadlines down here: how long an answer may take is for the caller to say, who knows the client.
        self._client = access.client(response_timeout_seconds=inf, idle_timeout_seconds=inf)
        self._calls = dialect.calls(self._client, lambda: self.state)
        self._inquiry = Inquiry(access.client(max_connections=2), timeout_seconds=self._rhythm.answer_seconds)
        self.inquiry = self._inquiry if dialect.metered else None
        # From start to stop:
        self._task: asyncio.Task[None] | None = None
        self._doubt = asyncio.Event()
        self._slow_looks = 0
        self._known = False
        self._complaint = ""
        self._show_credentials()

    async def send(self, request: InferenceRequest) -> BackendResponse:
        """As the protocol says. Where the last look failed nothing is sent: BackendUnavailable with the cause."""
        if self.state is BackendState.FAILED:
            raise BackendUnavailable(f"{self.address} is not available: {self.failure}.", backend=self.name)
        try:
            return await self._calls.send(request)
        except BackendUnavailable:
            self._doubt.set()
            raise

    async def start(self) -> None:
        """Begins to look at it; returns at once. Calls may come already. Idempotent."""
        if self._task is None:
            self.state = BackendState.STARTING
            self._task = asyncio.create_task(self._watch(), name=f"watch {self.address}")

    async def stop(self) -> None:
        """Ends every call that is still running, for good. Idempotent."""
        self.state = BackendState.STOPPED
        self.failure = ""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        await self._client.aclose()
        await self._inquiry.aclose()

    async def _watch(self) -> None:
        pause_seconds = self._rhythm.trouble_seconds
        while True:
            self._refresh()
            self._believe(await self._dialect.look(self._inquiry))
            await self._learn_release()
            if self.state is BackendState.READY and not self._slow_looks:
                pause_seconds = self._rhythm.trouble_seconds
                await self._rest(self._rhythm.steady_seconds)
            else:
                await self._rest(pause_seconds)
                pause_seconds = min(2 * pause_seconds, self._rhythm.steady_seconds)

    async def _rest(self, seconds: float) -> None:
        """Until the next look is due, or a call found nobody."""
        await asyncio.sleep(min(self._rhythm.least_seconds, seconds))
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds * random.uniform(0.8, 1.2)):  # noqa: S311 - to be out of step
                await self._doubt.wait()
        self._doubt.clear()

    def _believe(self, health: Health) -> None:
        self._slow_looks = self._slow_looks + 1 if health.slow else 0
        if self._slow_looks >= SLOW_LOOKS_TO_GIVE_UP:
            # Who waits there for a first byte may be answered by another engine; who has one waits on.
            self._client.abandon(f"{self.address} hangs: {health.failure}, {self._slow_looks} times.")
        if self.state is BackendState.READY and 0 < self._slow_looks < SLOW_LOOKS_TO_FAIL:
            return
        # The address stands beside it wherever it is shown.
        failure = health.failure.replace(self.address, "it")
        if (health.state, failure) == (self.state, self.failure):
            return
        if health.state is BackendState.FAILED:
            logger.warning("%s at %s is not available: %s", self.name, self.address, failure)
        elif self.state is BackendState.FAILED:
            logger.info("%s at %s is %s again", self.name, self.address, health.state)
        self.state, self.failure = health.state, failure

    async def _learn_release(self) -> None:
        """Each time that it has become READY: it may be another version than before."""
        release = self._dialect.release
        if self.state is not BackendState.READY:
            self._known = False
        if self.state is not BackendState.READY or self._known or release is None:
            return
        self._known = True
        try:
            found = release.faults(*await self._inquiry.get(release.path))
        except BackendError:
            return
        if found and found != self.warning:
            logger.warning("%s at %s: %s", self.name, self.address, found)
        self.warning = found

    def _refresh(self) -> None:
        try:
            self._access.refresh()
            self._complaint = ""
        except Unusable as error:
            if str(error) != self._complaint:
                logger.warning("%s at %s: %s; the one read before stays in use", self.name, self.address, error)
            self._complaint = str(error)
        self._show_credentials()

    def _show_credentials(self) -> None:
        credentials: tuple[Header, ...] = self._access.key.headers()
        self._calls.credentials = self._inquiry.headers = credentials
