"""The command line of each engine that is launched here. Typed values in, argv out; no shell ever sees it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from backends.fit import NOTHING, Claim
from backends.hardware import Hardware


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """An engine that is to be launched: its kind ("gguf", "vllm"), a name of its own in this gateway, its command line
    for a given Unix socket (may take seconds; raises EngineStartFailed), the names that it answers to, environment
    variables besides ours, how long it may have nothing to do (None: for ever), what it takes of a machine's memory
    (reads files), and whether it can sleep without ending."""

    kind: str
    name: str
    argv: Callable[[str], Sequence[str]]
    served_names: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    idle_stop_seconds: float | None = None
    claim: Callable[[Hardware], Claim] = lambda _: NOTHING
    dozes: bool = False


def gguf_engine_argv(
    source: str,
    *,
    uds: str,
    names: Sequence[str],
    parallel: int | Literal["auto"] = "auto",
    context_tokens: int | None = None,
    threads: int | Literal["auto"] = "auto",
) -> list[str]:
    """`upshift engine` for `source` (a path or "demo"), answering to `names` on the Unix socket `uds`. It ends with the
    process that holds its stdin."""
    # -P: a folder called "gateway" where the user happens to stand is not our package.
    argv = [sys.executable, "-P", "-m", "gateway.cli", "engine", "--uds", uds, "--exit-with-parent"]
    argv += [f"--name={name}" for name in names]
    argv += [f"--parallel={parallel}", f"--threads={threads}"]
    if context_tokens is not None:
        argv.append(f"--context-tokens={context_tokens}")
    # After "--" a file whose name begins with a dash is a file.
    return [*argv, "--", source]
