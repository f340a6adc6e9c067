"""Doctor on recorded machines, with model files that are as large as real ones and hold nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter

from backends.vllm.environment import Installed, interpreter, mark
from gateway.cli import main
from tests.backends.machines import FOLDER as MACHINES
from tests.backends.vllm.test_shape import LLAMA

SMALL, LARGE = 16_060_000_000, 141_100_000_000


def checkpoint(folder: Path, weight_bytes: int, **fields: Any) -> Path:
    """A Llama's config.json beside a file with a hole of `weight_bytes`."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA | fields))
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(weight_bytes)
    return folder


def gguf(path: Path, elements: int) -> Path:
    """The header of a Llama of 8 B in Q4_K, and a hole."""
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(32)
    writer.add_context_length(131_072)
    writer.add_embedding_length(4096)
    writer.add_feed_forward_length(14336)
    writer.add_head_count(32)
    writer.add_head_count_kv(8)
    n_bytes = elements // 256 * 144
    writer.add_tensor_info("w", [n_bytes], np.dtype(np.uint8), n_bytes, GGMLQuantizationType.Q4_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + n_bytes + 64)
    return path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """An 8B model by both engines, and another one by a replica elsewhere."""
    gguf(tmp_path / "8b.gguf", 8_000_000_000)
    checkpoint(tmp_path / "8b", SMALL)
    file = tmp_path / "upshift.yaml"
    file.write_text(
        "models:\n"
        "  - {name: small, context_tokens: 8192, gguf: {source: 8b.gguf}, vllm: {source: ./8b}}\n"
        '  - {name: far, vllm: {urls: ["http://gpu-0:8000"]}}\n'
    )
    return file


def diagnosed(
    capsys: pytest.CaptureFixture[str], config: Path, machine: str, *arguments: str
) -> tuple[int, dict[str, Any]]:
    code = main(
        ["doctor", "--config", str(config), "--hardware", str(MACHINES / f"{machine}.json"), "--json", *arguments]
    )
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, found


def artifacts(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{model['model']}/{artifact['kind']}": artifact
        for model in report["models"]
        for artifact in model["artifacts"]
    }


@pytest.mark.parametrize(
    ("machine", "served", "reason"),
    [
        ("2-cores", "small/gguf far/vllm", "this machine has no GPU"),
        ("mac", "small/gguf far/vllm", "this machine has no GPU"),
        ("1xL40S", "small/gguf small/vllm far/vllm", "fits on 1 × NVIDIA L40S"),
        ("2xA100", "small/gguf small/vllm far/vllm", "fits on 1 × NVIDIA A100-SXM4-80GB"),
        ("8xH100", "small/gguf small/vllm far/vllm", "fits on 1 × NVIDIA H100 80GB HBM3"),
    ],
)
def test_each_machine_gets_its_choice_and_its_reason(
    machine: str, served: str, reason: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report = diagnosed(capsys, config, machine)
    found = artifacts(report)
    assert " ".join(name for name, artifact in found.items() if artifact["served"]) == served
    assert found["small/vllm"]["reason"] == reason
    assert found["small/gguf"]["fit"]["fits"]
    assert (code, report["problems"], report["notes"]) == (0, [], [])


@pytest.mark.parametrize(
    ("machine", "code", "told"),
    [
        ("1xL40S", 1, "it needs 134.6 GiB on the GPU, and 41.4 GiB are there for it; it would fit with 4 GPUs"),
        ("2xA100", 0, ""),
        ("8xH100", 0, ""),
        ("mac", 1, "profile auto leaves 'large' with nothing to serve it (this machine has no GPU); add gguf, or"),
    ],
)
def test_a_model_that_is_too_large_exits_with_1_and_what_to_change(
    machine: str, code: int, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = {"num_hidden_layers": 80, "hidden_size": 8192, "num_attention_heads": 64, "intermediate_size": 28672}
    checkpoint(tmp_path / "70b", LARGE, **large)
    file = tmp_path / "upshift.yaml"
    file.write_text("models: [{name: large, context_tokens: 4096, vllm: {source: ./70b}}]")
    ended, report = diagnosed(capsys, file, machine)
    assert ended == code
    assert told in " ".join(report["problems"])


def test_weights_that_would_fit_in_eight_bits_are_offered_in_eight_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = {"num_hidden_layers": 64, "hidden_size": 5120, "num_attention_heads": 40, "intermediate_size": 27648}
    checkpoint(tmp_path / "32b", 65_500_000_000, **size)
    file = tmp_path / "upshift.yaml"
    text = "models: [{name: m, context_tokens: 8192, vllm: {source: ./32b}}]"
    file.write_text(text)
    code, report = diagnosed(capsys, file, "1xL40S")
    assert code == 1
    assert (
        "it would fit with 2 GPUs of this kind or quantization: fp8_per_tensor or an AWQ or GPTQ checkpoint of 4 bits "
        "or a smaller checkpoint: at most"
    ) in " ".join(report["problems"])
    file.write_text(text.replace("./32b", "./32b, quantization: fp8_per_tensor"))
    code, report = diagnosed(capsys, file, "1xL40S")
    assert (code, report["problems"], artifacts(report)["m/vllm"]["served"]) == (0, [], True)


def test_gguf_that_does_not_fit_names_settings_that_would(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = config.read_text().replace("context_tokens: 8192, gguf: {", "context_tokens: 65536, gguf: {parallel: 8, ")
    config.write_text(text)
    code, report = diagnosed(capsys, config, "2-cores", "--profile", "dev")
    assert code == 1
    assert report["profile"] == "dev"
    (first, second) = report["problems"]
    assert first.startswith("profile dev leaves 'far' with nothing")
    assert second.startswith(
        "small: gguf: it needs 68.4 GiB, and 21.0 GiB are there for it; it would fit with parallel: 2 or context"
    )


def test_engines_that_fit_alone_and_not_together_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gguf(tmp_path / "8b.gguf", 8_000_000_000)
    checkpoint(tmp_path / "8b", SMALL)
    file = tmp_path / "upshift.yaml"
    both = "gguf: {source: 8b.gguf, parallel: 8}, vllm: {source: ./8b}, context_tokens: 8192"
    file.write_text(f"models: [{{name: a, {both}}}, {{name: b, {both}}}]")
    code, report = diagnosed(capsys, file, "1xL40S")
    assert code == 1
    assert report["problems"] == [
        "a, b: each takes its share of the same GPUs, 184% together; give them a memory_share, or GPUs of their own "
        "with vllm.environment: {CUDA_VISIBLE_DEVICES: …}"
    ]
    assert report["notes"] == [
        "a, b: their engines have 30 threads for 16 cores; when several compute at the same time, all become slow: "
        "gguf.threads divides them"
    ]
    code, report = diagnosed(capsys, file, "2-cores")
    assert report["notes"] == []
    assert report["problems"] == [
        "all engines together need 24.8 GiB of memory, and 21.0 GiB are there: "
        "lower parallel or context_tokens, or serve fewer models here"
    ]


def test_occupied_gpus_and_unknown_sizes_are_noted(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = json.loads((MACHINES / "1xL40S.json").read_text())
    machine["gpus"]["devices"][0]["free_bytes"] = 20 * 2**30
    (tmp_path / "busy.json").write_text(json.dumps({"hardware": machine}))
    config.write_text(config.read_text() + "  - {name: later, vllm: {source: nobody/has-this, memory_share: 0.01}}\n")
    assert main(["doctor", "--config", str(config), "--hardware", str(tmp_path / "busy.json")]) == 0
    told = capsys.readouterr().out
    assert "note      small: vllm takes 41.4 GiB of NVIDIA L40S and does not start with less; 20.0 GiB are free" in told
    assert "note      later: vllm: nobody/has-this is not on this machine yet; whether it fits is not known" in told


def test_a_driver_that_does_not_answer_is_a_problem(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = json.loads((MACHINES / "1xL40S.json").read_text())
    machine["gpus"] = {"devices": [], "problem": "the NVIDIA driver does not answer: Driver/library version mismatch"}
    (tmp_path / "broken.json").write_text(json.dumps(machine))
    assert main(["doctor", "--config", str(config), "--hardware", str(tmp_path / "broken.json")]) == 1
    told = capsys.readouterr().out
    assert "problem   the NVIDIA driver does not answer: Driver/library version mismatch" in told
    assert "not served, the NVIDIA driver does not answer" in told


def test_people_read_the_same(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--config", str(config), "--hardware", str(MACHINES / "1xL40S.json")]) == 0
    told = capsys.readouterr().out
    assert "GPU       NVIDIA L40S: 44.4 of 45.0 GiB free, 8.9\ndriver    570.172.08, CUDA 12.8\n" in told
    assert f"gguf  {config.parent / '8b.gguf'}: served, the policy chooses for each request" in told
    assert "6.4 GiB of 118.0 GiB of memory" not in told
    assert "room for 16 × 8,192 tokens" in told
    assert "vllm  http://gpu-0:8000: served, runs elsewhere" in told


def test_what_a_vllm_launched_here_lacks_is_a_problem_as_it_is_for_serve(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "upshift.yaml"
    file.write_text(
        "models:\n  - {name: a, vllm: {source: ./gone}}\n"
        "  - {name: b, vllm: {source: org/b, python: ./venv/bin/python}}\n"
    )
    assert main(["doctor", "--config", str(file), "--profile", "prod"]) == 1
    told = capsys.readouterr().out
    assert f"problem   a: vllm.source: there is no folder {tmp_path}/gone; give a folder" in told
    assert f"problem   b: vllm.python: there is no interpreter {tmp_path}/venv/bin/python" in told


@pytest.mark.parametrize(("installed", "warned"), [("0.14.0", True), ("0.33.0", False)])
def test_known_faults_of_the_installed_vllm_are_told_and_are_no_problem(
    installed: str, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UPSHIFT_CACHE", str(tmp_path))
    interpreter(tmp_path / "vllm").parent.mkdir(parents=True)
    interpreter(tmp_path / "vllm").touch()
    mark(tmp_path / "vllm", Installed("cpu", installed, ""))
    file = tmp_path / "upshift.yaml"
    file.write_text("models: [{name: m, gguf: {source: demo}}]")
    assert main(["doctor", "--config", str(file)]) == 0
    told = capsys.readouterr().out
    assert f"engine    vllm: vLLM {installed} for cpu" in told
    assert (f"warning   vLLM {installed} has known faults: a malformed picture" in told) == warned
    assert main(["doctor", "--config", str(file), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["warnings"]) == warned


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read: No such file"),
        ("{}", "describes no machine: physical_cores: Field required"),
        ("[]", "describes no machine"),
        ("no", "describes no machine: Expecting value"),
    ],
)
def test_a_file_that_describes_no_machine_is_told(
    content: str | None, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "machine.json"
    if content is not None:
        file.write_text(content)
    assert main(["doctor", "--hardware", str(file)]) == 1
    assert told in capsys.readouterr().err


def test_settings_that_are_wrong_do_not_hide_the_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.yaml").write_text("modls: []")
    machine = str(MACHINES / "mac.json")
    assert main(["doctor", "--config", str(tmp_path / "bad.yaml"), "--hardware", machine]) == 1
    told = capsys.readouterr().out
    assert "CPU       Apple M3 Pro: 12 physical cores" in told
    assert "problem   " in told
    assert "modls: unknown key; did you mean models?" in told


@pytest.mark.engine
def test_this_machine_serves_the_demo_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UPSHIFT_CONFIG", raising=False)
    assert main(["doctor", "--json"]) == 0
    report = capsys.readouterr().out
    assert artifacts(json.loads(report))["demo/gguf"]["served"]
    assert json.loads(report)["engines"]["gguf"].endswith(" loads")
    (tmp_path / "here.json").write_text(report)
    assert main(["doctor", "--hardware", str(tmp_path / "here.json")]) == 0
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    (tmp_path / "upshift.yaml").write_text("models: [{name: b, gguf: {source: broken.gguf}}]")
    capsys.readouterr()
    assert main(["doctor", "--config", str(tmp_path / "upshift.yaml")]) == 1
    assert "problem   b: " in capsys.readouterr().out
