from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from backends.launch import gguf_engine_argv


def test_everything_is_passed_on() -> None:
    argv = gguf_engine_argv(
        "/models/a b.gguf", uds="/run/e.sock", names=["demo", "gpt-4"], parallel=8, context_tokens=2048, threads=3
    )
    assert argv[:5] == [sys.executable, "-P", "-m", "gateway.cli", "engine"]
    assert argv[5:] == [
        "--uds", "/run/e.sock", "--exit-with-parent", "--name=demo", "--name=gpt-4",
        "--parallel=8", "--threads=3", "--context-tokens=2048", "--", "/models/a b.gguf",
    ]  # fmt: skip


def test_what_is_unset_is_left_to_the_engine() -> None:
    argv = gguf_engine_argv("demo", uds="/run/e.sock", names=["demo"])
    assert "--parallel=auto" in argv
    assert "--threads=auto" in argv
    assert not any("context" in argument for argument in argv)


def test_source_is_never_an_option() -> None:
    argv = gguf_engine_argv("--help", uds="/run/e.sock", names=["demo"])
    assert argv[-2:] == ["--", "--help"]


def test_a_folder_called_gateway_where_the_user_stands_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "gateway").mkdir()
    (tmp_path / "gateway" / "__init__.py").write_text("raise SystemExit('taken in')")
    command = [*gguf_engine_argv("demo", uds="/x", names=["demo"])[:2], "-c", "import gateway"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
