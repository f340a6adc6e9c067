"""How the commands that ask a running gateway reach it: address, key, and words for what goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

DEFAULT_URL = "http://127.0.0.1:8484"

Command = Callable[..., Any]


def gateway_options(command: Command) -> Command:
    """--url and --key."""
    url = click.option(
        "--url",
        envvar="UPSHIFT_URL",
        default=DEFAULT_URL,
        show_default=True,
        help="The gateway; its admin listener where it has one. [env: UPSHIFT_URL]",
    )
    key = click.option(
        "--key",
        envvar="UPSHIFT_API_KEY",
        help="An API key made with `--surfaces operators`, where it asks for one. [env: UPSHIFT_API_KEY]",
    )
    return url(key(command))


def call(url: str, key: str | None, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """The JSON at `path`. Raises ClickException that says what to do."""
    import httpx  # noqa: PLC0415 - help must not pay for it

    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=10) as client:
            response = client.get(path) if body is None else client.post(path, json=body)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise click.ClickException(f"no gateway answers at {url} ({error}); say where with --url") from error
    try:
        told = response.json()
    except ValueError:
        told = {}
    if response.status_code != 200 or not isinstance(told, dict):
        message = told.get("error", {}).get("message") if isinstance(told, dict) else None
        hint = "; its admin listener may be elsewhere (--url)" if response.status_code == 404 and body is None else ""
        raise click.ClickException(f"{url}{path}: {message or f'status {response.status_code}'}{hint}")
    return told
