"""`upshift engine`: the GGUF engine alone, as the gateway launches it and as it can be used without one."""

from __future__ import annotations

from typing import Any

import click

from gateway.cli.install import install

_DEFAULT_PORT = 8485
_MOST_THREADS = 512  # ggml's own limit, beyond which it crashes


class _Auto(click.ParamType[int | None]):
    """A number of at least `minimum`, or `auto`, which the engine gets as None."""

    name = "N|auto"

    def __init__(self, minimum: int, maximum: int | None = None) -> None:
        self._minimum = minimum
        self._maximum = maximum

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value is None or value == "auto":
            return None
        try:
            number = int(str(value))
        except ValueError:
            self.fail(f"{value!r} is neither a number nor auto", param, ctx)
        if number < self._minimum:
            self.fail(f"{number} is less than {self._minimum}", param, ctx)
        if self._maximum is not None and number > self._maximum:
            self.fail(f"{number} is more than {self._maximum}", param, ctx)
        return number


class _Engine(click.Command):
    """`upshift engine MODEL`, and `upshift engine install …` beside it. A file called "install" is "./install"."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args[:1] == ["install"]:
            return install.make_context(f"{info_name} install", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


@click.command(cls=_Engine)
@click.argument("model")
@click.option("--uds", metavar="PATH", help="Listen on a Unix socket instead of a port.")
@click.option("--host", help="Address to listen on. [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help=f"Port to listen on. [default: {_DEFAULT_PORT}]")
@click.option("--name", "names", metavar="NAME", multiple=True, help="Name clients use. [default: that of the file]")
@click.option("--parallel", type=_Auto(1, 256), default="auto", help="Answers computed at once.")
@click.option("--context-tokens", type=_Auto(1), default="auto", help="Longest prompt plus answer, in tokens.")
@click.option("--threads", type=_Auto(1, _MOST_THREADS), default="auto", help="CPU threads.")
@click.option("--max-waiting", type=click.IntRange(0), default=256, show_default=True, help="Requests kept waiting.")
@click.option("--exit-with-parent", is_flag=True, help="End when standard input closes.")
def engine(
    *,
    model: str,
    uds: str | None,
    host: str | None,
    port: int | None,
    names: tuple[str, ...],
    parallel: int | None,
    context_tokens: int | None,
    threads: int | None,
    max_waiting: int,
    exit_with_parent: bool,
) -> int:
    """Run the GGUF engine alone: an OpenAI endpoint for one MODEL (`demo` or a .gguf file), without the gateway.

    \b
    upshift engine demo
    upshift engine ./llama.gguf --port 9001 --name llama --parallel 8
    upshift engine ./llama.gguf --uds /run/llama.sock --context-tokens 8192 --threads 4
    curl --unix-socket /run/llama.sock http://engine/health

    `upshift engine install vllm` makes an environment for the other engine: see `upshift engine install --help`.
    """
    if uds is not None and (host is not None or port is not None):
        raise click.UsageError("--uds excludes --host and --port.", click.get_current_context())
    if uds is None:
        host = host or "127.0.0.1"
        port = _DEFAULT_PORT if port is None else port

    try:
        from backends.gguf.process import serve  # noqa: PLC0415 - only this command may load the engine's libraries
    except ImportError as error:
        text = f"the engine's libraries cannot be loaded ({error}); install them with: pip install 'upshift[gguf]'"
        problem = click.ClickException(text)
        problem.ctx = click.get_current_context()  # type: ignore[attr-defined]
        raise problem from error

    return serve(
        model,
        uds=uds,
        host=host,
        port=port,
        names=names,
        parallel=parallel,
        context_tokens=context_tokens,
        threads=threads,
        max_waiting=max_waiting,
        exit_with_parent=exit_with_parent,
    )
