"""The command line `upshift`: one module per command, each importing what it needs only when it runs.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. Errors are one line that says what to do next.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from gateway.cli.config import config
from gateway.cli.demo import demo
from gateway.cli.doctor import doctor
from gateway.cli.engine import engine
from gateway.cli.explain import explain
from gateway.cli.keys import keys
from gateway.cli.replay import replay
from gateway.cli.run import run
from gateway.cli.serve import serve
from gateway.cli.status import status
from gateway.cli.tls import tls
from gateway.cli.version import version

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(context_settings=_CONTEXT, no_args_is_help=True)
def upshift() -> None:
    """One OpenAI base URL, from a GGUF on your laptop to a vLLM fleet.

    \b
    upshift serve                              the bundled demo model on http://127.0.0.1:8484/v1
    upshift serve --model llama=./llama.gguf   a model of your own
    upshift run demo "What is 2 plus 3?"       ask once, in the terminal
    """


for _command in (serve, run, engine, keys, tls, config, doctor, status, explain, replay, demo, version):
    upshift.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. `arguments` defaults to the process's own."""
    try:
        code = upshift.main(arguments, prog_name="upshift", standalone_mode=False)
    except click.ClickException as error:
        _complain(error)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        # The reader of our output left, as `| head` does. Python would complain again when it flushes at exit.
        sys.stdout = None
        return 1
    return code if isinstance(code, int) else 0


def _complain(error: click.ClickException) -> None:
    context = getattr(error, "ctx", None)
    # The engine speaks for itself: whoever launched it reads its last line.
    is_engine = context is not None and context.info_name == "engine"
    hint = f" (see `{context.command_path} --help`)" if context is not None else ""
    click.echo(f"upshift{' engine' if is_engine else ''}: error: {error.format_message()}{hint}", err=True)
