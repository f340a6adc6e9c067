"""Settings of engines that somebody else runs: where they are, what they want to see, whom they must be.

Neighbours: schema.py and vllm.py (the branches that have these), backends/access.py (uses them).
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, SecretStr, model_validator
from pydantic_core import PydanticCustomError

from config.tree import SourcePath, Tree


def _secret(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if len(text) > 4096 or not all("!" <= character <= "~" for character in text):
        raise PydanticCustomError("secret", "should be printable ASCII without blanks")
    return value


# Shown as asterisks by everything that prints settings.
Secret = Annotated[SecretStr, AfterValidator(_secret)]


class ClientTlsSettings(Tree):
    """TLS towards https endpoints, where the authorities of this machine and no client certificate will not do."""

    ca_file: SourcePath | None = None
    """PEM file with the certificate authorities to trust instead of this machine's."""

    certificate: SourcePath | None = None
    """PEM file with the client certificate that the endpoint asks for, its chain behind it."""

    key: SourcePath | None = None
    """PEM file with the certificate's private key, without a password. Unset: it is in `certificate`."""

    @model_validator(mode="after")
    def _key_has_a_certificate(self) -> ClientTlsSettings:
        if self.key is not None and self.certificate is None:
            raise PydanticCustomError("key_alone", "has a key and no certificate")
        return self


class RemoteSettings(Tree):
    """What endpoints that run elsewhere want to see."""

    api_key: Secret | None = None
    """Sent to the endpoint as `Authorization: Bearer`; better `${VARIABLE}` than the key itself. Clients' own keys are
    never passed on."""

    api_key_file: SourcePath | None = None
    """Instead of `api_key`: a file with the key in one line. Read again when it changes."""

    tls: ClientTlsSettings | None = None
    """Whom https endpoints must be, and the certificate to show them."""

    @model_validator(mode="after")
    def _one_key(self) -> RemoteSettings:
        if self.api_key is not None and self.api_key_file is not None:
            raise PydanticCustomError("two_keys", "should have either api_key or api_key_file")
        return self

    def check_remote(self, addresses: tuple[str, ...]) -> None:
        """Raises for access to nothing: a key without an endpoint, TLS without an https one."""
        if not addresses and (self.api_key or self.api_key_file or self.tls):
            raise PydanticCustomError(
                "no_endpoint", "api_key, api_key_file and tls are for endpoints that run elsewhere"
            )
        if self.tls and not any(address.startswith("https:") for address in addresses):
            raise PydanticCustomError("no_tls", "has tls, and no URL that begins with https")


class DnsName(NamedTuple):
    """A name in DNS behind which there are replicas: with a port for its addresses, without one for its SRV records.
    `server` is the DNS server to ask, None for those of this machine."""

    host: str
    port: int | None
    server: str | None = None
    server_port: int = 53


_HOST = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?\.?"
_SERVER = r"(?P<server>[0-9.]+|\[[0-9A-Fa-f:.]+\])(?::(?P<asked>[0-9]{1,5}))?"
_DNS = re.compile(rf"dns://(?:{_SERVER}/)?(?P<host>{_HOST})(?::(?P<port>[0-9]{{1,5}}))?")


def dns_name(value: str) -> DnsName:
    """What `dns://[server[:port]/]name[:port]` says. Raises ValueError."""
    found = _DNS.fullmatch(value)
    if found is None:
        raise ValueError(value)
    port = int(found["port"]) if found["port"] else None
    asked = int(found["asked"] or 53)
    out_of_range = [number for number in (port, asked) if number is not None and not 0 < number < 65536]
    if (port is None) != found["host"].startswith("_") or out_of_range:
        raise ValueError(value)
    server = found["server"]
    if server is not None:
        server = str(ipaddress.ip_address(server.strip("[]")))
    return DnsName(found["host"], port, server, asked)


def _discover(value: str) -> str:
    try:
        dns_name(value)
    except ValueError:
        text = "should be dns://name:port for addresses, or dns://_service._tcp.name for SRV records"
        raise PydanticCustomError("dns_name", text) from None
    return value


Discover = Annotated[str, AfterValidator(_discover)]
