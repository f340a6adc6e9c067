"""The command line's manners: help, exit codes, one-line errors, and how little it imports."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import click
import pytest

from gateway.cli import main, upshift


def commands(of: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """`of` and every command below it, by the words that name it."""
    yield path
    for name, command in of.commands.items() if isinstance(of, click.Group) else ():
        yield from commands(command, (*path, name))


@pytest.mark.parametrize(
    "command", [*commands(upshift), ("engine", "install")], ids=lambda command: " ".join(command) or "-"
)
def test_help_has_examples(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Usage: upshift" in shown
    # At the beginning of a line, or behind what its output goes to: "Usage: upshift" is no example.
    assert re.search(rf"^ +(?:[A-Z]+=\$\()?{' '.join(('upshift', *command))}\b", shown, re.MULTILINE), shown


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from gateway.cli import main; main(['--help']); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"fastapi", "uvicorn", "numpy", "pydantic", "yaml", "llama_cpp", "prometheus_client"}
    assert heavy.isdisjoint(loaded)


def test_version_is_the_distributions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out == version("upshift") + "\n"


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["nonsense"], 2, "No such command 'nonsense'"),
        (["serve", "--port", "many"], 2, "'many' is not a valid integer"),
        (["serve", "--workers", "0"], 1, "server.workers: should be greater than or equal to 1 or should be 'auto'"),
        (["serve", "--workers", "many"], 1, "should be a whole number or should be 'auto' (from --workers)"),
        (["serve", "--model", "./nothing.gguf"], 1, "there is no file"),
        (["serve", "--model", "a="], 2, "no path after"),
        (["serve", "--model", "=demo"], 2, "no name before"),
        (
            ["serve", "--model", "a b=demo"],
            1,
            "models[0].name: has characters that are not allowed here (from --model)",
        ),
        (["serve", "--model", "demo", "--model", "demo"], 1, "already used by"),
        (["serve", "--config", "nothing.yaml"], 1, "nothing.yaml: cannot be read"),
        (["serve", "--host", "no such host"], 1, "server.host"),
        (["serve", "--host", "0.0.0.0"], 1, "no API keys. Make one with `upshift keys add NAME"),
        (["serve", "--host", "192.0.2.1", "--auth", "none"], 1, "cannot listen on 192.0.2.1"),
        (["serve", "--auth", "./nothing.yaml"], 1, "nothing.yaml: cannot be read"),
        (["run", "./nothing.gguf", "hi"], 1, "there is no file"),
        (["keys", "list", "--file", "nothing.yaml"], 1, "nothing.yaml: cannot be read"),
        (["run"], 2, "Missing argument 'MODEL'"),
        (["config", "check", "nothing.yaml"], 1, "cannot be read"),
        (["engine", "demo", "--uds", "/x", "--port", "1"], 2, "--uds excludes"),
        (["engine", "demo", "--parallel", "0"], 2, "0 is less than 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line_and_an_exit_code(
    arguments: list[str], code: int, expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UPSHIFT_CONFIG", raising=False)
    assert main(arguments) == code
    told = capsys.readouterr().err
    assert expected in told
    assert told.count("\n") == 1
    assert told.startswith("upshift engine: error: " if arguments[0] == "engine" else "upshift: error: ")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is not a GGUF file"),
        (b"PK\x03\x04", "is not a GGUF file"),
        (None, "cannot be read"),
        ("pipe", "a pipe"),
    ],
    ids=["empty", "zip", "a folder", "a pipe"],
)
@pytest.mark.parametrize("command", ["serve", "run"])
def test_file_that_cannot_be_a_model_is_found_out_first(
    command: str, content: bytes | str | None, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "model.gguf"
    if content is None:
        file.mkdir()
    elif isinstance(content, str):
        os.mkfifo(file)
    else:
        file.write_bytes(content)
    arguments = ["serve", "--model", f"m={file}"] if command == "serve" else ["run", str(file), "hi"]
    assert main(arguments) == 1
    assert expected in capsys.readouterr().err


def test_config_check_reports_every_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "upshift.yaml"
    file.write_text("server: {prot: 1}\nprofil: dev\n")
    assert main(["config", "check", str(file)]) == 1
    told = capsys.readouterr().err
    assert "2 problems" in told
    assert "line 1: server.prot: unknown key; did you mean port?" in told
    assert "line 2: profil: unknown key; did you mean profile?" in told


def test_config_check_looks_at_the_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "upshift.yaml"
    (tmp_path / "a.gguf").write_bytes(b"GGUF\x03\0\0\0")
    file.write_text("models: [{name: a, gguf: {source: a.gguf}}]")
    assert main(["config", "check", str(file)]) == 0
    assert "Models: a" in capsys.readouterr().out
    (tmp_path / "a.gguf").unlink()
    assert main(["config", "check", str(file)]) == 1
    assert "there is no file" in capsys.readouterr().err


def test_config_check_takes_an_endpoint_on_trust(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "upshift.yaml"
    file.write_text('models: [{name: far, gguf: {openai: "http://10.0.0.2:8080/v1"}}]')
    assert main(["config", "check", str(file)]) == 0
    assert "Models: far" in capsys.readouterr().out


def test_config_check_looks_at_the_keys_and_who_can_reach_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "upshift.yaml"
    file.write_text("auth: {keys_file: keys.yaml}")
    assert main(["config", "check", str(file)]) == 1
    assert "keys.yaml: cannot be read" in capsys.readouterr().err
    (tmp_path / "keys.yaml").write_text(f"keys: [{{name: a, tier: gold, hash: 'sha256:{'0' * 64}'}}]")
    assert main(["config", "check", str(file)]) == 1
    assert "there is no tier 'gold'" in capsys.readouterr().err
    file.write_text("server: {host: 0.0.0.0}")
    assert main(["config", "check", str(file)]) == 1
    assert "no API keys" in capsys.readouterr().err


def test_config_show_prints_origins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "upshift.yaml"
    file.write_text("server: {port: 1}")
    monkeypatch.setenv("UPSHIFT_PORT", "99")
    assert main(["config", "show", "--config", str(file)]) == 0
    assert "port: 99  # UPSHIFT_PORT" in capsys.readouterr().out


def test_config_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Settings"


def test_reader_that_leaves_early_is_no_traceback() -> None:
    command = f"{sys.executable} -m gateway.cli config schema | head -c 1"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("{", "")


def test_serve_says_which_model_a_profile_leaves_with_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "upshift.yaml"
    file.write_text('profile: auto\nmodels: [{name: far, vllm: {urls: ["http://10.0.0.2:8000"]}}]')
    monkeypatch.setenv("UPSHIFT_PROFILE", "prod")
    assert main(["serve", "--config", str(file), "--profile", "dev"]) == 1
    told = capsys.readouterr().err
    assert "upshift.yaml: models[0]: profile dev leaves 'far' with nothing to serve it" in told


def test_config_show_takes_the_profile(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UPSHIFT_CONFIG", raising=False)
    assert main(["config", "show", "--profile", "prod"]) == 0
    assert 'profile: "prod"  # --profile' in capsys.readouterr().out
