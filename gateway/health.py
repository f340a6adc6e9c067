"""Is the process alive, may it get traffic, and what is each model doing.

Neighbours: app.py (wires), server.py (sets `draining`). Not ready means: at least one configured model cannot answer
now, or the gateway is shutting down. Models that are ready are served all the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from backends.base import BackendState
from routing.upstream import Upstream

logger = logging.getLogger("upshift")

# What balancers and supervisors ask for, again and again.
PROBES = frozenset(("/livez", "/readyz", "/health"))
# The paths that are anybody's.
OPEN = PROBES | {"/version"}
# Of these the ones that tell more to some than to others.
TELLING = frozenset(("/readyz", "/health"))
_METHODS = ["GET", "HEAD"]


class Readiness:
    """The live state of every model, and whether the gateway is on its way out."""

    def __init__(self, upstreams: Sequence[tuple[str, Upstream]]) -> None:
        self.upstreams = tuple(upstreams)
        self.draining = False

    @property
    def ready(self) -> bool:
        """Whether every model can answer and new requests are welcome."""
        return not self.draining and not self.waiting_for

    @property
    def waiting_for(self) -> list[str]:
        """Names of the models that cannot answer now. An engine that is asleep, or wakes, takes requests: they wait for
        it, and who sends them here need not look elsewhere."""
        ready = {model for model, upstream in self.upstreams if serves(upstream)}
        return [model for model in dict.fromkeys(model for model, _ in self.upstreams) if model not in ready]

    @property
    def hopeless(self) -> bool:
        """Whether no model will ever answer: a gateway that serves nothing should say so by ending."""
        return all(getattr(upstream.backend, "gave_up", False) for _, upstream in self.upstreams)

    def describe(self) -> dict[str, Any]:
        """The JSON of /readyz."""
        status = "draining" if self.draining else "ready" if self.ready else "not_ready"
        models = [_describe(model, upstream) for model, upstream in self.upstreams]
        report: dict[str, Any] = {"status": status, "models": models}
        if status == "not_ready":
            report["reason"] = f"These models cannot answer now: {', '.join(self.waiting_for)}."
        return report


def serves(upstream: Upstream) -> bool:
    """Whether it answers requests, if only once it has been started for them."""
    return upstream.backend.state is BackendState.READY or _is_asleep(upstream)


def _is_asleep(upstream: Upstream) -> bool:
    return getattr(upstream.backend, "asleep", False)


def _describe(model: str, upstream: Upstream) -> dict[str, Any]:
    backend = upstream.backend
    about: dict[str, Any] = {"model": model, "backend": backend.name, "state": str(backend.state)}
    # Which of several replicas.
    address = getattr(backend, "address", "")
    if address:
        about["address"] = address
    about["in_flight"] = upstream.in_flight
    if _is_asleep(upstream):
        about["asleep"] = True
    # Engines launched here know how far they have loaded; remote ones only why they cannot be used.
    if backend.state is BackendState.STARTING:
        about["progress"] = round(float(getattr(backend, "progress", 0.0)), 3)
    failure = getattr(backend, "failure", "")
    if failure and backend.state is not BackendState.READY:
        about["failure"] = failure
    return about


def routes(readiness: Readiness, about: Callable[[], Mapping[str, str]]) -> APIRouter:
    """/livez (200 while the event loop turns), /readyz and /health (503 until ready), /version (`about`).

    Of models and failures they tell those of whom the front says that they `may_know` (in the request's state).
    """
    router = APIRouter()

    @router.api_route("/livez", methods=_METHODS)
    async def livez() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    @router.api_route("/readyz", methods=_METHODS)
    async def readyz(request: Request) -> JSONResponse:
        report = readiness.describe()
        shown = report if request.scope["state"]["may_know"] else {"status": report["status"]}
        return JSONResponse(shown, 200 if readiness.ready else 503)

    @router.api_route("/health", methods=_METHODS)
    async def health(request: Request) -> JSONResponse:
        summary: dict[str, Any] = {"status": readiness.describe()["status"]}
        if request.scope["state"]["may_know"]:
            summary["waiting_for"] = readiness.waiting_for
        return JSONResponse(summary, 200 if readiness.ready else 503)

    @router.api_route("/version", methods=_METHODS)
    async def show_version() -> JSONResponse:
        return JSONResponse(dict(about()))

    return router


async def announce(readiness: Readiness, interval_seconds: float = 0.1) -> None:
    """Logs each time a model becomes ready on a backend, and how long that took, until cancelled. What goes wrong
    instead is logged by the engine's supervisor. Polls: states change a few times in a process's life."""
    waiting = {upstream: monotonic() for _, upstream in readiness.upstreams}
    ready: set[Upstream] = set()
    while True:
        upstreams = readiness.upstreams
        present = {upstream for _, upstream in upstreams}
        ready &= present
        waiting = {upstream: since for upstream, since in waiting.items() if upstream in present}
        for model, upstream in upstreams:
            if _is_asleep(upstream) and upstream.backend.state is not BackendState.STARTING:
                # Nobody waits for it.
                ready.discard(upstream)
                waiting.pop(upstream, None)
            elif upstream.backend.state is not BackendState.READY:
                ready.discard(upstream)
                waiting.setdefault(upstream, monotonic())
            elif upstream not in ready:
                ready.add(upstream)
                seconds = monotonic() - waiting.pop(upstream, monotonic())
                logger.info("model %s is ready on %s after %.1f s", model, upstream.backend.name, seconds)
        await asyncio.sleep(interval_seconds)
