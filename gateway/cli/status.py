"""`upshift status`: what a running gateway is doing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from time import sleep
from typing import Any

import click

from gateway.cli.operate import call, gateway_options

_HEAD = ("UPSTREAM", "BACKEND", "STATE", "BREAKER", "IN FLIGHT", "ENGINE", "TTFT", "")


@click.command()
@gateway_options
@click.option("--json", "as_json", is_flag=True, help="Everything, for programs.")
@click.option("--watch", is_flag=True, help="Every second anew, until Ctrl-C.")
def status(*, url: str, key: str | None, as_json: bool, watch: bool) -> int:
    """Show each model of a running gateway: its upstreams, their load, and who waits.

    \b
    upshift status
    upshift status --watch
    upshift status --url http://127.0.0.1:9484 --json
    """
    while True:
        told = call(url, key, "/admin/status")
        text = json.dumps(told, indent=2) if as_json else "\n".join(_page(told))
        if not watch:
            click.echo(text)
            return 0
        click.clear()
        click.echo(text)
        sleep(1)


def _page(told: dict[str, Any]) -> Iterator[str]:
    yield f"Upshift {told['version']}, profile {told['profile']}"
    for model in told["models"]:
        preferred = f", {model['preferred']} preferred now" if model["preferred"] else ""
        yield ""
        counts = f"{model['waiting']} waiting, {model['retries']} retried"
        yield f"{model['model']}: policy {model['policy']}{preferred}; {counts}"
        for backend, reasons in model["decisions"].items():
            yield f"  {backend}: {', '.join(f'{reason} {number}' for reason, number in reasons.items())}"
        rows = [_HEAD, *(_row(upstream) for upstream in model["upstreams"])]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
        for row in rows:
            yield ("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()
        for upstream in model["upstreams"]:
            if upstream.get("warning"):
                yield f"  {upstream['name']}: {upstream['warning']}"


def _row(upstream: dict[str, Any]) -> tuple[str, ...]:
    limit = "" if upstream["limit"] is None else f"/{upstream['limit']:g}"
    engine, first = upstream["engine"], upstream["first_token_seconds"]
    return (
        upstream["name"],
        upstream["backend"],
        upstream["state"],
        upstream["breaker"],
        f"{upstream['in_flight']}{limit}",
        "-" if engine is None else f"{engine['running']:g} running, {engine['waiting']:g} waiting",
        "-" if first is None else f"{first * 1000:.0f} ms",
        upstream["obstacle"] or "",
    )
