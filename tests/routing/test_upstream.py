from __future__ import annotations

import pytest

from routing.upstream import Upstream, UpstreamPool
from tests.fakes import FakeBackend


async def test_upstreams_of_equal_backends_are_counted_apart() -> None:
    backend = FakeBackend()
    first, second = Upstream(backend), Upstream(backend)
    first.in_flight += 1
    assert second.in_flight == 0
    assert len({first, second}) == 2


def test_pool_without_upstream_is_refused() -> None:
    with pytest.raises(ValueError, match="'demo' has no upstream"):
        UpstreamPool("demo", ())
