"""What an engine's answers are taken for."""

from __future__ import annotations

import json
import re

import pytest

from backends.http import HttpClient
from backends.probe import Unfit, total, vllm_ready
from tests.backends.peer import Script, Talk, answer, serve

JSON = b"content-type: application/json"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("running", 3.0, id="plain"),
        pytest.param("vllm:running", 5.0, id="all-engines-added-up"),
        pytest.param("vllm:steps_total", 7.0, id="with-a-timestamp"),
        pytest.param("vllm:run", 0.0, id="not-a-part-of-a-name"),
        pytest.param("odd", 0.0, id="no-number"),
    ],
)
def test_series_are_added_up(name: str, expected: float) -> None:
    page = b'# TYPE x gauge\nrunning 3\nvllm:running{engine="0"} 2.0\nvllm:running{engine="1"} 3\n'
    assert total(page + b'vllm:steps_total{a="b } c"} 7 1700000000\nodd\nodd x\n', name) == expected


MODELS = answer(json.dumps({"data": [{"id": "m"}, {"id": "alias"}]}).encode(), JSON)


def vllm_shaped(health: bytes, models: bytes, completion: bytes) -> Script:
    """Answers each request by its path."""
    answers = {b"/health": health, b"/v1/models": models, b"/v1/completions": completion}

    async def script(talk: Talk) -> None:
        while True:
            head, _ = await talk.request()
            await talk.send(answers[head.split(b" ")[1]])

    return script


OK = answer(b"{}", JSON)


async def progress(health: bytes = OK, models: bytes = MODELS, completion: bytes = OK) -> float | None:
    async with serve(vllm_shaped(health, models, completion)) as peer:
        client = HttpClient(peer.address)
        try:
            return await vllm_ready(client, ("m", "alias"))
        finally:
            await client.aclose()


async def test_vllm_is_ready_when_it_has_answered_a_request() -> None:
    assert await progress() == 1.0
    assert await progress(health=answer(b"", status=503)) is None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"models": answer(b'{"data": [{"id": "m"}]}', JSON)}, "it does not serve alias; it serves m"),
        ({"models": answer(b"[]", JSON)}, "GET /v1/models answered with status 200 and no list of models"),
        (
            {"completion": answer(b'{"error": "no"}', JSON, status=500)},
            'it was up, but answered its first request with 500 {"error": "no"}',
        ),
    ],
    ids=["a-name-is-missing", "nonsense", "cannot-compute"],
)
async def test_vllm_that_answers_and_does_not_serve_is_unfit(wrong: dict[str, bytes], said: str) -> None:
    with pytest.raises(Unfit, match=f"^{re.escape(said)}$"):
        await progress(**wrong)


async def test_nobody_there_is_no_answer() -> None:
    client = HttpClient("unix:/nonexistent/e.sock")
    assert await vllm_ready(client, ("m",)) is None
    await client.aclose()
