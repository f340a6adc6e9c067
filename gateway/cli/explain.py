"""`upshift explain`: what would happen to a request now, and why not something else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from gateway.cli.operate import call, gateway_options


@click.command()
@click.argument("model")
@click.option("--prompt-tokens", type=click.IntRange(0), default=0, metavar="N", help="Length of the prompt.")
@click.option("--max-tokens", type=click.IntRange(0), metavar="N", help="Tokens that it asks for. [default: no bound]")
@click.option(
    "--feature", "features", multiple=True, metavar="NAME", help="tools, logprobs, structured_output, images, ..."
)
@click.option("--as-key", default="", metavar="NAME", help="Name of the API key that asks.")
@click.option("--as-tier", metavar="TIER", help="Tier of that key.")
@click.option("--session", default="", metavar="ID", help="Its X-Session-ID.")
@gateway_options
@click.option("--json", "as_json", is_flag=True, help="Everything, for programs.")
def explain(
    *,
    model: str,
    prompt_tokens: int,
    max_tokens: int | None,
    features: tuple[str, ...],
    as_key: str,
    as_tier: str | None,
    session: str,
    url: str,
    key: str | None,
    as_json: bool,
) -> int:
    """Ask a running gateway where a request for MODEL would go now. Nothing is sent to an engine.

    \b
    upshift explain llama3
    upshift explain llama3 --prompt-tokens 9000 --feature tools
    upshift explain llama3 --as-tier interactive --json
    """
    body = {"model": model, "prompt_tokens": prompt_tokens, "max_tokens": max_tokens, "features": list(features)}
    told = call(url, key, "/admin/explain", body | {"key": as_key, "key_tier": as_tier, "session": session})
    click.echo(json.dumps(told, indent=2) if as_json else "\n".join(_page(told)))
    return 0


def _page(told: dict[str, Any]) -> Iterator[str]:
    goes = f"goes to {told['upstream']} ({told['backend']})" if told["upstream"] else "goes nowhere now"
    yield f"A request for {told['model']} {goes}: {told['reason']} (policy {told['policy']})"
    for number, rule in enumerate(told["rules"], 1):
        when = ", ".join(f"{name} {value}" for name, value in rule["when"].items())
        yield f"  rule {number}: when {when}, use {rule['use']}: {'matches' if rule['matches'] else 'does not match'}"
    for upstream in told["upstreams"]:
        if upstream["why_not"] is not None:
            yield f"  not {upstream['name']} ({upstream['backend']}): {upstream['why_not']}"
