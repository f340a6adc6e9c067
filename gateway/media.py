"""Media that a request names by URL: an engine would fetch them from where it stands, which is inside.

Neighbours: intake.py (decodes the body, calls this).
"""

from __future__ import annotations

from typing import Any

from gateway.errors import InvalidBody

_FIELDS = ("messages", "input")


def check_media(body: bytes, document: tuple[tuple[str, Any], ...]) -> None:
    """Raises InvalidBody for an image, audio, video or file of a conversation that is not in the request itself.

    `document` is the decoded body, objects as tuples of pairs. What is allowed is said, not what is forbidden: there
    are many ways to write an address.
    """
    # Cheap to see in nearly every body that there is nothing to see: no such key, and none that is written in escapes.
    if b"_u" not in body and b"_U" not in body and (b"\\" not in body or b"\\u" not in body):
        return
    # Engines written in Go read keys in whatever letters.
    for field, conversation in document:
        waiting = [conversation] if field.casefold() in _FIELDS else []
        while waiting:
            value = waiting.pop()
            if isinstance(value, tuple):
                for name, inner in value:
                    if name.casefold().endswith("_url") and not _is_here(inner):
                        raise InvalidBody(
                            f"`{name[:64]}` should be a data: URL; media are not fetched (server.remote_media).",
                            param=field,
                        )
                    waiting.append(inner)
            elif isinstance(value, list):
                waiting.extend(value)


def _is_here(value: Any) -> bool:
    """Whether a `…_url`, text or an object with a `url`, holds its content itself. What is neither is no address."""
    if isinstance(value, tuple):
        return all(_is_here(inner) for name, inner in value if name.casefold() == "url")
    return not isinstance(value, str) or value.startswith("data:")
