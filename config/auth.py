"""Settings of who may use the gateway: keys, and tokens of an identity provider. Neighbours: schema.py (the tree)."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, StringConstraints, Tag, model_validator
from pydantic_core import PydanticCustomError

from config.tree import SourcePath, Tree

_ISSUER = re.compile(r"https://[^\s?#@]+|http://(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?(/[^\s?#@]*)?")


def _check_issuer(url: str) -> str:
    if _ISSUER.fullmatch(url) is None:
        raise PydanticCustomError("issuer", "should be https://…, or http:// on a loopback address")
    return url


IssuerUrl = Annotated[str, StringConstraints(max_length=1024, strict=True), AfterValidator(_check_issuer)]
Claim = Annotated[str, StringConstraints(min_length=1, max_length=256, strict=True)]
# Only such as need no secret here: with a shared one, whoever can verify tokens can make them.
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


class JwtSettings(Tree):
    """JSON Web Tokens that stand for keys, as an identity provider (OpenID Connect) issues them. Needs
    `upshift[oidc]`."""

    issuer: IssuerUrl
    """The provider, exactly as its tokens name it in `iss`."""

    audience: Claim
    """What tokens for this gateway have in `aud`."""

    jwks_url: IssuerUrl | None = None
    """Where the provider's keys are. Unset: what its `/.well-known/openid-configuration` says."""

    algorithms: tuple[Algorithm, ...] = Field(default=("RS256", "ES256"), min_length=1, max_length=10)
    """How tokens may be signed; whatever a token says of itself, no other way is accepted."""

    name_claim: Claim = "sub"
    """The claim that names a key in the log. Limits are counted by `sub`."""

    tier_claim: Claim | None = None
    """The claim with a tier of `limits.tiers`. Unset, or absent in a token: no tier."""

    models_claim: Claim | None = None
    """The claim with the models a token covers, a list or words. Unset: all; absent in a token: none."""


class AuthSettings(Tree):
    """Who may use the gateway: whoever has a key, or a token."""

    keys_file: SourcePath | None = None
    """The file with the API keys, made by `upshift keys add`; a relative path starts at the config file's folder."""

    keys_store: SourcePath | None = None
    """Instead of `keys_file`: a SQLite database (`keys.db`), or `redis` for the one of `redis.url`, which replicas
    share. `upshift keys` and /admin/keys change it."""

    jwt: JwtSettings | None = None
    """Tokens of an identity provider, in place of keys or beside them."""

    @model_validator(mode="after")
    def _lets_somebody_in(self) -> AuthSettings:
        if self.keys_file is None and self.keys_store is None and self.jwt is None:
            raise PydanticCustomError("nobody", "should have keys_file, keys_store or jwt")
        if self.keys_file is not None and self.keys_store is not None:
            raise PydanticCustomError("two_stores", "should have either keys_file or keys_store")
        return self


def _auth_kind(value: Any) -> str:
    return "none" if isinstance(value, str) else AuthSettings.__name__


Auth = Annotated[
    Annotated[AuthSettings, Tag(AuthSettings.__name__)] | Annotated[Literal["none"], Tag("none")],
    Discriminator(_auth_kind),
]
