"""The keys of an identity provider: fetched at the start, now and then, and when a token names one that is new.

Neighbours: tokens.py (uses them), gateway.py (runs this).
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any

import httpx

from config.auth import JwtSettings
from gateway.tokens import Tokens

REFRESH_SECONDS = 300.0
# Whoever sends tokens with made-up key names must not make us ask the provider all the time.
LEAST_SECONDS = 10.0
RETRY_SECONDS = 5.0
TIMEOUT_SECONDS = 5.0
MAX_DOCUMENT_BYTES = 1024 * 1024

logger = logging.getLogger("upshift")


class IssuerFailed(Exception):
    """The provider's keys could not be had; says why."""


class Issuer:
    """Belongs to one event loop; `run` must run as long as it is used."""

    def __init__(self, about: JwtSettings, tokens: Tokens, before: Issuer | None = None) -> None:
        """Keys that `before` has had from the same place are taken over."""
        self.tokens = tokens
        self._about = about
        self._fetching: asyncio.Task[None] | None = None
        self._fetched_at = float("-inf")
        self._failing = False
        if before is not None and before._place == self._place and tokens.take_over(before.tokens):
            self._fetched_at, self._failing = before._fetched_at, before._failing

    @property
    def _place(self) -> tuple[str, str | None]:
        return self._about.issuer, self._about.jwks_url

    async def run(self) -> None:
        """Keeps the keys fresh until cancelled. Those at hand stay in use while the provider cannot be asked."""
        while True:
            due = self._fetched_at + (RETRY_SECONDS if self._failing else REFRESH_SECONDS)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await self._fetch_once()

    async def refresh(self) -> None:
        """Returns with the provider's newest keys, unless they are of a moment ago or cannot be had. However many ask,
        it is asked once."""
        if time.monotonic() - self._fetched_at >= LEAST_SECONDS or self._fetching is not None:
            await self._fetch_once()

    async def _fetch_once(self) -> None:
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._fetch())
            self._fetching.add_done_callback(self._done)
        await asyncio.shield(self._fetching)

    def _done(self, _: asyncio.Task[None]) -> None:
        self._fetching = None

    async def _fetch(self) -> None:
        self._fetched_at = time.monotonic()
        try:
            found = self.tokens.use(await self._document())
            if found == 0:
                raise IssuerFailed("it lists no key that can be used")
        except (IssuerFailed, httpx.HTTPError, ValueError) as error:
            if not self._failing:
                logger.error("the keys of %s cannot be had: %s", self._about.issuer, str(error) or type(error).__name__)
            self._failing = True
            return
        if self._failing:
            logger.warning("the keys of %s are there again", self._about.issuer)
        self._failing = False

    async def _document(self) -> dict[str, Any]:
        # No redirects: they could lead anywhere.
        async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS, follow_redirects=False, trust_env=False) as client:
            url = self._about.jwks_url
            if url is None:
                about = await _json(client, self._about.issuer.rstrip("/") + "/.well-known/openid-configuration")
                url = about.get("jwks_uri")
                if about.get("issuer") != self._about.issuer or not isinstance(url, str):
                    raise IssuerFailed("its description is of another issuer, or names no keys")
                if not url.startswith("https://") and self._about.issuer.startswith("https://"):
                    raise IssuerFailed("its keys are to be had without TLS only")
            return await _json(client, url)


async def _json(client: httpx.AsyncClient, url: str) -> dict[str, Any]:
    async with client.stream("GET", url) as answer:
        if answer.status_code != 200:
            raise IssuerFailed(f"{url} answered with status {answer.status_code}")
        body = b""
        async for piece in answer.aiter_bytes():
            body += piece
            if len(body) > MAX_DOCUMENT_BYTES:
                raise IssuerFailed(f"{url} answered with more than {MAX_DOCUMENT_BYTES} bytes")
    document = json.loads(body)
    if not isinstance(document, dict):
        raise IssuerFailed(f"{url} answered with something else than a JSON object")
    return document
