"""Effective settings as YAML, each value with the layer it came from in a comment."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from config.errors import Place, dotted
from config.load import Loaded

# user:password@ in a URL, or in several with commas between them.
_PASSWORD = re.compile(r"://[^/@,]+@")


def show(loaded: Loaded) -> str:
    """YAML text that `load` reads back to the same settings, passwords in URLs excepted."""
    return "\n".join(_lines(loaded.settings.model_dump(mode="json"), (), loaded)) + "\n"


def _lines(value: Any, place: Place, loaded: Loaded) -> Iterator[str]:
    indent = "  " * len(place)
    for key, item in value.items():
        here = (*place, key)
        if isinstance(item, dict) and item:
            yield f"{indent}{key}:"
            yield from _lines(item, here, loaded)
        elif isinstance(item, list) and item and isinstance(item[0], dict):
            yield f"{indent}{key}:"
            for index, element in enumerate(item):
                first, *rest = _lines(element, (*here, index), loaded)
                yield f"{first[: len(indent) + 2]}- {first[len(indent) + 4 :]}"
                yield from rest
        else:
            # JSON scalars, lists and the empty mapping are YAML, and quote whatever needs it.
            yield f"{indent}{key}: {json.dumps(_without_password(item))}  # {_origin(here, loaded)}"


def _without_password(item: Any) -> Any:
    return _PASSWORD.sub("://***@", item) if isinstance(item, str) else item


def _origin(place: Place, loaded: Loaded) -> str:
    """The value's own origin; else that of a whole model list given on the command line; else the default."""
    while place:
        origin = loaded.origins.get(dotted(place))
        if origin is not None:
            return origin
        place = place[:-1]
        if len(place) == 1 and place[0] != "models":
            break
    return "default"
