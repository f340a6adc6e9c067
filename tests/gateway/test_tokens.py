"""Tokens of a real issuer over HTTP: whom they let in, every way to forge one, and keys that change."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gateway.issuer import LEAST_SECONDS
from gateway.tokens import LEEWAY_SECONDS, MAX_TOKEN_BYTES
from tests.fakes import FakeBackend
from tests.gateway.identity import AUDIENCE, Provider, Signer, forged, providing
from tests.gateway.running import CHAT, Gateway, body, serving

RSA, EC = Signer("one"), Signer("two", "ES256")


def edge(provider: Provider, **more: Any) -> dict[str, Any]:
    limits = {"tiers": {"gold": {"requests_per_minute": 2}}}
    return {"auth": {"jwt": {"issuer": provider.url, "audience": AUDIENCE, **more}}, "limits": limits}


async def ask(gateway: Gateway, token: str, **fields: Any) -> httpx.Response:
    return await gateway.client.post(CHAT, json=body(**fields), headers={"authorization": f"Bearer {token}"})


@pytest.mark.parametrize("signer", [RSA, EC, Signer("ed", "EdDSA"), Signer("ps", "PS256")], ids=lambda s: s.algorithm)
async def test_token_of_the_issuer_opens(signer: Signer) -> None:
    async with providing(signer) as provider:
        more = {"algorithms": [signer.algorithm], "name_claim": "email"}
        async with serving(FakeBackend(), edge=edge(provider, **more)) as gateway:
            token = signer.sign(provider.claims(email='a"b@example.org'))
            for _ in range(2):
                assert (await ask(gateway, token)).status_code == 200
            headers = {"x-api-key": token}
            assert (await gateway.client.get("/v1/models", headers=headers)).status_code == 200
            refused = await gateway.client.get("/metrics", headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "surface_not_allowed")
            assert [line["key"] for line in gateway.lines()] == ["a_b@example.org"] * 2


def public_bytes(signer: Signer) -> bytes:
    key: bytes = signer.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return key


def confused(provider: Provider) -> str:
    """The issuer's public key as if it were a shared secret."""
    unsigned = forged({"alg": "HS256", "kid": "one", "typ": "JWT"}, provider.claims()).rpartition(".")[0]
    signature = hmac.new(public_bytes(RSA), unsigned.encode(), hashlib.sha256).digest()
    return f"{unsigned}.{jwt.utils.base64url_encode(signature).decode()}"


def tampered(provider: Provider) -> str:
    head, _, signature = RSA.sign(provider.claims()).split(".")
    return f"{head}.{jwt.utils.base64url_encode(json.dumps(provider.claims(sub='root')).encode()).decode()}.{signature}"


_MALLORY = Signer("one")

FORGERIES: dict[str, Callable[[Provider], str]] = {
    "alg none": lambda p: forged({"alg": "none", "kid": "one"}, p.claims()),
    "alg None": lambda p: forged({"alg": "None", "kid": "one"}, p.claims(), b"x"),
    "no alg": lambda p: forged({"kid": "one"}, p.claims(), b"x"),
    "public key as secret": confused,
    "tampered": tampered,
    "signed by another": lambda p: _MALLORY.sign(p.claims()),
    "brings its own key": lambda p: _MALLORY.sign(p.claims(), jwk=_MALLORY.listed),
    "says where its key is": lambda p: _MALLORY.sign(p.claims(), jku=f"{p.url}/evil", x5u=f"{p.url}/evil"),
    "name of a key that is a path": lambda p: _MALLORY.sign(p.claims(), kid="../../etc/passwd"),
    "name of a key that is no text": lambda p: forged({"alg": "RS256", "kid": {"a": 1}}, p.claims(), b"x"),
    "no name of a key": lambda p: forged({"alg": "RS256"}, p.claims(), b"x"),
    "critical extension": lambda p: RSA.sign(p.claims(), crit=["b64"], b64=True),
    "key of another kind": lambda p: forged({"alg": "RS256", "kid": "two"}, p.claims(), b"x"),
    "way of signing not listed": lambda p: jwt.encode(p.claims(), RSA.private, "RS512", {"kid": "one"}),
    "expired": lambda p: RSA.sign(p.claims(exp=int(time.time()) - LEEWAY_SECONDS - 5)),
    "not yet": lambda p: RSA.sign(p.claims(nbf=int(time.time()) + LEEWAY_SECONDS + 60)),
    "another audience": lambda p: RSA.sign(p.claims(aud="other")),
    "another issuer": lambda p: RSA.sign(p.claims(iss="https://evil.example")),
    "no expiry": lambda p: RSA.sign({k: v for k, v in p.claims().items() if k != "exp"}),
    "no subject": lambda p: RSA.sign({k: v for k, v in p.claims().items() if k != "sub"}),
    "no audience": lambda p: RSA.sign({k: v for k, v in p.claims().items() if k != "aud"}),
    "empty subject": lambda p: RSA.sign(p.claims(sub="")),
    "unknown tier": lambda p: RSA.sign(p.claims(tier="platinum")),
    "tier that is a list": lambda p: RSA.sign(p.claims(tier=["gold"])),
    "models that are a number": lambda p: RSA.sign(p.claims(models=7)),
    "too long": lambda p: RSA.sign(p.claims(x="x" * MAX_TOKEN_BYTES)),
    "header without end": lambda _: jwt.utils.base64url_encode(b'{"a":' * 1100).decode() + ".e30.eA",
    "no JSON": lambda _: "eyJ.eyJ.x",
    "nothing": lambda _: "eyJ..",
}


async def test_every_forgery_is_refused_and_repeated_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    async with providing(RSA, EC) as provider:
        settings = edge(provider, tier_claim="tier", models_claim="models")
        backend = FakeBackend()
        async with serving(backend, edge=settings) as gateway:
            for name, forge in FORGERIES.items():
                token = forge(provider)
                refused = await ask(gateway, token)
                assert (refused.status_code, refused.json()["error"]["code"]) in {
                    (401, "invalid_api_key"),
                    (429, "too_many_attempts"),
                }, name
                assert token not in refused.text + "".join(gateway.written) + caplog.text
            assert backend.requests == []
            # None of it made anybody ask the issuer for more than its newest keys.
            assert provider.asked <= 2
            good = RSA.sign(provider.claims(tier="gold", models=["fake"]))
            assert (await ask(gateway, good)).status_code == 200


async def test_claims_are_rights_and_limits_are_counted_by_subject() -> None:
    async with providing(RSA) as provider:
        settings = edge(provider, tier_claim="tier", models_claim="models")
        async with serving(FakeBackend(), FakeBackend("other"), edge=settings) as gateway:
            first = RSA.sign(provider.claims(tier="gold", models="alias"))
            second = RSA.sign(provider.claims(tier="gold", models=["fake"], jti="2"))
            assert (await ask(gateway, first, model="other")).json()["error"]["code"] == "model_not_allowed"
            assert [(await ask(gateway, token)).status_code for token in (first, second, first)] == [200, 200, 429]
            bob = RSA.sign(provider.claims(sub="bob", tier="gold", models=["fake"]))
            assert (await ask(gateway, bob)).status_code == 200
            nothing = RSA.sign(provider.claims(sub="eve"))
            assert (await ask(gateway, nothing)).status_code == 403


async def test_subject_too_many_is_told_that_it_cannot_be_counted() -> None:
    async with providing(RSA) as provider, serving(FakeBackend(), edge=edge(provider, tier_claim="tier")) as gateway:
        assert (await ask(gateway, RSA.sign(provider.claims(tier="gold")))).status_code == 200
        store: Any = gateway.app.gateway._limits
        store.slots = 2
        assert (await ask(gateway, RSA.sign(provider.claims(tier="gold", sub="bob")))).status_code == 200
        refused = await ask(gateway, RSA.sign(provider.claims(tier="gold", sub="eve")))
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "limits_unavailable")
        assert (await ask(gateway, RSA.sign(provider.claims(tier="gold", jti="2")))).status_code == 200


async def test_token_signed_with_a_new_key_is_accepted_at_once_and_one_of_a_gone_key_no_more() -> None:
    async with providing(RSA) as provider, serving(FakeBackend(), edge=edge(provider)) as gateway:
        old = RSA.sign(provider.claims())
        assert (await ask(gateway, old)).status_code == 200
        issuer: Any = gateway.app.gateway._issuer
        issuer._fetched_at -= LEAST_SECONDS
        provider.signers = [EC]
        assert (await ask(gateway, EC.sign(provider.claims()))).status_code == 200
        assert (await ask(gateway, old)).status_code == 401
        assert provider.asked == 2


async def test_reload_keeps_the_keys_of_an_issuer_that_stays_and_nothing_that_they_meant() -> None:
    async with (
        providing(RSA) as provider,
        providing(EC) as successor,
        serving(FakeBackend(), edge=edge(provider, tier_claim="tier")) as gateway,
    ):
        token = RSA.sign(provider.claims(tier="gold"))
        assert (await ask(gateway, token)).headers["x-ratelimit-limit-requests"] == "2"
        provider.broken = True
        for _ in range(3):
            changed = edge(provider, tier_claim="tier")
            await gateway.reload(auth=changed["auth"], limits={"tiers": {"gold": {"requests_per_minute": 3}}})
        assert (await ask(gateway, token)).headers["x-ratelimit-limit-requests"] == "3"
        assert provider.asked == 1
        await gateway.reload(**edge(successor))
        assert (await ask(gateway, token)).status_code == 401
        assert (await ask(gateway, EC.sign(successor.claims()))).status_code == 200
        assert (provider.asked, successor.asked) == (1, 1)


async def test_issuer_that_is_down_keeps_nobody_out_whose_key_is_known(caplog: pytest.LogCaptureFixture) -> None:
    async with providing(RSA) as provider, serving(FakeBackend(), edge=edge(provider)) as gateway:
        assert (await ask(gateway, RSA.sign(provider.claims()))).status_code == 200
        provider.broken = True
        issuer: Any = gateway.app.gateway._issuer
        for _ in range(3):
            issuer._fetched_at -= LEAST_SECONDS
            assert (await ask(gateway, EC.sign(provider.claims()))).status_code == 401
        assert (await ask(gateway, RSA.sign(provider.claims(sub="bob")))).status_code == 200
        assert len([record for record in caplog.records if "cannot be had" in record.message]) == 1
        provider.broken, provider.signers = False, [RSA, EC]
        issuer._fetched_at -= LEAST_SECONDS
        assert (await ask(gateway, EC.sign(provider.claims()))).status_code == 200
        assert "there again" in caplog.text


async def test_token_ends_when_it_says_so_though_it_was_seen_before() -> None:
    async with providing(RSA) as provider, serving(FakeBackend(), edge=edge(provider)) as gateway:
        token = RSA.sign(provider.claims())
        assert (await ask(gateway, token)).status_code == 200
        tokens: Any = gateway.app.gateway._issuer.tokens  # type: ignore[union-attr]
        tokens._now = lambda: time.time() + 3600 + LEEWAY_SECONDS
        assert "has expired" in (await ask(gateway, token)).text
