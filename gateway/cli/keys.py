"""`upshift keys`: the API keys in a file, a database or at Redis.

A key is printed once, on standard output, and kept nowhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from config.limits import LimitSettings
    from config.schema import Settings
    from gateway.keyedits import Edit
    from gateway.keysfile import KeyEntry, KeysFile
    from gateway.keystore import KeyStore

Command = Callable[..., Any]

# What an option of `add` is called in the file.
_LIMITS = {
    "rpm": "requests_per_minute",
    "tpm": "tokens_per_minute",
    "tpd": "tokens_per_day",
    "concurrent": "concurrent",
    "max_tokens": "max_tokens_per_request",
}
_SOON = "A running gateway takes it up within a second."


def _where(command: Command) -> Command:
    path = click.Path(path_type=Path, dir_okay=False)
    command = click.option("--config", type=path, help="Settings that name the keys file. [default: UPSHIFT_CONFIG]")(
        command
    )
    return click.option(
        "--file", type=path, help="The keys file, or a database as keys.db. [default: what the settings name]"
    )(command)


@click.group()
def keys() -> None:
    """Make, list and revoke the API keys of a gateway.

    \b
    upshift keys add alice --file keys.yaml
    upshift keys add nightly --tier batch --models llama3 --expires 2027-01-31
    upshift keys list
    upshift keys rotate alice
    upshift keys revoke alice
    """


@keys.command()
@click.argument("name")
@click.option("--tier", help="A tier of limits.tiers.")
@click.option("--models", metavar="MODEL[,MODEL]", help="The models the key covers. [default: all]")
@click.option("--from", "addresses", metavar="NETWORK[,NETWORK]", help="Where it may be used from. [default: anywhere]")
@click.option("--surfaces", metavar="NAME[,NAME]", help="openai, operators (/metrics, /admin). [default: openai]")
@click.option("--expires", metavar="DATE", help="Last day it works (UTC), or a time such as 2027-01-31T12:00Z.")
@click.option("--rpm", metavar="N", help="Requests per minute; a number or `unlimited`, as for all limits.")
@click.option("--tpm", metavar="N", help="Tokens per minute.")
@click.option("--tpd", metavar="N", help="Tokens per day.")
@click.option("--concurrent", metavar="N", help="Requests at the same time.")
@click.option("--max-tokens", metavar="N", help="Tokens one request may ask for.")
@_where
def add(
    *,
    name: str,
    tier: str | None,
    models: str | None,
    addresses: str | None,
    surfaces: str | None,
    expires: str | None,
    file: Path | None,
    config: Path | None,
    **limits: str | None,
) -> None:
    """Add a key called NAME and print it: this once, it is kept nowhere.

    \b
    upshift keys add alice --file keys.yaml
    upshift keys add prometheus --surfaces operators --from 10.0.0.0/8
    upshift keys add nightly --tier batch --rpm 30 --concurrent unlimited
    KEY=$(upshift keys add ci --expires 2027-01-31)
    """
    from config.document import scalar  # noqa: PLC0415 - help must not pay for pydantic
    from gateway import keyedits  # noqa: PLC0415
    from gateway.keys import hash_of, new_key  # noqa: PLC0415

    key = new_key()
    entry = {
        "name": name,
        "hash": hash_of(key),
        "tier": tier,
        "models": _listed(models),
        "addresses": _listed(addresses),
        "surfaces": _listed(surfaces),
        "limits": {_LIMITS[option]: scalar(value) for option, value in limits.items() if value is not None},
        "expires": expires,
    }
    store, settings = _store(file, config)
    _change(store, keyedits.add(entry, store.where, time.time()), settings)
    _show_once(key, f"Added '{name}' to {store.where}.")


@keys.command(name="list")
@_where
def list_(file: Path | None, config: Path | None) -> None:
    """List the keys with what they may do; never the keys themselves.

    \b
    upshift keys list
    upshift keys list --file keys.yaml
    """
    from gateway.keysfile import KeysFile  # noqa: PLC0415

    store, _ = _store(file, config)
    with _complaining(store.where):
        found = (store.load() or KeysFile()).keys
    rows = [("NAME", "TIER", "MODELS", "SURFACES", "LIMITS", "EXPIRES"), *map(_row, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@keys.command()
@click.argument("name")
@_where
def revoke(name: str, file: Path | None, config: Path | None) -> None:
    """Remove the key NAME.

    \b
    upshift keys revoke alice
    upshift keys revoke alice --file keys.yaml
    """
    from gateway import keyedits  # noqa: PLC0415

    store, _ = _store(file, config)
    _change(store, keyedits.revoke(name, store.where))
    click.echo(f"Removed '{name}' from {store.where}. {_SOON}", err=True)


@keys.command()
@click.argument("name")
@_where
def rotate(name: str, file: Path | None, config: Path | None) -> None:
    """Give NAME a new key with the same rights and print it: this once, it is kept nowhere.

    \b
    upshift keys rotate alice
    upshift keys rotate alice --file keys.yaml
    """
    from gateway import keyedits  # noqa: PLC0415
    from gateway.keys import hash_of, new_key  # noqa: PLC0415

    key = new_key()
    store, _ = _store(file, config)
    _change(store, keyedits.rotate(name, hash_of(key), store.where))
    _show_once(key, f"Replaced the key of '{name}' in {store.where}.")


def _listed(text: str | None) -> list[str] | None:
    return None if text is None else text.split(",")


def _show_once(key: str, done: str) -> None:
    click.echo(f"{done} {_SOON}\nThis is the key. It cannot be shown again:", err=True)
    click.echo(key)


def _store(file: Path | None, config: Path | None) -> tuple[KeyStore, Settings | None]:
    """The store to work on, and the settings that name it. Raises ClickException where nothing names one."""
    from config.errors import ConfigError  # noqa: PLC0415
    from config.load import load  # noqa: PLC0415
    from config.redis import RedisSettings  # noqa: PLC0415
    from gateway.keystore import store_at, store_of  # noqa: PLC0415

    if file is not None:
        return store_at(str(file.absolute() if str(file) == "redis" else file), RedisSettings()), None
    try:
        loaded = load(config)
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    store = store_of(loaded.settings)
    if store is not None:
        return store, loaded.settings
    where = f"{loaded.file} names no keys file" if loaded.file is not None else "there are no settings"
    raise click.UsageError(
        f"{where}: give --file keys.yaml, or --config with settings that have auth.keys_file or auth.keys_store.",
        click.get_current_context(),
    )


def _change(store: KeyStore, edit: Edit, settings: Settings | None = None) -> None:
    """Changes the keys, checked against the settings too where they are known."""
    from gateway.auth import check_tiers  # noqa: PLC0415
    from gateway.keyedits import KeyTaken, NoSuchKey  # noqa: PLC0415

    def checked(old: KeysFile) -> KeysFile:
        new = edit(old)
        if settings is not None:
            check_tiers(settings, new)
        return new

    name = click.get_current_context().params["name"]
    with _complaining(store.where):
        try:
            store.change(checked)
        except KeyTaken as error:
            taken = f"{store.where} has a key '{name}' already; `upshift keys rotate {name}` replaces it"
            raise click.ClickException(taken) from error
        except NoSuchKey as error:
            raise click.ClickException(f"{store.where} has no key '{name}' (there: {error.known})") from error


@contextlib.contextmanager
def _complaining(where: str) -> Iterator[None]:
    from config.errors import ConfigError  # noqa: PLC0415

    try:
        yield
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"{where} cannot be written: {error.strerror or error}") from error


def _row(entry: KeyEntry) -> tuple[str, ...]:
    models = "all" if entry.models is None else ",".join(entry.models)
    surfaces = "openai" if entry.surfaces is None else ",".join(entry.surfaces)
    return entry.name, entry.tier or "-", models, surfaces, _limits(entry.limits), entry.expires or "never"


def _limits(limits: LimitSettings) -> str:
    told = [
        f"{option}={getattr(limits, name)}" for option, name in _LIMITS.items() if getattr(limits, name) is not None
    ]
    return ",".join(told).replace("_", "-") or "-"
