"""One gateway with the demo model for all end-to-end tests that leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import OpenAI

from tests.e2e.gateway import GatewayUnderTest, running_gateway
from tests.engine import wait_for

DEMO = """
models:
  - name: demo
    aliases: [gpt-4o-mini]
    context_tokens: 1024
    gguf: {source: demo, parallel: 16, threads: 1}
"""


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayUnderTest]:
    with running_gateway(tmp_path_factory.mktemp("gateway"), DEMO) as gateway:
        wait_for(gateway.ready)
        yield gateway


@pytest.fixture(scope="session")
def client(gateway: GatewayUnderTest) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        yield client
