"""What a dead process says. How one is spawned and ended is seen through EngineProcess, in test_process.py."""

from __future__ import annotations

import pytest

from backends.output import cause


@pytest.mark.parametrize(
    ("exit_code", "lines", "said"),
    [
        pytest.param(1, ["a", "upshift engine: error: no such file", "b"], "no such file", id="its-own-words"),
        pytest.param(1, [], "ended with exit code 1", id="without-a-word"),
        pytest.param(3, ["Traceback", "ImportError: x"], "ended with exit code 3: ImportError: x", id="last-line"),
        pytest.param(-11, ["loading"], "ended by SIGSEGV: loading", id="signal"),
        pytest.param(-9, ["x"], "ended by SIGKILL; if nobody killed it, memory ran out", id="killed-in-mid-sentence"),
        pytest.param(-40, [], "ended by signal 40", id="signal-without-a-name"),
    ],
)
def test_cause_is_one_line(exit_code: int, lines: list[str], said: str) -> None:
    assert cause(exit_code, lines) == said
