"""GET /v1/models: OpenAI's listing."""

from __future__ import annotations

import pytest

from tests.fakes import FakeBackend
from tests.gateway.running import serving


async def test_models_are_listed_with_their_aliases() -> None:
    async with serving(FakeBackend("org/one"), FakeBackend("two")) as gateway:
        listing = (await gateway.client.get("/v1/models")).json()
        assert listing["object"] == "list"
        assert [model["id"] for model in listing["data"]] == ["org/one", "alias", "two"]
        assert all(model["object"] == "model" and model["created"] > 0 for model in listing["data"])
        assert [model.get("root") for model in listing["data"]] == [None, "org/one", None]


@pytest.mark.parametrize("name", ["org/one", "alias", "org%2Fone"])
async def test_one_model_is_described(name: str) -> None:
    async with serving(FakeBackend("org/one")) as gateway:
        model = (await gateway.client.get(f"/v1/models/{name}")).json()
        assert (model["id"], model["owned_by"]) == (name.replace("%2F", "/"), "upshift")
        assert model["max_model_len"] == 4096


@pytest.mark.parametrize("name", ["nothing", "../../etc/passwd", "%2e%2e", "org/one/", "ORG/one"])
async def test_unknown_model_is_not_found(name: str) -> None:
    async with serving(FakeBackend("org/one")) as gateway:
        answer = await gateway.client.get(f"/v1/models/{name}")
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] in ("model_not_found", "not_found")
