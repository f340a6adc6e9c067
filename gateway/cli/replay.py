"""`upshift replay`: what another configuration would have decided."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from routing.policy import Plan
    from routing.replay import Replayed
    from routing.trace import Traced

_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)


@click.command()
@click.argument("trace", type=_FILE)
@click.option("--config", "file", type=_FILE, required=True, help="YAML file with the settings to decide by.")
def replay(trace: Path, file: Path) -> int:
    """Decide again what TRACE recorded (routing.trace), by the settings of another file.

    Says for each model how many decisions would have been different, and what they would have been.

    \b
    upshift replay trace.jsonl --config upshift.yaml
    upshift replay trace.jsonl --config with-other-thresholds.yaml
    """
    from routing.replay import replay as again  # noqa: PLC0415 - help must not pay for pydantic

    plans = _plans(file)
    result = again(_decisions(trace), plans.get)
    if not any(replayed.decisions for replayed in result.values()):
        raise click.ClickException(f"{trace} holds no decision about a model of {file}.")
    for model, replayed in result.items():
        for line in _told(model, replayed):
            click.echo(line)
    return 0


def _plans(file: Path) -> dict[str, Plan]:
    from config.errors import ConfigError  # noqa: PLC0415
    from config.load import load  # noqa: PLC0415
    from gateway.plans import plans_of  # noqa: PLC0415

    try:
        settings = load(file).settings
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    return plans_of(settings)


def _decisions(trace: Path) -> Iterator[Traced]:
    from routing.trace import TraceError, parse  # noqa: PLC0415

    with trace.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield parse(line)
            except TraceError as error:
                raise click.ClickException(f"{trace}, line {number}: {error}") from error


def _told(model: str, replayed: Replayed) -> Iterator[str]:
    if not replayed.decisions:
        yield f"{model}: there is no such model in these settings"
        return
    share = 100 * replayed.changed / replayed.decisions
    yield f"{model}: {replayed.changed} of {replayed.decisions} decisions change ({share:.1f} %)"
    for (before, after), number in replayed.changes.most_common():
        yield f"  {number:>8}  {_outcome(before)} -> {_outcome(after)}"


def _outcome(outcome: tuple[str, str]) -> str:
    kind, reason = outcome
    return f"{kind} ({reason})" if kind else reason
