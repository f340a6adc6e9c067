"""The files of `tls`: what is refused with which words, and when new ones are taken."""

from __future__ import annotations

import logging
import os
import ssl
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from config.edge import TlsSettings
from gateway.tls import CertificateRefused, Certificates, not_after, server_tls
from tests.backends.certificates import authority, write_files


@pytest.fixture
def files(tmp_path: Path) -> TlsSettings:
    _, certificate, key = write_files(tmp_path)
    return TlsSettings(certificate=str(certificate), key=str(key))


def replace(files: TlsSettings, *names: str) -> None:
    """Another certificate under the same names, as a renewal writes it."""
    leaf = authority().issue_cert(*(names or ("127.0.0.1", "localhost")))
    for path, blobs in ((files.certificate, leaf.cert_chain_pems), (files.key, [leaf.private_key_pem])):
        new = Path(path + ".new")
        new.write_bytes(b"".join(blob.bytes() for blob in blobs))
        os.replace(new, path)


def test_only_good_versions_and_ciphers_are_left(files: TlsSettings) -> None:
    context = server_tls(files)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert {cipher["kea"] for cipher in context.get_ciphers()} <= {"kx-ecdhe", "kx-any"}
    assert all(cipher["aead"] for cipher in context.get_ciphers())
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert server_tls(files.model_copy(update={"min_version": "1.3"})).minimum_version == ssl.TLSVersion.TLSv1_3


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("no certificate", r"tls\.certificate: .*server\.pem: No such file"),
        ("no key", r"tls\.key: .*server\.key: No such file"),
        ("empty certificate", r"tls\.certificate: .*server\.pem: it is not a PEM file"),
        ("half a certificate", r"tls\.certificate: .*server\.pem: "),
        ("another key", r"tls\.key: .*server\.key: it is not the key of the certificate in .*server\.pem"),
        ("locked key", r"tls\.key: .*server\.key: it is protected by a passphrase"),
        ("no authority", r"tls\.client_ca: .*nowhere\.pem: No such file"),
        ("empty authority", r"tls\.client_ca: .*server\.empty: "),
    ],
)
def test_unusable_files_are_named_with_the_setting_and_the_reason(files: TlsSettings, broken: str, words: str) -> None:
    certificate, key = Path(files.certificate), Path(files.key)
    if broken == "no certificate":
        certificate.unlink()
    elif broken == "no key":
        key.unlink()
    elif broken == "empty certificate":
        certificate.write_text("")
    elif broken == "half a certificate":
        certificate.write_text(certificate.read_text()[:200])
    elif broken == "another key":
        authority().issue_cert("x").private_key_pem.write_to_path(str(key))
    elif broken == "locked key":
        command = ["openssl", "pkey", "-aes256", "-passout", "pass:x", "-in", str(key), "-out", str(key) + ".locked"]
        subprocess.run(command, check=True)
        os.replace(str(key) + ".locked", key)
    else:
        path = certificate.with_name("nowhere.pem" if broken == "no authority" else "server.empty")
        if broken == "empty authority":
            path.write_text("")
        files = files.model_copy(update={"client_ca": str(path), "client_auth": "required"})
    with pytest.raises(CertificateRefused, match=words):
        Certificates(files)


@pytest.mark.parametrize("year", [2049, 2050], ids=["UTCTime", "GeneralizedTime"])
def test_end_of_a_certificate_is_read_in_both_forms(year: int) -> None:
    end = datetime(year, 12, 31, 23, 59, 58, tzinfo=UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x" * 60)])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(datetime(2020, 1, 1, tzinfo=UTC)).not_valid_after(end)
    der = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
    assert not_after(der) == end.timestamp()


def test_text_around_a_certificate_may_be_in_any_language(files: TlsSettings) -> None:
    end = Certificates(files).not_after
    path = Path(files.certificate)
    for comment in ("# Zürich, Łódź, 東京\n".encode(), b"-----END CERTIFICATE-----\n# Z\xfcrich\n"):
        path.write_bytes(comment + path.read_bytes())
        assert Certificates(files).not_after == end


def test_what_is_no_certificate_has_no_end() -> None:
    for nonsense in (b"", b"\x30", b"\x30\x82\xff\xff\x30", b"\x30\x04\x30\x02\x02\x00"):
        with pytest.raises((ValueError, IndexError)):
            not_after(nonsense)


def test_new_files_are_taken_once_they_have_settled(files: TlsSettings) -> None:
    certificates = Certificates(files)
    first = certificates.context
    assert not any(certificates.refresh() for _ in range(3))
    replace(files)
    assert not certificates.refresh(), "the other file may still be on its way"
    assert certificates.context is first
    assert certificates.refresh()
    assert certificates.context is not first
    assert not certificates.refresh()


def test_bad_files_change_nothing_and_are_told_of_once(files: TlsSettings, caplog: pytest.LogCaptureFixture) -> None:
    certificates = Certificates(files)
    first = certificates.context
    authority().issue_cert("x").private_key_pem.write_to_path(files.key)
    with caplog.at_level(logging.ERROR, "upshift"):
        for _ in range(5):
            certificates.refresh()
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "it is not the key" in caplog.text
    assert certificates.context is first
    replace(files)
    assert [certificates.refresh(), certificates.refresh()] == [False, True]
    assert certificates.context is not first


def test_signal_does_not_wait_for_files_to_settle(files: TlsSettings) -> None:
    certificates = Certificates(files)
    first = certificates.context
    replace(files)
    assert certificates.reload()
    assert certificates.context is not first


def test_certificate_that_is_about_to_end_is_warned_of(
    files: TlsSettings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = Certificates(files).not_after
    assert caplog.text == ""
    for left_days, words in ((3, "expires in 3 days"), (-1, "has expired")):
        monkeypatch.setattr("gateway.tls.time.time", lambda left=left_days: end - left * 86400)
        Certificates(files)
        assert words in caplog.text
