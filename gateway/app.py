"""The composition root: settings in, one ASGI application out. Nothing here outlives the application it builds.

Neighbours: gateway.py (what the settings decide), dataplane.py (the front), health.py and api/ (the control plane's
routes), server.py (runs it).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.metadata import version

from fastapi import APIRouter, FastAPI, Request, Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.exceptions import HTTPException

from backends.factory import create_backends
from config.schema import Settings
from gateway import health
from gateway.api import admin, keys, openai, openapi
from gateway.dataplane import DataPlane
from gateway.errors import GatewayError, MethodRefused, UnknownPath, answer
from gateway.gateway import Gateway, report_end
from gateway.log import AccessLog
from gateway.ratelimit_store import LimitStore
from gateway.served import MakeBackends
from routing.errors import RoutingError

Scrape = Callable[[], Awaitable[CollectorRegistry]]

logger = logging.getLogger(__name__)


def create_app(
    settings: Settings,
    *,
    make_backends: MakeBackends = create_backends,
    access_log: AccessLog | None = None,
    limits: LimitStore | None = None,
    worker: int = 0,
    workers: int = 1,
    share: Callable[[CollectorRegistry], Scrape] | None = None,
) -> DataPlane:
    """The whole gateway. Its lifespan starts and stops the backends; nothing runs before that.

    `access_log` gets one line per request; without it none are written. `limits` is shared by all workers, of which
    this is number `worker` of `workers`. One of several gives `share`, which takes this application's numbers and
    returns what /metrics shows: everybody's. It leaves it to the keeper of the engines to say when a model becomes
    ready. Raises ConfigError for a keys file that cannot be used.
    """
    access_log = access_log or AccessLog(lambda _: None)
    gateway = Gateway(settings, make_backends, access_log, limits or LimitStore(), (worker, workers))
    scrape = share(gateway.registry) if share is not None else None
    return DataPlane(gateway, _control_plane(gateway, scrape))


def _control_plane(gateway: Gateway, scrape: Scrape | None) -> FastAPI:
    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        announcing = [asyncio.create_task(health.announce(gateway.readiness))] if scrape is None else []
        for task in announcing:
            task.add_done_callback(report_end)
        try:
            await gateway.start()
            yield
        finally:
            for task in announcing:
                task.cancel()
            await asyncio.gather(*announcing, gateway.stop(), return_exceptions=True)

    # No documentation pages, and no schema of FastAPI's: it would describe the control plane to whoever asks.
    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    ours = version("upshift")

    def about() -> dict[str, str]:
        return {"version": ours, "profile": gateway.settings.profile}

    routers = [
        health.routes(gateway.readiness, about),
        admin.routes(gateway.router, gateway.metrics, about),
        keys.routes(lambda: gateway.settings),
        openai.routes(lambda: gateway.served.catalog, lambda: gateway.entrance),
        _figures(gateway, scrape),
    ]
    served = [route for router in routers for route in router.routes]
    now = (lambda: gateway.settings, lambda: gateway.served.catalog, lambda: gateway.entrance)
    routers.append(openapi.routes(served, *now))
    for router in routers:
        app.include_router(router)
    app.add_exception_handler(HTTPException, _framework_error)
    for kind in (GatewayError, RoutingError, Exception):
        app.add_exception_handler(kind, _error)
    return app


def _figures(gateway: Gateway, scrape: Scrape | None) -> APIRouter:
    router = APIRouter()

    @router.get("/metrics")
    async def show_metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        shown = gateway.registry if scrape is None else await scrape()
        return Response(encode(shown), media_type=content_type)

    return router


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
