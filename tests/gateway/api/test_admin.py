"""What operators are told about routing, and by the commands that ask for it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.cli import main
from tests.backends.vllm_shaped import Replica
from tests.gateway.running import CHAT, Gateway, body, serving


def settings(gguf: str, vllm: str, **routing: Any) -> dict[str, Any]:
    model = {"name": "fake", "gguf": {"openai": gguf}, "vllm": {"urls": [vllm]}}
    return {"models": [model], "routing": {"graduate": {"to_vllm_at": 4}, **routing}}


async def upshift(gateway: Gateway, *arguments: str) -> int:
    """A command that asks this gateway, as another process would."""
    return await asyncio.to_thread(main, [*arguments, "--url", f"http://127.0.0.1:{gateway.port}"])


async def test_status_tells_each_upstream_and_what_was_decided(capsys: pytest.CaptureFixture[str]) -> None:
    async with (
        Replica("fake") as gguf,
        Replica("fake") as vllm,
        serving(edge=settings(gguf.address, vllm.address)) as gateway,
    ):
        await gateway.ready()
        await gateway.chat()
        (told,) = (await gateway.client.get("/admin/status")).json()["models"]
        assert (told["model"], told["policy"], told["preferred"], told["waiting"]) == (
            "fake",
            "graduate",
            "gguf",
            0,
        )
        assert told["decisions"] == {"gguf": {"quiet": 1}, "vllm": {}}
        first = told["upstreams"][0]
        assert (first["name"], first["state"], first["breaker"], first["in_flight"]) == (
            gguf.address,
            "ready",
            "closed",
            0,
        )
        assert first["answer_seconds"] > 0
        assert await upshift(gateway, "status") == 0
        shown = capsys.readouterr().out
        assert "fake: policy graduate, gguf preferred now; 0 waiting, 0 retried" in shown
        assert gguf.address in shown
        assert "quiet 1" in shown
        assert await upshift(gateway, "status", "--json") == 0
        assert json.loads(capsys.readouterr().out)["models"][0]["model"] == "fake"


async def test_known_faults_of_an_engine_stand_below_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    async with Replica("fake") as gguf, Replica("fake") as vllm:
        vllm.version = "0.14.0"
        async with serving(edge=settings(gguf.address, vllm.address)) as gateway:
            await gateway.ready()
            async with asyncio.timeout(20):
                warnings: list[Any] = [None, None]
                while warnings[1] is None:
                    (told,) = (await gateway.client.get("/admin/status")).json()["models"]
                    warnings = [upstream["warning"] for upstream in told["upstreams"]]
            assert warnings[0] is None
            assert await upshift(gateway, "status") == 0
            shown = capsys.readouterr().out.splitlines()
            assert [line for line in shown if "known faults" in line] == [f"  {vllm.address}: {warnings[1]}"]


async def test_explain_says_where_and_why_not_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    rules = [{"when": {"prompt_tokens_over": 6000}, "use": "vllm"}]
    async with (
        Replica("fake") as gguf,
        Replica("fake") as vllm,
        serving(edge=settings(gguf.address, vllm.address, rules=rules)) as gateway,
    ):
        await gateway.ready()
        told = (await gateway.client.post("/admin/explain", json={"model": "fake"})).json()
        assert (told["backend"], told["reason"], told["rules"][0]["matches"]) == ("gguf", "quiet", False)
        assert told["upstreams"][1]["why_not"] == "another one comes first (quiet); it is asked if that one fails"
        assert await upshift(gateway, "explain", "fake", "--prompt-tokens", "9000") == 0
        shown = capsys.readouterr().out
        assert f"goes to {vllm.address} (vllm): rule" in shown
        assert "rule 1: when prompt_tokens_over 6000, use vllm: matches" in shown
        assert (gguf.begun, vllm.begun) == (0, 0), "nothing is sent"
        assert (await gateway.client.get("/admin/status")).json()["models"][0]["decisions"] == {
            "gguf": {},
            "vllm": {},
        }


async def test_of_a_model_with_one_upstream_no_policy_is_told() -> None:
    async with Replica("fake") as one:
        model = {"name": "fake", "gguf": {"openai": one.address}}
        async with serving(edge={"models": [model]}) as gateway:
            await gateway.ready()
            told = (await gateway.client.post("/admin/explain", json={"model": "fake"})).json()
            assert (told["backend"], told["reason"]) == ("gguf", "only")
            (status,) = (await gateway.client.get("/admin/status")).json()["models"]
            assert status["preferred"] is None


@pytest.mark.parametrize(
    ("question", "status", "text"),
    [
        ({"model": "nobody"}, 404, "does not exist"),
        ({}, 400, "`model`"),
        ({"model": "fake", "prompt_tokens": -1}, 400, "`prompt_tokens`"),
        ({"model": "fake", "colour": "red"}, 400, "`colour`"),
    ],
)
async def test_a_question_that_makes_no_sense_is_told(question: dict[str, Any], status: int, text: str) -> None:
    async with Replica("fake") as one, serving(edge=settings(one.address, one.address)) as gateway:
        answer = await gateway.client.post("/admin/explain", json=question)
        assert answer.status_code == status
        assert text in answer.json()["error"]["message"]
        assert await upshift(gateway, "explain", "nobody") == 1


@pytest.mark.parametrize(
    ("content", "status"),
    [
        *((b"", 400), (b"[", 400), (b"[" * 60_000, 400), (b'{"model":"\xff"}', 400), (b"[]", 400), (b"9" * 5000, 400)),
        *((b'{"model":"fake","session":"\\ud800"}', 400), (b'{"model":"fake","prompt_tokens":%d}' % 10**400, 400)),
        *((b'{"model":"\\ud800"}', 400), (b'{"model":"fake","\\ud800":1}', 400), (b" " * 70_000, 413)),
    ],
)
async def test_a_question_that_is_no_json_is_refused(content: bytes, status: int) -> None:
    async with Replica("fake") as one, serving(edge=settings(one.address, one.address)) as gateway:
        asking = {"content-type": "application/json"}
        answer = await gateway.client.post("/admin/explain", content=content, headers=asking)
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_gateway_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", "http://127.0.0.1:1"]) == 1
    assert "no gateway answers at http://127.0.0.1:1" in capsys.readouterr().err


async def test_a_trace_is_replayed_by_the_same_and_by_other_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.jsonl"
    secret = "the prompt that nobody may see"
    async with Replica("fake", token_seconds=0.01) as gguf, Replica("fake", token_seconds=0.01) as vllm:
        same = settings(gguf.address, vllm.address, trace={"file": str(trace)})
        async with serving(edge=same) as gateway:
            await gateway.ready()
            asked = body(messages=[{"role": "user", "content": secret}])
            for together in (1, 8, 1, 8, 2):
                answers = await asyncio.gather(*(gateway.client.post(CHAT, json=asked) for _ in range(together)))
                assert {answer.status_code for answer in answers} == {200}
    text = trace.read_text()
    decisions = len(text.splitlines())
    assert decisions >= 20, "one that is called back is decided again"
    assert secret not in text
    for name, other in (("same", same), ("other", {**same, "routing": {"policy": "vllm_first"}})):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(other))))
    assert main(["replay", str(trace), "--config", str(tmp_path / "same.yaml")]) == 0
    assert capsys.readouterr().out == f"fake: 0 of {decisions} decisions change (0.0 %)\n"
    assert main(["replay", str(trace), "--config", str(tmp_path / "other.yaml")]) == 0
    shown = capsys.readouterr().out
    assert f"fake: {decisions} of {decisions} decisions change (100.0 %)" in shown
    assert "gguf (quiet) -> vllm (preferred)" in shown
    renamed = text.splitlines()[0].replace('"model": "fake"', '"model": "gone"')
    trace.write_text(f"{text}{renamed}\n")
    assert main(["replay", str(trace), "--config", str(tmp_path / "same.yaml")]) == 0
    assert "gone: there is no such model in these settings" in capsys.readouterr().out
    trace.write_text("nonsense\n")
    assert main(["replay", str(trace), "--config", str(tmp_path / "same.yaml")]) == 1
    assert "line 1: is no traced decision" in capsys.readouterr().err
