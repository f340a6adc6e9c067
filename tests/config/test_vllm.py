"""Rules of `models[].vllm` that concern several settings, as a person is told of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from config.errors import ConfigError
from config.load import load


def loaded(folder: Path, vllm: str) -> object:
    file = folder / "upshift.yaml"
    file.write_text(f"models:\n  - name: m\n    vllm: {vllm}\n")
    settings = load(file, environ={}).settings.models[0].vllm
    assert settings is not None
    return settings


@pytest.mark.parametrize(
    ("vllm", "said"),
    [
        ("{}", "models[0].vllm: should have"),
        ("{source: a/b, urls: ['http://x']}", "models[0].vllm: should have"),
        ("{source: a/b, python: /p, command: [x]}", "models[0].vllm: should have python or command, not both"),
        (
            "{source: a/b, memory_share: 0.5, kv_cache_bytes: 1048576}",
            "models[0].vllm: should have memory_share or kv_cache_bytes, not both",
        ),
        ("{urls: ['http://x'], dtype: float16}", "models[0].vllm: dtype: only with source"),
        ("{source: a/b, args: {port: 1}}", "models[0].vllm: args.port: is the gateway's own affair"),
        ("{source: a/b, args: {dtype: float16}}", "models[0].vllm: args.dtype: say dtype instead"),
        ("{source: a/b, args: {no-enable-prefix-caching: true}}", "say prefix_caching instead"),
        (
            "{source: a/b, args: {max_num_seqs: 3}}",
            "models[0].vllm.args.max_num_seqs: has characters that are not allowed",
        ),
        (
            "{urls: ['http://gpu:80', 'https://gpu', 'http://gpu:8000', 'http://GPU/v1']}",
            "models[0].vllm.urls: names http://GPU twice",
        ),
        ("{source: a/b, sleep_mode: true}", "models[0].vllm: sleep_mode needs idle_stop_seconds"),
        ("{source: a/b, args: {enable-sleep-mode: true}}", "models[0].vllm: args.enable-sleep-mode: say sleep_mode"),
        (
            "{source: a/b, idle_stop_seconds: 0.5}",
            "models[0].vllm.idle_stop_seconds: should be greater than or equal to 1",
        ),
        ("{urls: ['http://x'], idle_stop_seconds: 5}", "models[0].vllm: idle_stop_seconds: only with source"),
        ("{source: a/b, memory_share: 1.5}", "models[0].vllm.memory_share: should be less than or equal to 1"),
    ],
)
def test_what_does_not_go_together_is_named(tmp_path: Path, vllm: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, vllm)
    assert any(said in str(problem) for problem in caught.value.problems), caught.value.problems


@pytest.mark.parametrize(
    ("source", "expected"),
    [("models/here", "{}/models/here"), ("./gone", "{}/gone"), ("org/name", "org/name"), ("demo", "demo")],
    ids=["a-folder-that-exists", "a-path", "an-id", "demo"],
)
def test_source_is_a_folder_or_an_id(tmp_path: Path, source: str, expected: str) -> None:
    (tmp_path / "models" / "here").mkdir(parents=True)
    found = loaded(tmp_path, f"{{source: {source}, python: venv/bin/python}}")
    assert getattr(found, "source", "") == expected.format(tmp_path)
    assert getattr(found, "python", "") == f"{tmp_path}/venv/bin/python"
