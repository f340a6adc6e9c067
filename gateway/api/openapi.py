"""The OpenAPI documents: /openapi.json for those who use the models, /admin/openapi.json for operators.

Neither tells of the other's paths. Neighbours: described.py (what they say), operators.py (who may ask for the second).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.routing import BaseRoute

from config.auth import AuthSettings
from config.schema import Settings
from gateway.api.described import inference, operations
from gateway.entrance import Entrance
from gateway.health import OPEN
from gateway.operators import is_for_operators
from gateway.visitor import admit
from routing.catalog import ModelCatalog

# One of them, both say the same.
_KEYS: list[dict[str, Any]] = [{"bearer": []}, {"key": []}]
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


def routes(
    served: Sequence[BaseRoute],
    settings: Callable[[], Settings],
    catalog: Callable[[], ModelCatalog],
    entrance: Callable[[], Entrance],
) -> APIRouter:
    """Both documents, of the `served` routes and these two themselves. The clients' one names the models that the
    caller's key covers, and raises what the entrance does."""
    router = APIRouter()

    def described(*, to_operators: bool) -> dict[str, Any]:
        found = operations([*served, *router.routes])
        return {path: said for path, said in found.items() if is_for_operators(path) is to_operators}

    @router.get("/openapi.json")
    async def describe(request: Request) -> JSONResponse:
        allowed = (await admit(entrance(), request.scope, "openai")).models
        entries = [entry for entry in catalog().models if allowed is None or entry.name in allowed]
        names = [name for entry in entries for name in (entry.name, *entry.aliases)]
        paths = {**inference(names), **described(to_operators=False)}
        if not isinstance(settings().auth, AuthSettings):
            return JSONResponse(_document(paths, []))
        for path in OPEN & paths.keys():
            for operation in paths[path].values():
                operation["security"] = []
        return JSONResponse(_document(paths, _KEYS))

    @router.get("/admin/openapi.json")
    async def describe_to_operators() -> JSONResponse:
        # Whether a key is needed depends on the listener.
        return JSONResponse(_document(described(to_operators=True), [*_KEYS, {}]))

    return router


def _document(paths: dict[str, Any], security: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "openapi": "3.1.0",
        "info": {"title": "Upshift", "version": version("upshift")},
        "security": security,
        "components": {"securitySchemes": _SCHEMES},
        "paths": paths,
    }
