"""The composition root: settings in, one ASGI application out. Nothing here outlives the application it builds.

Neighbours: dataplane.py (the front), health.py and api/ (the control plane's routes), server.py (runs it).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.exceptions import HTTPException

from backends.base import Backend
from backends.factory import create_backends
from config.schema import AuthSettings, ModelSettings, Settings
from gateway import health, keyswatch
from gateway.api import openai
from gateway.auth import Authenticator, keys_of, principals
from gateway.dataplane import DataPlane
from gateway.door import Door
from gateway.errors import GatewayError, MethodRefused, UnknownPath, answer
from gateway.keysfile import KeysFile
from gateway.limits import shared_accounts
from gateway.log import AccessLog
from gateway.metrics import GatewayCollector, Metrics, registry_for
from gateway.middleware import HostGuard
from gateway.ratelimit import RateLimiter
from gateway.ratelimit_store import LimitStore
from gateway.record import Journal
from gateway.relay import Relay
from routing.catalog import CatalogEntry, ModelCatalog
from routing.errors import RoutingError
from routing.policy import plan_for
from routing.pools import pool_of
from routing.router import Router

Scrape = Callable[[], Awaitable[CollectorRegistry]]
# What runs beside the requests as long as the application does.
Work = Callable[[], Coroutine[Any, Any, None]]

logger = logging.getLogger(__name__)


def create_app(
    settings: Settings,
    *,
    make_backends: Callable[[ModelSettings], Sequence[Backend]] = create_backends,
    access_log: AccessLog | None = None,
    limits: LimitStore | None = None,
    worker: int = 0,
    share: Callable[[CollectorRegistry], Scrape] | None = None,
) -> DataPlane:
    """The whole gateway. Its lifespan starts and stops the backends; nothing runs before that.

    `access_log` gets one line per inference request; without it none are written. `limits` is shared by all workers,
    of which this is number `worker`. One of several workers gives `share`, which takes this application's numbers and
    returns what /metrics shows: everybody's. It leaves it to the keeper of the engines to say when a model becomes
    ready. Raises ConfigError for a keys file that cannot be used.
    """
    access_log = access_log or AccessLog(lambda _: None)
    pools = [pool_of(model, make_backends(model)) for model in settings.models]
    catalog = ModelCatalog(zip(map(_entry, settings.models), pools, strict=True))
    named = [(pool.model, upstream) for pool in pools for upstream in pool.upstreams]
    readiness = health.Readiness(named)
    metrics = Metrics()
    for model, upstream in named:
        metrics.series(model, upstream.backend.name)
    registry = registry_for(GatewayCollector(metrics, lambda: named))
    scrape = share(registry) if share is not None else None
    guard = HostGuard(settings.server.host, settings.server.allowed_hosts)
    limits = limits or LimitStore()
    authenticator = Authenticator(principals(settings, keys_of(settings), limits.slot_of))
    work = _work(settings, authenticator, limits)
    if scrape is None:
        work.append(lambda: health.announce(readiness))
    about = {"version": version("upshift"), "profile": settings.profile}
    control_plane = _control_plane(catalog, authenticator, readiness, about, registry, scrape, access_log, work)
    door = Door(guard, authenticator, RateLimiter(limits, worker, shared=shared_accounts(settings, limits.slot_of)))
    plans = {
        model.name: plan_for(model.name, settings.routing, model.routing, settings.profile) for model in settings.models
    }
    relay = Relay(settings.server, Router(catalog, plans), Journal(metrics, access_log), door)
    return DataPlane(relay, guard, control_plane, readiness)


def _entry(model: ModelSettings) -> CatalogEntry:
    return CatalogEntry(model.name, model.aliases, model.context_tokens)


def _work(settings: Settings, authenticator: Authenticator, limits: LimitStore) -> list[Work]:
    if not isinstance(settings.auth, AuthSettings):
        return []
    file = Path(settings.auth.keys_file)

    def apply(keys: KeysFile) -> None:
        authenticator.replace(principals(settings, keys, limits.slot_of))

    return [lambda: keyswatch.follow(file, apply)]


def _control_plane(  # noqa: PLR0917 - the one call has the same names
    catalog: ModelCatalog,
    authenticator: Authenticator,
    readiness: health.Readiness,
    about: Mapping[str, str],
    registry: CollectorRegistry,
    scrape: Scrape | None,
    access_log: AccessLog,
    work: Sequence[Work],
) -> FastAPI:
    lifespan = _lifespan(readiness, access_log, work)
    # No schema and no documentation pages: they would describe the control plane to whoever asks.
    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.include_router(health.routes(readiness, about))
    app.include_router(openai.routes(catalog, authenticator))

    @app.get("/metrics")
    async def show_metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        shown = registry if scrape is None else await scrape()
        return Response(encode(shown), media_type=content_type)

    app.add_exception_handler(HTTPException, _framework_error)
    for kind in (GatewayError, RoutingError, Exception):
        app.add_exception_handler(kind, _error)
    return app


def _lifespan(
    readiness: health.Readiness, access_log: AccessLog, work: Sequence[Work]
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        backends = [upstream.backend for _, upstream in readiness.upstreams]
        running = [asyncio.create_task(start()) for start in work]
        for task in running:
            task.add_done_callback(_report_end)
        try:
            for backend in backends:
                await backend.start()
            yield
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, *(backend.stop() for backend in backends), return_exceptions=True)
            access_log.flush()

    return lifespan


def _report_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        logger.critical("a task of the gateway's ended before the gateway", exc_info=task.exception())


async def _error(request: Request, error: Exception) -> Response:
    refusal = answer(error, request.scope["state"]["request_id"])
    if refusal.status >= 500:
        logger.error("%s failed unexpectedly", request.scope["state"]["request_id"], exc_info=error)
    headers = {name.decode(): value.decode() for name, value in refusal.headers}
    return Response(refusal.body, refusal.status, headers)


async def _framework_error(request: Request, error: Exception) -> Response:
    """Starlette's own 404 and 405, in the dialect of everything else."""
    if isinstance(error, HTTPException) and error.status_code == 405:
        return await _error(request, MethodRefused("Wrong method.", allow=(error.headers or {}).get("Allow", "GET")))
    if isinstance(error, HTTPException) and error.status_code == 404:
        return await _error(request, UnknownPath("There is nothing at this path; the API starts at /v1."))
    return await _error(request, error)
