"""Whose prompts share a prefix cache: everybody's, or each key's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backends.base import Operation
from gateway.errors import InvalidBody
from gateway.intake import decode
from gateway.keys import hash_of, new_key
from tests.fakes import FakeBackend
from tests.gateway.running import CHAT, body, serving

KEYS = {name: new_key() for name in ("alice", "bob")}


def keys(folder: Path) -> dict[str, Any]:
    file = folder / "keys.yaml"
    file.write_text(json.dumps({"keys": [{"name": name, "hash": hash_of(key)} for name, key in KEYS.items()]}))
    return {"auth": {"keys_file": str(file)}}


async def test_each_key_has_a_salt_of_its_own_and_keeps_it(tmp_path: Path) -> None:
    salts: list[list[str]] = []
    for _ in range(2):  # another gateway gives the same
        backend = FakeBackend()
        async with serving(backend, edge=keys(tmp_path), isolate_caches=True) as gateway:
            for name in ("alice", "bob", "alice"):
                headers = {"authorization": f"Bearer {KEYS[name]}"}
                assert (await gateway.client.post(CHAT, json=body(x="ä"), headers=headers)).status_code == 200
        sent = [json.loads(request.body) for request in backend.requests]
        assert all(each | {"cache_salt": ""} == body(x="ä", cache_salt="") for each in sent)
        salts.append([each["cache_salt"] for each in sent])
    alice, bob, again = salts[0]
    assert alice == again != bob
    assert salts[1] == salts[0]
    assert len(alice) == 64
    assert not any(hash_of(key).removeprefix("sha256:") in alice + bob for key in KEYS.values())


async def test_nothing_is_written_into_bodies_by_default(tmp_path: Path) -> None:
    backend = FakeBackend()
    async with serving(backend, edge=keys(tmp_path)) as gateway:
        headers = {"authorization": f"Bearer {KEYS['alice']}"}
        assert (await gateway.client.post(CHAT, json=body(), headers=headers)).status_code == 200
    assert "cache_salt" not in json.loads(backend.requests[0].body)


@pytest.mark.parametrize("field", ['"cache_salt":"x"', '"cache_\\u0073alt":"x"', '"cache_salt":null'])
def test_salt_of_the_client_is_refused(field: str) -> None:
    sent = b'{"model":"m",%b}' % field.encode()
    with pytest.raises(InvalidBody) as caught:
        decode(sent, Operation.CHAT, "r", cache_salt="s")
    assert caught.value.param == "cache_salt"
    assert decode(sent, Operation.CHAT, "r").body == sent


def test_white_space_before_the_object_does_not_matter() -> None:
    assert (
        decode(b' \n{"model":"m"}\n', Operation.CHAT, "r", cache_salt="s").body == b'{"cache_salt":"s","model":"m"}\n'
    )
