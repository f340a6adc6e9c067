from __future__ import annotations

import pytest

from routing.catalog import CatalogEntry, ModelCatalog
from routing.errors import ModelNotFound
from routing.upstream import Upstream, UpstreamPool
from tests.fakes import FakeBackend


def _pool(model: str) -> UpstreamPool:
    return UpstreamPool(model, (Upstream(FakeBackend(model)),))


def _catalog() -> ModelCatalog:
    return ModelCatalog(
        [
            (CatalogEntry("demo", ("gpt-4o-mini", "default"), 2048), _pool("demo")),
            (CatalogEntry("large"), _pool("large")),
        ]
    )


@pytest.mark.parametrize(("name", "model"), [("demo", "demo"), ("default", "demo"), ("large", "large")])
async def test_name_or_alias_leads_to_the_pool(name: str, model: str) -> None:
    assert _catalog().resolve(name).model == model


@pytest.mark.parametrize("name", ["", "Demo", "demo ", "demo/", "models/demo", "../demo", "unknown"])
async def test_only_the_exact_name_is_known(name: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        _catalog().resolve(name)
    assert caught.value.known == ("demo", "gpt-4o-mini", "default", "large")


async def test_models_and_pools_are_listed_in_the_order_of_the_settings() -> None:
    catalog = _catalog()
    assert [entry.name for entry in catalog.models] == ["demo", "large"]
    assert [pool.model for pool in catalog.pools] == ["demo", "large"]
    assert catalog.models[0].context_tokens == 2048


async def test_one_name_for_two_models_is_refused() -> None:
    with pytest.raises(ValueError, match="two models are called 'demo'"):
        ModelCatalog([(CatalogEntry("demo"), _pool("demo")), (CatalogEntry("large", ("demo",)), _pool("large"))])
