"""/admin/keys: operators list, make, replace and revoke API keys, wherever the settings keep them.

Neighbours: ../operators.py (who may), ../keystore.py (where keys are), ../keyedits.py (what is changed),
../visitor.py (who asks).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, get_args

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from config.errors import ConfigError
from config.limits import LimitSettings
from config.schema import Settings
from gateway import keyedits
from gateway.api.body import json_object
from gateway.api.described import closed, takes
from gateway.auth import check_tiers
from gateway.errors import InvalidBody, KeyNameTaken, KeysUnavailable, UnknownKey, UnknownPath
from gateway.keys import hash_of, new_key
from gateway.keysfile import KeysFile, Surface
from gateway.keystore import KeyStore, store_of
from gateway.visitor import key_of

logger = logging.getLogger(__name__)

# What a request may say of a key; its hash is ours to make.
_TEXT, _TEXTS = {"type": "string"}, {"type": "array", "minItems": 1, "items": {"type": "string"}}
_BODY = closed(
    {
        "name": {**_TEXT, "minLength": 1, "maxLength": 64, "pattern": "^[A-Za-z0-9][A-Za-z0-9._@+-]*$"},
        "tier": _TEXT,
        "models": _TEXTS,
        "limits": LimitSettings.model_json_schema(),
        "expires": {**_TEXT, "maxLength": 64, "examples": ["2099-12-31", "2099-12-31T12:00Z"]},
        "addresses": {**_TEXTS, "examples": [["10.0.0.0/8"]]},
        "surfaces": {**_TEXTS, "items": {"enum": list(get_args(Surface))}},
    },
    required=("name",),
)
_FIELDS = frozenset(_BODY["properties"])


class KeyDesk:
    """Where operators have keys made. `settings` are those of now."""

    def __init__(self, settings: Callable[[], Settings]) -> None:
        self._settings = settings

    def store(self) -> KeyStore:
        """Where the keys are. Raises UnknownPath."""
        found = store_of(self._settings())
        if found is None:
            raise UnknownPath("This gateway keeps no keys: there is neither auth.keys_file nor auth.keys_store.")
        return found

    async def load(self, place: KeyStore) -> KeysFile:
        """The keys there are. Raises KeysUnavailable."""
        try:
            return (await asyncio.to_thread(place.load)) or KeysFile()
        except ConfigError as error:
            raise KeysUnavailable(str(error)) from error

    async def change(self, request: Request, place: KeyStore, edit: keyedits.Edit, done: str, name: str) -> None:
        """Changes the key `name`, and tells the log what was `done` to it and whose key asked for that. Raises
        KeyNameTaken, UnknownKey, InvalidBody and KeysUnavailable."""
        request_id, operator = request.scope["state"]["request_id"], key_of(request.scope)

        def checked(old: KeysFile) -> KeysFile:
            new = edit(old)
            check_tiers(self._settings(), new)
            return new

        def change_and_tell() -> None:
            place.change(checked)
            # In the thread, which goes on whatever becomes of the request: no change is without its line.
            whose = operator or "an operator without a key"
            logger.info("key %s was %s by %s (request %s)", name, done, whose, request_id)

        try:
            await asyncio.to_thread(change_and_tell)
        except keyedits.KeyTaken:
            raise KeyNameTaken("There is a key of this name already.", param="name") from None
        except keyedits.NoSuchKey:
            raise UnknownKey("There is no key of this name.") from None
        except ConfigError as error:
            raise _refusal(error) from error
        except OSError as error:
            raise KeysUnavailable(f"The keys cannot be written: {error.strerror}.") from error


def routes(settings: Callable[[], Settings]) -> APIRouter:
    """GET and POST /admin/keys, DELETE /admin/keys/{name}, POST /admin/keys/{name}/rotate."""
    router = APIRouter()
    desk = KeyDesk(settings)

    @router.get("/admin/keys")
    async def list_keys() -> JSONResponse:
        found = await desk.load(desk.store())
        return JSONResponse(
            {"keys": [_shown(entry.model_dump(mode="json", exclude_none=True)) for entry in found.keys]}
        )

    @router.post("/admin/keys", status_code=201, openapi_extra=takes(_BODY))
    async def add_key(request: Request) -> JSONResponse:
        place = desk.store()
        entry = await _entry(request)
        key = new_key()
        edit = keyedits.add({**entry, "hash": hash_of(key)}, "key", time.time())
        await desk.change(request, place, edit, "made", entry["name"])
        return JSONResponse({"name": entry["name"], "key": key}, 201)

    @router.post("/admin/keys/{name}/rotate")
    async def rotate_key(request: Request, name: str) -> JSONResponse:
        place = desk.store()
        key = new_key()
        await desk.change(request, place, keyedits.rotate(name, hash_of(key), "key"), "rotated", name)
        return JSONResponse({"name": name, "key": key})

    @router.delete("/admin/keys/{name}", status_code=204)
    async def revoke_key(request: Request, name: str) -> Response:
        place = desk.store()
        await desk.change(request, place, keyedits.revoke(name, "key"), "revoked", name)
        return Response(status_code=204)

    return router


def _refusal(error: ConfigError) -> InvalidBody | KeysUnavailable:
    """What is wrong with one key is the client's affair, what is wrong with the store is not."""
    wrong = [problem for problem in error.problems if problem.place]
    if not wrong:
        return KeysUnavailable(str(error))
    fields = [".".join(map(str, problem.place[2:])) or "key" for problem in wrong]
    text = "; ".join(f"`{field}` {problem.message}" for field, problem in zip(fields, wrong, strict=True))
    return InvalidBody(f"{text}.", param=fields[0])


def _shown(entry: dict[str, Any]) -> dict[str, Any]:
    return {field: value for field, value in entry.items() if field != "hash" and value != {}}


async def _entry(request: Request) -> dict[str, Any]:
    entry = await json_object(request)
    if not isinstance(entry.get("name"), str):
        raise InvalidBody("`name` should be a text.", param="name")
    unknown = sorted(set(entry) - _FIELDS)
    if unknown:
        known = ", ".join(sorted(_FIELDS))
        raise InvalidBody(f"`{unknown[0][:64]}` is no field of a key (known: {known}).", param=unknown[0][:64])
    return entry
