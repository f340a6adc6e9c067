"""What MODEL on the command line may be."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from gateway.cli.models import as_settings, name_and_source


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("demo", ("demo", "demo")),
        ("chat=demo", ("chat", "demo")),
        ("/m/Llama-3.2-1B.Q4_K_M.gguf", ("Llama-3.2-1B.Q4_K_M", "/m/Llama-3.2-1B.Q4_K_M.gguf")),
        ("llama=/m/x.gguf", ("llama", "/m/x.gguf")),
        ("/m/my model (1).gguf", ("my-model-1", "/m/my model (1).gguf")),
        ("/m/模型.gguf", ("model", "/m/模型.gguf")),
        ("m=/odd=path.gguf", ("m", "/odd=path.gguf")),
    ],
)
def test_name_comes_from_the_user_or_the_file(argument: str, expected: tuple[str, str]) -> None:
    assert name_and_source(argument) == expected


def test_relative_paths_start_where_the_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert name_and_source("./x.gguf") == ("x", str(tmp_path / "x.gguf"))


def test_file_with_an_equals_sign_in_its_name_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a=b.gguf").touch()
    assert name_and_source("a=b.gguf") == ("a-b", str(tmp_path / "a=b.gguf"))


def test_name_that_is_no_name_is_a_usage_error() -> None:
    with pytest.raises(click.UsageError):
        as_settings("a b=demo")
