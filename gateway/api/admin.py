"""What operators ask: /admin/status and /admin/explain. One worker's view where there are several.

Neighbours: operators.py (who may), routing/explain.py (what is told).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from config.routing import Feature
from gateway.api.body import json_object
from gateway.api.described import takes
from gateway.errors import InvalidBody
from gateway.metrics import Metrics
from routing.ask import Ask, session_affinity
from routing.explain import explain, status
from routing.router import Router

Tokens = Annotated[int, Field(ge=0, le=1_000_000_000)]


class Question(BaseModel):
    """A request that nobody makes: what routing would look at of one."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    prompt_tokens: Tokens = 0
    max_tokens: Tokens | None = None
    features: list[Feature] = []
    key: str = ""
    key_tier: str | None = None
    session: str = ""


def routes(router: Router, metrics: Metrics, about: Callable[[], dict[str, str]]) -> APIRouter:
    """`about` tells version and profile. Unknown models raise ModelNotFound, bad questions InvalidBody."""
    api = APIRouter()

    @api.get("/admin/status")
    async def show_status() -> JSONResponse:
        models = [{**status(lane), "decisions": metrics.decisions(name)} for name, lane in router.lanes.items()]
        return JSONResponse({**about(), "models": models})

    @api.post("/admin/explain", openapi_extra=takes(Question.model_json_schema()))
    async def show_explanation(request: Request) -> JSONResponse:
        try:
            asked = Question.model_validate(await json_object(request))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(map(str, first["loc"]))
            raise InvalidBody(f"`{field}`: {first['msg']}.", param=field) from None
        lane = router.lanes[router.catalog.resolve(asked.model).model]
        ask = Ask(
            lane.pool.model,
            asked.prompt_tokens,
            asked.max_tokens,
            frozenset(asked.features),
            asked.key,
            asked.key_tier,
            session_affinity(asked.session.encode(), asked.key),
        )
        return JSONResponse(explain(lane, ask))

    return api
