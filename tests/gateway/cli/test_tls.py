"""`upshift tls dev-cert`: what it makes is what servers and clients accept."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.cli import main, upshift
from gateway.devcert import LEAF_DAYS


def make(folder: Path, *arguments: str) -> str:
    result = CliRunner().invoke(upshift, ["tls", "dev-cert", "--folder", str(folder), *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def handshake(folder: Path, name: str, client: str = "") -> ssl.SSLObject:
    """Of a client that calls the server `name`, in memory; returns the server's side."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(folder / "server.pem", folder / "server.key")
    calling = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    if client:
        serving.load_verify_locations(folder / "ca.pem")
        serving.verify_mode = ssl.CERT_REQUIRED
        calling.load_cert_chain(folder / f"client-{client}.pem", folder / f"client-{client}.key")
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [serving.wrap_bio(there, back, server_side=True), calling.wrap_bio(back, there, server_hostname=name)]
    waiting = {1, 0}
    while waiting:
        for side in sorted(waiting, reverse=True):
            try:
                sides[side].do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                pass
    return sides[0]


def test_server_is_trusted_under_its_names_by_those_who_trust_the_authority(tmp_path: Path) -> None:
    shown = make(tmp_path)
    for name in ("localhost", "127.0.0.1", "::1"):
        handshake(tmp_path, name)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path, "example.com")
    assert str(tmp_path / "server.pem") in shown
    assert "SSL_CERT_FILE" in shown
    for key in ("ca.key", "server.key"):
        assert stat.S_IMODE((tmp_path / key).stat().st_mode) == 0o600


def test_authority_is_made_once(tmp_path: Path) -> None:
    make(tmp_path)
    authority = (tmp_path / "ca.pem").read_bytes()
    assert "SSL_CERT_FILE" not in make(tmp_path, "gateway.lan", "192.168.1.20")
    assert (tmp_path / "ca.pem").read_bytes() == authority
    handshake(tmp_path, "gateway.lan")
    handshake(tmp_path, "192.168.1.20")


def test_client_has_its_name_in_its_certificate(tmp_path: Path) -> None:
    make(tmp_path)
    make(tmp_path, "--client", "alice")
    peer = handshake(tmp_path, "localhost", "alice").getpeercert()
    assert peer is not None
    assert peer["subjectAltName"] == (("DNS", "alice"),)
    assert LEAF_DAYS <= 366


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bad name"], "neither a host name nor an address"),
        (["a,IP:1.2.3.4"], "neither a host name nor an address"),
        (["--client", "a\nb"], "no name for a client"),
        (["--client", "alice", "host"], "one name"),
    ],
)
def test_bad_names_are_named(tmp_path: Path, arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(upshift, ["tls", "dev-cert", "--folder", str(tmp_path), *arguments])
    assert result.exit_code != 0
    assert words in result.output


def test_missing_openssl_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = CliRunner().invoke(upshift, ["tls", "dev-cert", "--folder", str(tmp_path)])
    assert result.exit_code == 1
    assert "apt install openssl" in result.output


def test_config_check_looks_at_the_certificate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "tls")
    file = tmp_path / "upshift.yaml"
    file.write_text("tls: {certificate: tls/server.pem, key: tls/server.key}\n")
    assert main(["config", "check", str(file)]) == 0
    file.write_text("tls: {certificate: tls/server.pem, key: tls/ca.key}\n")
    assert main(["config", "check", str(file)]) == 1
    assert "tls.key: " in (told := capsys.readouterr().err)
    assert "it is not the key of the certificate in" in told
