"""Every setting reaches vLLM as the option it stands for, and nothing else does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from backends.errors import EngineStartFailed
from backends.vllm import guard
from backends.vllm.command import argv, engine_plan, environment
from backends.vllm.environment import Installed, default_folder, interpreter, mark
from config.schema import ModelSettings
from config.vllm import VllmSettings

PYTHON = "/srv/vllm/bin/python"


def options(names: Sequence[str] = ("m",), context_tokens: int | None = None, **settings: Any) -> list[str]:
    """The command line behind the interpreter."""
    given = VllmSettings.model_validate({"source": "/models/m", "python": PYTHON, **settings})
    command = argv(given, "/models/m", uds="/run/e.sock", names=names, context_tokens=context_tokens)
    assert command[:6] == [sys.executable, "-I", "-S", guard.__file__, "/run/e.sock", PYTHON]
    return command[6:]


def test_what_is_unset_is_left_to_vllm() -> None:
    assert options() == [
        "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", "/models/m",
        "--served-model-name", "m", "--uds", "/run/e.sock", "--max-model-len", "auto", "--shutdown-timeout", "5",
        "--disable-uvicorn-access-log", "--disable-fastapi-docs", "--enable-prompt-tokens-details",
        "--dtype=auto", "--max-num-queued-reqs=4096", "--enable-prefix-caching",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"tensor_parallel": 2}, "--tensor-parallel-size=2"),
        ({"pipeline_parallel": 4}, "--pipeline-parallel-size=4"),
        ({"data_parallel": 8}, "--data-parallel-size=8"),
        ({"dtype": "float16"}, "--dtype=float16"),
        ({"max_sequences": 64}, "--max-num-seqs=64"),
        ({"max_queued": 7}, "--max-num-queued-reqs=7"),
        ({"memory_share": 0.5}, "--gpu-memory-utilization=0.5"),
        ({"kv_cache_bytes": 1 << 30}, "--kv-cache-memory-bytes=1073741824"),
        ({"quantization": "fp8"}, "--quantization=fp8"),
        ({"prefix_caching": False}, "--no-enable-prefix-caching"),
        ({"tool_parser": "hermes"}, "--tool-call-parser=hermes --enable-auto-tool-choice"),
        ({"reasoning_parser": "qwen3"}, "--reasoning-parser=qwen3"),
        ({"speculative": {"method": "ngram"}}, '--speculative-config={"method": "ngram"}'),
        ({"sleep_mode": True, "idle_stop_seconds": 60}, "--enable-sleep-mode"),
        ({"args": {"enforce-eager": True}}, "--enforce-eager"),
        ({"args": {"enable-chunked-prefill": False}}, "--no-enable-chunked-prefill"),
        ({"args": {"seed": 3}}, "--seed=3"),
        ({"args": {"chat-template": "--odd"}}, "--chat-template=--odd"),
        ({"args": {"hf-overrides": {"a": 1}}}, '--hf-overrides={"a": 1}'),
        ({"args": {"lora-modules": ["a=/x", "b=/y"]}}, "--lora-modules a=/x b=/y"),
        ({"args": {"seed": None}}, ""),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_each_setting_has_its_option(settings: dict[str, Any], expected: str) -> None:
    assert expected in " ".join(options(**settings))
    assert " ".join(options(**settings)) != " ".join(options()) or not expected


def test_names_and_context_are_the_models() -> None:
    command = options(["llama3", "gpt-4o"], 8192)
    assert command[command.index("--served-model-name") + 1 :][:2] == ["llama3", "gpt-4o"]
    assert command[command.index("--max-model-len") + 1] == "8192"


def test_a_command_of_the_users_gets_the_model_in_its_place() -> None:
    settings = VllmSettings(source="org/name", command=("/opt/vllm", "serve"))
    command = argv(settings, "org/name", uds="/e.sock", names=["m"])
    assert command[5:9] == ["/opt/vllm", "serve", "org/name", "--served-model-name"]


def test_without_an_environment_it_is_said_how_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPSHIFT_CACHE", str(tmp_path))
    with pytest.raises(EngineStartFailed, match=r"is missing; `upshift engine install vllm` makes it"):
        argv(VllmSettings(source="/m"), "/m", uds="/e.sock", names=["m"])
    (tmp_path / "vllm").mkdir()
    with pytest.raises(EngineStartFailed, match="is not finished"):
        argv(VllmSettings(source="/m"), "/m", uds="/e.sock", names=["m"])


@pytest.mark.parametrize(("device", "bounded"), [("cpu", True), ("cuda", False)])
def test_on_a_cpu_the_cache_is_bounded(
    device: str, bounded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPSHIFT_CACHE", str(tmp_path))
    python = interpreter(tmp_path / "vllm")
    python.parent.mkdir(parents=True)
    python.touch()
    mark(tmp_path / "vllm", Installed(device, "0", "0"))
    command = argv(VllmSettings(source="/m"), "/m", uds="/e.sock", names=["m"])
    assert command[5] == str(python)
    sizes = [int(word.partition("=")[2]) for word in command if word.startswith("--kv-cache-memory-bytes=")]
    assert [size <= 4 << 30 for size in sizes] == [True] * bounded
    share = argv(VllmSettings(source="/m", memory_share=0.3), "/m", uds="/e.sock", names=["m"])
    assert not any(word.startswith("--kv-cache-memory-bytes") for word in share)


@pytest.mark.parametrize(
    ("source", "offline"), [("/models/m", True), ("demo", True), ("org/name", False)], ids=["folder", "demo", "hub"]
)
def test_a_folder_is_loaded_without_the_network(source: str, offline: bool) -> None:
    found = environment(VllmSettings(source=source, environment={"A": "1"}))
    assert ("HF_HUB_OFFLINE" in found) is offline
    assert (found["A"], found["VLLM_NO_USAGE_STATS"]) == ("1", "1")


def test_plan_has_a_name_of_its_own_and_answers_to_all_names() -> None:
    model = ModelSettings(name="m", aliases=("a",), vllm=VllmSettings(source="org/name", python=PYTHON))
    assert model.vllm is not None
    plan = engine_plan(model, model.vllm)
    assert (plan.kind, plan.name, plan.served_names) == ("vllm", "m/vllm", ("m", "a"))
    assert plan.argv("/x/e.sock")[5:10] == [PYTHON, "-P", "-m", "vllm.entrypoints.openai.api_server", "--model"]


def test_endpoints_for_development_exist_only_for_sleep_mode_and_not_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleepy = VllmSettings(source="/m", python=PYTHON, sleep_mode=True, idle_stop_seconds=60)
    assert environment(sleepy)["VLLM_SERVER_DEV_MODE"] == "1"
    assert engine_plan(ModelSettings(name="m", vllm=sleepy), sleepy).dozes
    assert "VLLM_SERVER_DEV_MODE" not in environment(VllmSettings(source="/m", idle_stop_seconds=60))
    monkeypatch.setenv("UPSHIFT_CACHE", str(tmp_path))
    found = interpreter(default_folder())
    found.parent.mkdir(parents=True)
    found.touch()
    mark(default_folder(), Installed("cpu", "0", "0"))
    ours = sleepy.model_copy(update={"python": None})
    assert "VLLM_SERVER_DEV_MODE" not in environment(ours)
    plan = engine_plan(ModelSettings(name="m", vllm=ours), ours)
    assert not plan.dozes
    assert "--enable-sleep-mode" not in plan.argv("/run/e.sock")
