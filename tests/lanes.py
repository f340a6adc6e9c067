"""All tests, as two runs of pytest side by side, and what each of them says, line by line.

    python -m tests.lanes [options for pytest]

A start of vLLM takes most of a minute, of which it computes on one core: meanwhile the other core does all other tests,
but for some that wait more than they compute and would make its run the longer one.
Exit code 0 where both runs have passed.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_BIN = Path(sys.executable).parent
_PYTEST = [str(_BIN / "pytest"), "-rs", "--durations=12", "--durations-min=5"]
# Where vLLM cannot be had (PyPI's PyTorch is the one for CUDA, and the index of those for CPUs may be out of reach),
# this says why, and pytest how many tests that costs.
_INSTALL = [str(_BIN / "upshift"), "engine", "install", "vllm"]

LANES: Mapping[str, Sequence[Sequence[str]]] = {
    "vllm": [_INSTALL, [*_PYTEST, "-vv", "-m", "vllm or waits"]],
    "rest": [[*_PYTEST, "-m", "not (vllm or waits)"]],
}


def side_by_side(lanes: Mapping[str, Sequence[Sequence[str]]], out: IO[str], more: Sequence[str] = ()) -> int:
    """Runs the commands of each lane one after the other, and the lanes beside each other. `more` is added to the last
    command of each, whose exit codes count: the greatest of them is returned. What they print goes to `out`, each line
    behind the lane's name."""
    alone = threading.Lock()
    codes: dict[str, int] = {}

    def run(lane: str, commands: Sequence[Sequence[str]]) -> None:
        for command in (*commands[:-1], [*commands[-1], *more]):
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    with alone:
                        out.write(f"{lane} | {line}")
                        out.flush()
            codes[lane] = process.returncode

    running = [threading.Thread(target=run, args=lane) for lane in lanes.items()]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    # A command that a signal has ended has a code below zero.
    return max(abs(code) for code in codes.values())


if __name__ == "__main__":
    sys.exit(side_by_side(LANES, sys.stdout, sys.argv[1:]))
