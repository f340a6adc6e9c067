"""One child process in a group of its own, and the pipe whose end tells it that we are gone.

Neighbours: output.py (what it prints), process.py (EngineProcess), which decides when one is started and ended.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress

from backends.output import Output

# An end that takes longer is announced: somebody may be waiting at a terminal.
_SILENCE_SECONDS = 1.0

logger = logging.getLogger(__name__)


class Child:
    """A running process. Whoever spawned it must await `wait` or `end`, and call `close` last."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, held_pipe: int, output: Output) -> None:
        self.pid = process.pid
        self._name = name
        self.output = output
        self._process = process
        self._held_pipe = held_pipe

    @classmethod
    async def spawn(
        cls,
        name: str,
        argv: Sequence[str],
        environment: Mapping[str, str],
        on_line: Callable[[str], None],
    ) -> Child:
        """Starts `argv` as the leader of a new group: a terminal's Ctrl-C does not reach it, and the whole group can
        be killed. `name` is for the log, `environment` comes on top of ours, `on_line` gets what it prints. Raises
        OSError."""
        with ExitStack() as ours, ExitStack() as theirs:
            # Pipes of our own instead of asyncio's: those make wait() hang on as long as any grandchild holds one.
            stdin, held_pipe = os.pipe()
            theirs.callback(os.close, stdin)
            ours.callback(os.close, held_pipe)
            output_pipe, stdout = os.pipe()
            theirs.callback(os.close, stdout)
            ours.callback(os.close, output_pipe)
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=stdin,
                stdout=stdout,
                stderr=stdout,
                # No session of its own: an engine that spins, as vLLM's processes do, then keeps us from the core for a
                # second (docs/decisions/019). uvloop has no `process_group`.
                preexec_fn=os.setpgrp,
                env={**os.environ, **environment},
            )
            ours.pop_all()
        return cls(name, process, held_pipe, Output(name, output_pipe, on_line))

    async def wait(self) -> int:
        """The exit code; negative for a signal."""
        return await self._process.wait()

    async def end(self, grace_seconds: float) -> None:
        """SIGTERM, and SIGKILL for the whole group once it has ended or the grace is over. Cancelled: SIGKILL now."""
        told = asyncio.get_running_loop().call_later(
            _SILENCE_SECONDS, logger.info, "engine %s is ending and has %g s for it", self._name, grace_seconds
        )
        try:
            with suppress(ProcessLookupError):
                self._process.terminate()
            async with asyncio.timeout(grace_seconds):
                await self._process.wait()
        except TimeoutError:
            logger.warning("process %d did not end within %g s of SIGTERM: killed", self.pid, grace_seconds)
        finally:
            told.cancel()
            self.kill()
            await self._process.wait()

    def kill(self) -> None:
        """SIGKILL for the group: nothing that the process started outlives it."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Reads what output is left and gives the pipes back."""
        self.output.close()
        os.close(self._held_pipe)
