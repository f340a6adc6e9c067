"""Changes of a set of keys, as functions from one set to the next. Pure.

Neighbours: keystore.py (applies them), cli/keys.py and api/keys.py (ask for them).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from config.document import Document
from config.errors import ConfigError, Problem
from config.validate import validate
from gateway.keysfile import KeysFile, expiry

Edit = Callable[[KeysFile], KeysFile]


class KeyTaken(Exception):
    """There is a key of that name already."""


class NoSuchKey(Exception):
    """There is no key of that name; `known` are those there are."""

    def __init__(self, known: str) -> None:
        super().__init__(known)
        self.known = known


def add(entry: dict[str, Any], source: str, now: float) -> Edit:
    """With `entry`, as a keys file has it, at the end. `now` is in seconds since 1970: what has expired by then was a
    slip. The edit raises KeyTaken, and ConfigError with `source`."""

    def edit(old: KeysFile) -> KeysFile:
        if any(each.name == entry.get("name") for each in old.keys):
            raise KeyTaken
        new = _checked([*_plain(old), {k: v for k, v in entry.items() if v not in (None, {})}], source)
        expires = new.keys[-1].expires
        if expires is not None and expiry(expires) <= now:
            place = ("keys", len(old.keys), "expires")
            raise ConfigError(source, (Problem(place, "is in the past: the key would never work"),))
        return new

    return edit


def revoke(name: str, source: str) -> Edit:
    """Without the key `name`. The edit raises NoSuchKey."""

    def edit(old: KeysFile) -> KeysFile:
        _find(old, name)
        return _checked([entry for entry in _plain(old) if entry["name"] != name], source)

    return edit


def rotate(name: str, hash_: str, source: str) -> Edit:
    """With another key for `name`, whose hash is `hash_`, and the same rights. The edit raises NoSuchKey."""

    def edit(old: KeysFile) -> KeysFile:
        _find(old, name)
        return _checked([{**e, "hash": hash_} if e["name"] == name else e for e in _plain(old)], source)

    return edit


def _checked(entries: list[dict[str, Any]], source: str) -> KeysFile:
    """As if it had been read."""
    return validate(KeysFile, Document(data={"keys": entries}), source)


def _plain(keys: KeysFile) -> list[dict[str, Any]]:
    return [entry.model_dump(mode="json", exclude_defaults=True) for entry in keys.keys]


def _find(keys: KeysFile, name: str) -> None:
    if all(entry.name != name for entry in keys.keys):
        raise NoSuchKey(", ".join(entry.name for entry in keys.keys) or "none")
