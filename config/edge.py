"""Settings of the edge: TLS, the listener for those who operate the gateway, log, traces.

Neighbours: schema.py (where they hang), gateway/tls.py and gateway/admin.py (what they mean).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from config.tree import HostName, SourcePath, Tree


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, float) else value


Identity = Annotated[
    str, StringConstraints(min_length=4, max_length=512, pattern=r"^(dns|uri|email|cn):[^\x00-\x1f]+$", strict=True)
]
LogFormat = Literal["json", "pretty", "auto"]


class LogSettings(Tree):
    """What is written about requests (stdout) and about the gateway itself (stderr)."""

    format: LogFormat = "auto"
    """`json`: an object a line. `pretty`: lines for people. `auto`: pretty on a terminal, JSON elsewhere."""


def _collector(value: str) -> str:
    try:
        parts = urlsplit(value)
        if parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0 and not parts.query:
            return value if parts.path.strip("/") else f"{parts.scheme}://{parts.netloc}/v1/traces"
    except ValueError:  # a port that is none
        pass
    raise PydanticCustomError(
        "collector", "should be http://host:port of an OTLP/HTTP collector, with or without a path"
    )


class TracingSettings(Tree):
    """Spans of requests, sent to an OpenTelemetry collector."""

    endpoint: Annotated[str, AfterValidator(_collector)]
    """URL of a collector that takes OTLP over HTTP, usually http://host:4318; without a path /v1/traces."""

    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the requests without `traceparent` that is recorded; with one the caller decides."""

    service_name: Annotated[str, StringConstraints(min_length=1, max_length=255)] = "upshift"
    """The name of this service in traces."""


class TlsSettings(Tree):
    """TLS on the listener. The files are read again when they change."""

    certificate: SourcePath
    """PEM file: the server's certificate, then those that lead to its authority."""

    key: SourcePath
    """PEM file: the certificate's private key, without a passphrase."""

    client_ca: SourcePath | None = None
    """PEM file: the authorities whose client certificates are accepted."""

    client_auth: Literal["none", "optional", "required"] = "none"
    """Whether clients are asked for a certificate, and refused without one."""

    client_keys: dict[Identity, str] = Field(default={}, max_length=10_000)
    """The names of keys by a name in the client's certificate: `dns:`, `uri:`, `email:` or `cn:` and that name."""

    # Unquoted in YAML it is a number.
    min_version: Annotated[Literal["1.2", "1.3"], BeforeValidator(_as_text)] = "1.2"
    """Oldest version of TLS that is spoken."""

    @model_validator(mode="after")
    def _authority_and_question_belong_together(self) -> TlsSettings:
        if (self.client_ca is None) != (self.client_auth == "none"):
            text = "client_ca and client_auth (optional or required) belong together"
            raise PydanticCustomError("client_auth", text)
        if self.client_keys and self.client_ca is None:
            raise PydanticCustomError("client_keys", "client_keys need client_ca: nobody shows a certificate without")
        return self


class AdminSettings(Tree):
    """A listener of its own for /metrics, /admin and health; the main one then serves neither /metrics nor /admin."""

    host: HostName = "127.0.0.1"
    """Address to listen on. Beyond loopback it asks for an operator's key, or for `auth: none` written out."""

    port: Annotated[int, Field(strict=True, ge=0, le=65535)] = 9484
    """TCP port; 0 lets the system choose one."""
