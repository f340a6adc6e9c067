"""What a machine takes away is told before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.hardware import Hardware
from config.errors import ConfigError
from config.load import Override
from gateway.cli.settings import usable
from tests.backends.machines import MACHINES


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "upshift.yaml"
    path.write_text(
        "models: [{name: m, gguf: {source: demo}, vllm: {source: demo, command: [sh, serve]}}]\nauth: none\n"
    )
    return path


def test_vllm_is_left_out_where_there_is_no_gpu_and_somebody_says_so(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model,) = usable(file, machine=lambda: MACHINES["2-cores"]).settings.models
    assert (model.gguf is not None, model.vllm) == (True, None)
    assert capsys.readouterr().err == "upshift: model m: vLLM (demo) is not served: this machine has no GPU\n"


def test_what_fits_is_served_in_silence_with_its_gpus(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model,) = usable(file, machine=lambda: MACHINES["2xA100"]).settings.models
    assert model.vllm is not None
    assert model.vllm.tensor_parallel == 1
    assert capsys.readouterr().err == ""


def test_prod_starts_what_will_hardly_fit_and_says_so(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = file.read_text().replace("command:", "memory_share: 0.01, command:")
    file.write_text(text)
    override = Override(("profile",), "prod", "--profile")
    (model,) = usable(file, [override], lambda: MACHINES["1xL40S"]).settings.models
    assert model.vllm is not None
    told = capsys.readouterr().err
    assert told.startswith("upshift: model m: vLLM (demo): it needs 1.4 GiB on the GPU, and 0.4 GiB are there for it")


def test_dev_leaves_vllm_out_without_a_word(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def nobody_looks() -> Hardware:
        raise AssertionError("somebody looked")

    override = Override(("profile",), "dev", "--profile")
    (model,) = usable(file, [override], nobody_looks).settings.models
    assert model.vllm is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("vllm", "said"),
    [
        ("{source: ./nowhere}", "models[0].vllm.source: there is no folder"),
        ("{source: ./model.gguf}", "model.gguf is a file, and vLLM loads folders"),
        ("{source: ./empty}", "has no config.json: it is no model"),
        ("{source: org/name, python: ./nowhere}", "models[0].vllm.python: there is no interpreter"),
        ("{source: org/name, command: [no-such-vllm, serve]}", "models[0].vllm.command: there is no command no-such"),
    ],
)
def test_what_vllm_would_need_and_is_not_there_is_named(tmp_path: Path, vllm: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.gguf").touch()
    file = tmp_path / "upshift.yaml"
    file.write_text(f"profile: prod\nmodels:\n  - name: m\n    vllm: {vllm}\n")
    with pytest.raises(ConfigError) as caught:
        usable(file)
    assert said in str(caught.value)
