"""`upshift run`: talk to a model in the terminal, or ask it once."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import TYPE_CHECKING

import click

from gateway.cli import models

if TYPE_CHECKING:
    from gateway.cli.chat import Chat, LoopThread

_COMMANDS = "/clear forgets the conversation, /bye leaves; Ctrl-C stops an answer, Ctrl-D leaves."


@click.command()
@click.argument("model")
@click.argument("question", nargs=-1)
@click.option("--system", metavar="TEXT", help="A system message, ahead of the conversation.")
@click.option("--context-tokens", type=click.IntRange(64), metavar="N", help="Longest conversation, in tokens.")
@click.option(
    "--temperature",
    type=click.FloatRange(0, 2),
    help="0 always takes the likeliest word. [default: 0.7; for demo 0]",
)
def run(
    *, model: str, question: tuple[str, ...], system: str | None, context_tokens: int | None, temperature: float | None
) -> int:
    """Chat with MODEL (`demo`, the path of a .gguf file, or NAME=PATH) in the terminal.

    With a QUESTION, or with text on standard input, it answers once and ends.

    \b
    upshift run demo
    upshift run demo "What is 2 plus 3?"
    upshift run ./llama.gguf --system "Answer in one sentence."
    git diff | upshift run ./llama.gguf "Write a commit message:"
    """
    settings = models.as_settings(model, context_tokens)
    models.check_source(settings.gguf.source if settings.gguf else None)
    once = _question(question)
    if temperature is None:
        # So small a model knows its answers by heart or not at all.
        temperature = 0.0 if settings.gguf and settings.gguf.source == models.DEMO else 0.7

    from backends.factory import create_backends  # noqa: PLC0415 - help must not pay for the engine's side
    from gateway.cli.chat import Chat, ChatFailed, LoopThread  # noqa: PLC0415

    # What it would log, it also says by failing; between the lines of a conversation nobody wants to read it twice.
    logging.getLogger("backends").setLevel(logging.CRITICAL)
    with LoopThread() as background:
        chat = Chat(create_backends(settings)[0], settings.name, system, temperature)
        try:
            background.call(chat.start(_show_progress))
            _clear_progress()
            if once is None:
                _converse(background, chat)
            else:
                background.call(chat.ask(once, _write))
                _write("\n")
        except ChatFailed as error:
            raise click.ClickException(str(error)) from error
        finally:
            background.call(chat.close())
    return 0


def _question(words: tuple[str, ...]) -> str | None:
    """What to ask once: the words, then standard input unless it is a terminal. None means a conversation."""
    parts = [" ".join(words)]
    if not sys.stdin.isatty():
        parts.append(sys.stdin.read().strip())
    text = "\n\n".join(part for part in parts if part)
    if not text and not sys.stdin.isatty():
        raise click.UsageError("There is no question: standard input is empty.", click.get_current_context())
    return text or None


def _converse(background: LoopThread, chat: Chat) -> None:
    from gateway.cli.chat import ChatFailed  # noqa: PLC0415

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401, PLC0415 - gives input() a history and line editing
    click.echo(_COMMANDS, err=True)
    while True:
        try:
            text = input("> ").strip()
        except KeyboardInterrupt:
            click.echo("\n(/bye or Ctrl-D leaves)", err=True)
            continue
        except EOFError:
            click.echo()
            return
        if text == "/bye":
            return
        if text == "/clear":
            chat.clear()
        elif text.startswith("/"):
            click.echo(_COMMANDS, err=True)
        elif text:
            try:
                background.call(chat.ask(text, _write))
            except KeyboardInterrupt:
                _write(" ...")
            except ChatFailed as error:
                click.echo(f"upshift: error: {error}", err=True)
            _write("\n")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _show_progress(progress: float) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\rloading {progress:4.0%} ")
        sys.stderr.flush()


def _clear_progress() -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
