"""Keys that hold from some addresses and for some surfaces only, and guessing, over real connections."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.guesses import MOST
from gateway.keys import hash_of, new_key
from tests.fakes import FakeBackend
from tests.gateway.running import CHAT, Gateway, body, serving

KEY = new_key()
WEAK = "sk-weak"


def edge(folder: Path, **rights: Any) -> dict[str, Any]:
    """One key with `rights`, and one of another make."""
    file = folder / "keys.yaml"
    entries = [{"name": "a", "hash": hash_of(KEY), **rights}, {"name": "weak", "hash": hash_of(WEAK)}]
    file.write_text(json.dumps({"keys": entries}))
    return {"auth": {"keys_file": str(file)}}


async def ask(gateway: Gateway, key: str, path: str = CHAT, **headers: str) -> httpx.Response:
    method = "POST" if path == CHAT else "GET"
    return await gateway.client.request(method, path, json=body(), headers={"x-api-key": key, **headers})


@pytest.mark.parametrize(
    ("addresses", "forwarded", "status"),
    [
        (["127.0.0.1"], None, 200),
        (["10.0.0.0/8", "127.0.0.0/8"], None, 200),
        (["10.0.0.0/8"], None, 403),
        (["::1"], None, 403),
        (["10.0.0.0/8"], "10.1.2.3", 200),
        (["10.0.0.0/8"], "10.1.2.3, 192.168.0.1", 403),
        (["192.168.0.0/16"], "10.1.2.3, 192.168.0.1", 200),
    ],
    ids=str,
)
async def test_key_holds_at_its_addresses(
    tmp_path: Path, addresses: list[str], forwarded: str | None, status: int
) -> None:
    settings = edge(tmp_path, addresses=addresses)
    headers = {} if forwarded is None else {"x-forwarded-for": forwarded}
    proxies = ("127.0.0.1",) if forwarded else ()
    async with serving(FakeBackend(), edge=settings, trusted_proxies=proxies) as gateway:
        for path in (CHAT, "/v1/models"):
            answer = await ask(gateway, KEY, path, **headers)
            assert answer.status_code == status
            if status == 403:
                assert answer.json()["error"]["code"] == "address_not_allowed"


async def test_forwarded_address_of_anybody_means_nothing(tmp_path: Path) -> None:
    async with serving(FakeBackend(), edge=edge(tmp_path, addresses=["10.0.0.0/8"])) as gateway:
        assert (await ask(gateway, KEY, **{"x-forwarded-for": "10.1.2.3"})).status_code == 403


@pytest.mark.parametrize(
    ("surfaces", "models", "metrics"),
    [(["openai"], 200, 403), (["operators"], 403, 200), (["openai", "operators"], 200, 200), (None, 200, 403)],
    ids=str,
)
async def test_key_opens_its_surfaces(tmp_path: Path, surfaces: list[str] | None, models: int, metrics: int) -> None:
    rights = {} if surfaces is None else {"surfaces": surfaces}
    async with serving(FakeBackend(), edge=edge(tmp_path, **rights)) as gateway:
        found = [(await ask(gateway, KEY, path)).status_code for path in (CHAT, "/v1/models", "/metrics")]
        assert found == [models, models, metrics]


async def test_guessing_is_slowed_and_keys_that_nobody_guesses_go_on(tmp_path: Path) -> None:
    async with serving(FakeBackend(), edge=edge(tmp_path)) as gateway:
        assert (await ask(gateway, WEAK)).status_code == 200
        statuses = [(await ask(gateway, f"sk-{number}")).status_code for number in range(MOST + 5)]
        # A twentieth of a minute forgives one.
        assert statuses[:MOST] == [401] * MOST
        assert 429 in statuses[MOST:]
        refused = await ask(gateway, WEAK)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_attempts")
        assert int(refused.headers["retry-after"]) >= 1
        assert (await ask(gateway, KEY)).status_code == 200
        assert (await ask(gateway, KEY, "/v1/models")).status_code == 200
        assert (await ask(gateway, "sk-x", "/v1/models")).status_code == 429


async def test_missing_key_is_no_guess(tmp_path: Path) -> None:
    async with serving(FakeBackend(), edge=edge(tmp_path)) as gateway:
        for _ in range(MOST + 5):
            assert (await gateway.chat()).status_code == 401
        assert (await ask(gateway, WEAK)).status_code == 200


async def test_without_keys_nothing_counts_as_a_guess() -> None:
    async with serving(FakeBackend()) as gateway:
        for number in range(MOST + 5):
            assert (await ask(gateway, f"sk-{number}")).status_code == 200
