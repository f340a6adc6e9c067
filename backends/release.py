"""What an engine says of its own version: where each kind is asked, and how the answer is read. Pure.

Neighbours: advisories.py (what is known of a version), remote.py and process.py (ask).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from backends.advisories import Release, warning

_MAX_CHARACTERS = 64


class Asked(NamedTuple):
    """GET `path`; `read` is for the body of a 200, and gives None where that is no such engine's."""

    path: str
    read: Callable[[bytes], Release | None]

    def answer(self, status: int, body: bytes) -> Release | None:
        """What the engine is, None where it does not say."""
        return self.read(body) if status == 200 else None

    def faults(self, status: int, body: bytes) -> str:
        """What is known to be wrong with the version that it says it is, in one line; mostly nothing."""
        told = self.answer(status, body)
        return "" if told is None else warning(told)


def _vllm(body: bytes) -> Release | None:
    document = _document(body)
    version = document.get("version")
    # Other servers have a /version too, with more in it: this gateway for one. And builds from a repository without
    # tags call themselves "0.1.dev" and so on, whatever they are.
    if set(document) != {"version"} or str(version).startswith("0.1.dev"):
        return None
    return _release("vLLM", version)


def _ollama(body: bytes) -> Release | None:
    return _release("Ollama", _document(body).get("version"))


def _llama_server(body: bytes) -> Release | None:
    build = _document(body).get("build_info")
    # "b8929-bd4bd3c" counts the commits of its repository: none has "b0-unknown", the last one alone "b1-bd4bd3c".
    counted = isinstance(build, str) and not build.startswith(("b0-", "b1-"))
    return _release("llama.cpp", build) if counted else None


VLLM_RELEASE = Asked("/version", _vllm)
OLLAMA_RELEASE = Asked("/api/version", _ollama)
LLAMA_SERVER_RELEASE = Asked("/props", _llama_server)


def _document(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _release(engine: str, version: object) -> Release | None:
    """It goes into logs: short, and nothing but what versions are made of."""
    if not isinstance(version, str) or not version.isascii() or not 0 < len(version) <= _MAX_CHARACTERS:
        return None
    return Release(engine, version) if version.replace("-", "").replace("+", "").replace(".", "").isalnum() else None
