"""The certificate that a listener shows: its files become an ssl.SSLContext, and a new one when they change.

A context is never altered once connections use it: each new connection takes the newest, those that exist keep theirs.
Neighbours: tls_link.py (one connection), server.py (looks for changes twice a second, and on SIGHUP).
"""

from __future__ import annotations

import calendar
import logging
import os
import ssl
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from config.edge import TlsSettings

# What Mozilla's "intermediate" leaves of TLS 1.2 for forward secrecy without the expensive finite-field exchange; those
# of TLS 1.3 are all good.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_QUESTIONS = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
# From so many days before its end on a certificate is worth a warning.
_SOON_SECONDS = 14 * 86400

logger = logging.getLogger("upshift")

Signature = tuple[tuple[int, int, int], ...]


class CertificateRefused(Exception):
    """A file of `tls` cannot be used. The message names the setting, the file and the reason."""

    def __init__(self, setting: str, path: str, reason: str) -> None:
        super().__init__(f"tls.{setting}: {path}: {reason}")
        self.setting = setting
        self.detail = f"{path}: {reason}"


class Certificates(Collector):
    """The newest context of one listener; as a metric, when its certificate ends.

    Raises CertificateRefused where the files cannot be used at the start; later, bad files change nothing and are
    logged once.
    """

    def __init__(self, settings: TlsSettings) -> None:
        self._settings = settings
        self._used = self._seen = _signature(settings)
        self.context = server_tls(settings)
        self.not_after = expiry(settings)
        self._warn_of_expiry()

    def refresh(self) -> bool:
        """To be called now and then: reads the files again if they have changed since they were used, and have not
        changed since the last call. Certificate and key are two files; what is half replaced can wait for the rest."""
        now = _signature(self._settings)
        settled, self._seen = now == self._seen, now
        return settled and now != self._used and self.reload()

    def reload(self) -> bool:
        """Reads the files now; whether they could be used."""
        self._used = self._seen = _signature(self._settings)
        try:
            self.context, self.not_after = server_tls(self._settings), expiry(self._settings)
        except CertificateRefused as error:
            logger.error("the new certificate is not used, the old one stays: %s", error)
            return False
        logger.info("new connections are shown the certificate that %s holds now", self._settings.certificate)
        self._warn_of_expiry()
        return True

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus_client for each scrape."""
        yield GaugeMetricFamily(
            "upshift_tls_certificate_expiry_timestamp_seconds",
            "When the certificate that is shown ends, in seconds since 1970.",
            value=self.not_after,
        )

    def _warn_of_expiry(self) -> None:
        left_seconds = self.not_after - time.time()
        if left_seconds < _SOON_SECONDS:
            state = "has expired" if left_seconds <= 0 else f"expires in {left_seconds / 86400:.0f} days"
            logger.warning("the certificate in %s %s", self._settings.certificate, state)


def server_tls(settings: TlsSettings) -> ssl.SSLContext:
    """The context of a server with these files. Raises CertificateRefused."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[settings.min_version]
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(settings.certificate, settings.key, password=_no_passphrase)
    except (OSError, ValueError) as error:
        raise _refused(settings, error) from error
    if settings.client_ca is not None:
        try:
            context.load_verify_locations(settings.client_ca)
        except OSError as error:
            raise CertificateRefused("client_ca", settings.client_ca, _words(error)) from error
        # A resumed session is not asked again, and an authority may have been taken off the list since.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    context.verify_mode = _QUESTIONS[settings.client_auth]
    return context


def expiry(settings: TlsSettings) -> float:
    """When the server's certificate ends, in seconds since 1970. Raises CertificateRefused."""
    try:
        # Any bytes may stand around a block: whose certificate it is, in letters of their language.
        text = Path(settings.certificate).read_text(encoding="latin-1")
        begin = text.index("-----BEGIN CERTIFICATE-----")
        end = text.index("-----END CERTIFICATE-----", begin)
        return not_after(ssl.PEM_cert_to_DER_cert(text[begin : end + 25]))
    except (OSError, ValueError, IndexError) as error:
        raise CertificateRefused("certificate", settings.certificate, str(error)) from error


def not_after(der: bytes) -> float:
    """The end of a certificate's validity (RFC 5280 section 4.1), in seconds since 1970. Only this is read of it, after
    OpenSSL has accepted all of it. Raises ValueError and IndexError for what is no certificate."""
    start, end = _content(der, *_content(der, 0, len(der)))  # Certificate, in it TBSCertificate
    fields = []
    while start < end:
        inner, after = _content(der, start, end)
        fields.append((der[start], inner, after))
        start = after
    # version is optional; then serialNumber, signature, issuer, validity
    _, inner, after = fields[4 if fields[0][0] == 0xA0 else 3]
    _, first_ends = _content(der, inner, after)
    begin, stop = _content(der, first_ends, after)
    text = der[begin:stop].decode("ascii")
    if der[first_ends] == 0x17:  # UTCTime has two digits of the year
        text = ("20" if text < "5" else "19") + text
    return calendar.timegm(time.strptime(text, "%Y%m%d%H%M%SZ"))


def names_in(certificate: Mapping[str, Any] | None) -> bytes:
    """The names that a client's certificate (as ssl.SSLObject.getpeercert gives it) vouches for, a line each:
    `dns:`, `uri:` and `email:` of its alternative names, `cn:` of its subject. A name with a line end in it is none."""
    if not certificate:
        return b""
    found = [(kind.lower(), name) for kind, name in certificate.get("subjectAltName", ())]
    found += [("cn", name) for part in certificate["subject"] for kind, name in part if kind == "commonName"]
    wanted = ("dns", "uri", "email", "cn")
    return "\n".join(f"{kind}:{name}" for kind, name in found if kind in wanted and "\n" not in name).encode()


def _content(der: bytes, start: int, end: int) -> tuple[int, int]:
    """Where the content of the element at `start` begins and ends."""
    size, begin = der[start + 1], start + 2
    if size & 0x80:
        count = size & 0x7F
        size, begin = int.from_bytes(der[begin : begin + count], "big"), begin + count
    if begin + size > end:
        raise ValueError("the certificate is cut off")
    return begin, begin + size


def _signature(settings: TlsSettings) -> Signature:
    """What changes when one of the files does, replaced (also behind a link) or written again."""
    found = []
    for path in (settings.certificate, settings.key, settings.client_ca):
        try:
            status = os.stat(path) if path is not None else None
        except OSError:
            status = None
        found.append((status.st_mtime_ns, status.st_size, status.st_ino) if status is not None else (0, 0, 0))
    return tuple(found)


def _no_passphrase() -> str:
    # Without this OpenSSL would ask for it on the terminal.
    raise ValueError("it is protected by a passphrase; the gateway needs one without")


def _refused(settings: TlsSettings, error: OSError | ValueError) -> CertificateRefused:
    """Which of the two files it is, as far as one can tell: OpenSSL does not say."""
    for name, path in (("certificate", settings.certificate), ("key", settings.key)):
        try:
            text = Path(path).read_text(encoding="latin-1")
        except OSError as problem:
            return CertificateRefused(name, path, _words(problem))
        if "-----BEGIN" not in text:
            return CertificateRefused(name, path, "it is not a PEM file")
    if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
        return CertificateRefused(
            "key", settings.key, f"it is not the key of the certificate in {settings.certificate}"
        )
    if isinstance(error, OSError):
        return CertificateRefused("certificate", settings.certificate, _words(error))
    return CertificateRefused("key", settings.key, _words(error))


def _words(error: OSError | ValueError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
