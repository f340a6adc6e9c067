"""Starts of vLLM that fail, or that end before they are over: one clear line, GGUF serves on, nothing is left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.vllm.demo import demo_folder
from tests.canary import PROMPT
from tests.e2e.gateway import GatewayUnderTest, children_of, running_gateway
from tests.engine import is_alive, wait_for
from tests.vllm import QUICK, START_SECONDS, ensure_installed, held_files, running_vllm

pytestmark = pytest.mark.vllm

KV = "kv_cache_bytes: 67108864"


def _model(name: str, vllm: str) -> str:
    return f"  - {{name: {name}, context_tokens: 512, gguf: {{source: demo, threads: 1}}, vllm: {{{vllm}}}}}\n"


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with half of its weights."""
    folder = tmp_path_factory.mktemp("models") / "damaged"
    shutil.copytree(demo_folder(), folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    return folder


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of an architecture that nobody knows."""
    folder = tmp_path_factory.mktemp("models") / "strange"
    shutil.copytree(demo_folder(), folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["StrangeForCausalLM"], "model_type": "strange"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def failing(
    tmp_path_factory: pytest.TempPathFactory, damaged: Path, strange: Path
) -> Iterator[dict[str, tuple[str, str]]]:
    """(state, failure) of vLLM for models that cannot be served by it, once all of them have failed."""
    ensure_installed()
    folder = tmp_path_factory.mktemp("failing")
    config = "profile: prod\nmodels:\n" + "".join(
        [
            _model("unknown", f"source: nobody/nothing, {KV}, environment: {{HF_HUB_OFFLINE: '1'}}"),
            _model("damaged", f"source: {damaged}, {KV}, {QUICK}"),
            _model("strange", f"source: {strange}, {KV}, {QUICK}"),
            _model("huge", f"source: demo, kv_cache_bytes: 1099511627776, {QUICK}"),
            _model("option", "source: demo, args: {no-such-option: 3}"),
            _model("python", "source: demo, python: /usr/bin/python3"),
        ]
    )
    with running_gateway(folder, config) as gateway:

        def states() -> dict[str, tuple[str, str]]:
            models = gateway.http.get("/readyz").json()["models"]
            return {m["model"]: (m["state"], m.get("failure", "")) for m in models if m["backend"] == "vllm"}

        wait_for(lambda: {state for state, _ in states().values()} == {"failed"}, START_SECONDS)
        yield states()
        for name in states():
            body = {"model": name, "prompt": "a", "max_tokens": 2}
            answer = gateway.http.post("/v1/completions", json=body)
            assert (answer.status_code, answer.headers["x-upshift-backend"]) == (200, "gguf")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("unknown", "the model cannot be had: "),
        ("damaged", "the model's weights are damaged: "),
        ("strange", "this model cannot be loaded: "),
        ("huge", "too little memory: "),
        ("option", "vLLM does not understand its options: "),
        ("python", "there is no vLLM in this environment; `upshift engine install vllm` makes one"),
    ],
)
def test_failed_start_is_told_in_one_line(failing: dict[str, tuple[str, str]], model: str, said: str) -> None:
    state, failure = failing[model]
    assert state == "failed"
    assert failure.startswith(said), failure
    assert "\n" not in failure


def _below(parent: int) -> set[int]:
    found = set(children_of(parent))
    return found.union(*(_below(pid) for pid in found))


@pytest.fixture
def starting(tmp_path: Path) -> Iterator[tuple[GatewayUnderTest, set[int]]]:
    """A gateway whose vLLM has started its second process and is not ready, and all processes below the gateway."""
    ensure_installed()
    with running_gateway(tmp_path, "profile: prod\nmodels:\n" + _model("m", f"source: demo, {KV}, {QUICK}")) as gateway:
        # guard, server, and what the server starts: a resource tracker, the engine's core.
        wait_for(lambda: len(_below(gateway.process.pid)) >= 5, START_SECONDS)
        yield gateway, _below(gateway.process.pid)


@pytest.mark.parametrize("how", ["killed", "asked"])
def test_nothing_is_left_of_a_start_that_is_cut_short(
    starting: tuple[GatewayUnderTest, set[int]], how: str, tmp_path: Path
) -> None:
    gateway, pids = starting
    files = held_files(pids)
    if how == "killed":
        gateway.process.kill()
    else:
        gateway.process.terminate()
    gateway.process.wait(timeout=120)
    wait_for(lambda: not any(map(is_alive, pids)))
    wait_for(lambda: not any(file.exists() for file in files))


def test_vllm_is_stopped_when_idle_and_gguf_answers_while_it_starts_again(tmp_path: Path) -> None:
    config = f"profile: prod\nmodels:\n{_model('demo', f'source: demo, idle_stop_seconds: 2, {KV}, {QUICK}')}"
    question = {"model": "demo", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 3}
    with running_vllm(tmp_path, config) as vllm:
        processes = vllm.processes().values()
        wait_for(lambda: vllm.state() == "stopped", START_SECONDS)
        assert vllm.gateway.ready()
        wait_for(lambda: not any(map(is_alive, processes)))
        answer = vllm.gateway.http.post("/v1/chat/completions", json=question)
        told = [answer.headers[f"x-upshift-{name}"] for name in ("backend", "reason")]
        assert (answer.status_code, told) == (200, ["gguf", "bridge"])
        wait_for(lambda: vllm.state() == "starting")
        vllm.wait_ready()
        answer = vllm.gateway.http.post("/v1/chat/completions", json=question)
        assert (answer.status_code, answer.headers["x-upshift-backend"]) == (200, "vllm")
        wait_for(lambda: vllm.gateway.log.read_text().count("is ready on vllm") == 2)
