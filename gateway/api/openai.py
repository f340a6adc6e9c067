"""OpenAI's model listing. The inference calls of the same dialect never come here: dataplane.py takes them."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from routing.catalog import CatalogEntry, ModelCatalog


def routes(catalog: ModelCatalog) -> APIRouter:
    """GET /v1/models and /v1/models/{id}; every alias counts as a model. Unknown ids raise ModelNotFound."""
    created = int(time.time())
    listed = {name: _model(name, entry, created) for entry in catalog.models for name in (entry.name, *entry.aliases)}
    router = APIRouter()

    @router.get("/v1/models")
    async def list_models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": list(listed.values())})

    # Model names may hold slashes: organisation/model.
    @router.get("/v1/models/{model_id:path}")
    async def show_model(model_id: str) -> JSONResponse:
        catalog.resolve(model_id)
        return JSONResponse(listed[model_id])

    return router


def _model(name: str, entry: CatalogEntry, created: int) -> dict[str, Any]:
    model: dict[str, Any] = {"id": name, "object": "model", "created": created, "owned_by": "upshift"}
    if name != entry.name:
        model["root"] = entry.name
    if entry.context_tokens is not None:
        model["max_model_len"] = entry.context_tokens
    return model
