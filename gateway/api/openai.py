"""OpenAI's listing of the models that a key covers. Inference calls never come here: relay.py serves them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from gateway.auth import Principal, check_model
from gateway.entrance import Entrance
from gateway.visitor import admit
from routing.catalog import CatalogEntry, ModelCatalog


def routes(catalog: Callable[[], ModelCatalog], entrance: Callable[[], Entrance]) -> APIRouter:
    """GET /v1/models and /v1/models/{id}; every alias counts as a model. Unknown ids raise ModelNotFound, missing or
    wrong keys InvalidKey."""
    created = int(time.time())
    router = APIRouter()

    async def caller(request: Request) -> Principal:
        return await admit(entrance(), request.scope, "openai")

    @router.get("/v1/models")
    async def list_models(request: Request) -> JSONResponse:
        models = (await caller(request)).models
        entries = [entry for entry in catalog().models if models is None or entry.name in models]
        data = [_model(name, entry, created) for entry in entries for name in (entry.name, *entry.aliases)]
        return JSONResponse({"object": "list", "data": data})

    # Model names may hold slashes: organisation/model.
    @router.get("/v1/models/{model_id:path}")
    async def show_model(request: Request, model_id: str) -> JSONResponse:
        principal = await caller(request)
        name = catalog().resolve(model_id).model
        check_model(principal, name)
        entry = next(entry for entry in catalog().models if entry.name == name)
        return JSONResponse(_model(model_id, entry, created))

    return router


def _model(name: str, entry: CatalogEntry, created: int) -> dict[str, Any]:
    model: dict[str, Any] = {"id": name, "object": "model", "created": created, "owned_by": "upshift"}
    if name != entry.name:
        model["root"] = entry.name
    if entry.context_tokens is not None:
        model["max_model_len"] = entry.context_tokens
    return model
