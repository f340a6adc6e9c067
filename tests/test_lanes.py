"""tests/lanes.py: every command of each lane runs, what they print is told apart, and a failure is not lost."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from tests.lanes import LANES, side_by_side


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def test_lanes_print_behind_their_names_and_each_in_its_order() -> None:
    out = io.StringIO()
    lanes = {"a": [python("print(1)"), python("import sys; print(sys.argv[1])")], "b": [python("print(3); print(4)")]}
    assert side_by_side(lanes, out, ["2"]) == 0
    lines = out.getvalue().splitlines()
    assert [line for line in lines if line.startswith("a")] == ["a | 1", "a | 2"]
    assert [line for line in lines if line.startswith("b")] == ["b | 3", "b | 4"]


def test_lanes_run_at_the_same_time(tmp_path: Path) -> None:
    """Each opens a pipe, which takes until the other one has opened it as well."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    lanes = {
        "a": [python(f"print(open({str(pipe)!r}).read())")],
        "b": [python(f"open({str(pipe)!r}, 'w').write('met')")],
    }
    out = io.StringIO()
    assert side_by_side(lanes, out) == 0
    assert out.getvalue() == "a | met\n"


@pytest.mark.parametrize("codes", [(0, 1), (3, 0), (0, -9)])
def test_the_worse_of_two_ends_is_the_end(codes: tuple[int, int]) -> None:
    ends = {
        str(number): [python(f"import os; os.kill(os.getpid(), {-code})" if code < 0 else f"raise SystemExit({code})")]
        for number, code in enumerate(codes)
    }
    assert side_by_side(ends, io.StringIO()) == max(map(abs, codes))


def test_what_comes_before_the_tests_may_fail() -> None:
    assert side_by_side({"a": [python("raise SystemExit(1)"), python("")]}, io.StringIO()) == 0


def test_no_test_is_left_out() -> None:
    marks = [lane[-1][lane[-1].index("-m") + 1] for lane in LANES.values()]
    assert sorted(marks) == ["not (vllm or waits)", "vllm or waits"]
