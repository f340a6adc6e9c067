"""The JSON object that a request of the control plane brings along: bounded while it arrives, refused as everywhere."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fastapi import Request
from starlette.requests import ClientDisconnect

from gateway.errors import BodyTimeout, BodyTooLarge, ClientGone, InvalidBody, UnsupportedMedia

MAX_BODY_BYTES = 64 * 1024
BODY_SECONDS = 20.0


async def json_object(request: Request) -> dict[str, Any]:
    """Raises UnsupportedMedia, BodyTooLarge, BodyTimeout, ClientGone and InvalidBody."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMedia("Content-Type must be application/json.")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await _read(request)
    except TimeoutError:
        raise BodyTimeout("The request body did not arrive in time.") from None
    except ClientDisconnect:
        raise ClientGone("The client left while sending its request.") from None
    try:
        found = json.loads(body)
        if b"\\u" in body:
            json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError):
        raise InvalidBody("The body is not valid JSON.") from None
    if not isinstance(found, dict):
        raise InvalidBody("The body should be a JSON object.")
    return found


async def _read(request: Request) -> bytes:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise BodyTooLarge(f"The body is larger than {MAX_BODY_BYTES} bytes.")
    return body
