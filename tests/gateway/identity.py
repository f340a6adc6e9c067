"""An identity provider of our own: signs tokens, lists its keys over HTTP, changes them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

AUDIENCE = "upshift"


class Signer:
    """One key of the provider."""

    def __init__(self, name: str, algorithm: str = "RS256") -> None:
        self.name = name
        self.algorithm = algorithm
        self.private: Any = {
            "RS256": lambda: rsa.generate_private_key(65537, 2048),
            "PS256": lambda: rsa.generate_private_key(65537, 2048),
            "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
            "EdDSA": ed25519.Ed25519PrivateKey.generate,
        }[algorithm]()

    @property
    def listed(self) -> dict[str, Any]:
        """As a JWKS document has it."""
        made = jwt.get_algorithm_by_name(self.algorithm).to_jwk(self.private.public_key(), as_dict=True)
        return {**made, "kid": self.name, "use": "sig"}

    def sign(self, claims: dict[str, Any], **header: Any) -> str:
        return jwt.encode(claims, self.private, self.algorithm, {"kid": self.name, **header})


class Provider:
    """`signers` are listed; `asked` counts how often; while `broken` it answers 500."""

    def __init__(self, *signers: Signer) -> None:
        self.signers = list(signers)
        self.url = ""
        self.asked = 0
        self.broken = False
        self.waits: asyncio.Event | None = None

    def claims(self, **more: Any) -> dict[str, Any]:
        """What a good token says."""
        now = int(time.time())
        return {"iss": self.url, "aud": AUDIENCE, "sub": "alice", "iat": now, "exp": now + 3600, **more}

    async def describe(self, _: web.Request) -> web.Response:
        return web.json_response({"issuer": self.url, "jwks_uri": f"{self.url}/keys"})

    async def list(self, _: web.Request) -> web.Response:
        self.asked += 1
        if self.broken:
            return web.json_response({}, status=500)
        return web.json_response({"keys": [signer.listed for signer in self.signers]})


@contextlib.asynccontextmanager
async def providing(*signers: Signer) -> AsyncIterator[Provider]:
    """A provider on a loopback port."""
    provider = Provider(*signers)
    app = web.Application()
    app.router.add_get("/.well-known/openid-configuration", provider.describe)
    app.router.add_get("/keys", provider.list)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    provider.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield provider
    finally:
        await runner.cleanup()


def forged(header: dict[str, Any], claims: dict[str, Any], signature: bytes = b"") -> str:
    """A token that no library would make."""
    parts = (json.dumps(header).encode(), json.dumps(claims).encode(), signature)
    return ".".join(jwt.utils.base64url_encode(part).decode() for part in parts)
