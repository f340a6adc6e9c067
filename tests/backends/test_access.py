"""Files with keys and certificates: what is refused, what is read again, what is never shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backends.access import Access, ApiKey, ClientTls, Unusable, access_to, check_access
from config.errors import ConfigError
from config.remote import ClientTlsSettings, RemoteSettings
from config.schema import ModelSettings, Settings
from config.vllm import VllmSettings
from tests.backends.certificates import write_files

SECRET = "sk-canary-0123456789"


def test_key_goes_with_requests_and_nowhere_else() -> None:
    access = access_to("http://gpu:8000", RemoteSettings.model_validate({"api_key": SECRET}))
    assert access.key.headers() == ((b"authorization", b"Bearer " + SECRET.encode()),)
    assert SECRET not in repr(access) + str(access) + repr(access.key)
    assert Access("http://gpu:8000").key.headers() == ()


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        pytest.param(b"", "one key in one line", id="empty"),
        pytest.param(b"one\ntwo\n", "one key in one line", id="two-lines"),
        pytest.param(b"a" * 5000, "one key in one line", id="too-long"),
        pytest.param("schlüssel".encode(), "something else than a key", id="not-ascii"),
        pytest.param(None, "cannot be read: No such file or directory", id="missing"),
    ],
)
def test_file_without_a_key_is_refused_without_being_quoted(tmp_path: Path, content: bytes | None, cause: str) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(Unusable, match=cause) as caught:
        ApiKey(file=str(file))
    assert str(caught.value).startswith(f"{file} ")
    assert "two" not in str(caught.value).replace(str(file), "")


def test_changed_file_is_taken_over_and_a_broken_one_is_not(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("first")
    key = ApiKey(file=str(file))
    replacement = tmp_path / "next"
    replacement.write_text("second")
    os.replace(replacement, file)
    key.refresh()
    assert key.headers()[0][1] == b"Bearer second"
    file.unlink()
    with pytest.raises(Unusable):
        key.refresh()
    assert key.headers()[0][1] == b"Bearer second"


def test_certificates_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    ca, certificate, key = map(str, write_files(tmp_path))
    ClientTls(ClientTlsSettings(ca_file=ca, certificate=certificate, key=key)).refresh()
    for settings, cause in (
        ({"ca_file": str(tmp_path / "none.pem")}, "none.pem cannot be used: No such file"),
        ({"ca_file": key}, "server.key cannot be used"),
        ({"certificate": certificate}, "server.pem cannot be used"),
        ({"certificate": certificate, "key": ca}, r"server.pem with key .*ca.pem cannot be used"),
    ):
        with pytest.raises(Unusable, match=cause):
            ClientTls(ClientTlsSettings(**settings))


def test_renewed_certificate_is_read_and_a_half_written_one_is_not(tmp_path: Path) -> None:
    ca, certificate, key = write_files(tmp_path)
    tls = ClientTls(ClientTlsSettings(ca_file=str(ca), certificate=str(certificate), key=str(key)))
    certificate.write_text("-----BEGIN CERTIFICATE-----")
    with pytest.raises(Unusable):
        tls.refresh()
    write_files(tmp_path)
    tls.refresh()


def test_every_unusable_file_is_a_problem_with_its_place(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    vllm = VllmSettings.model_validate(
        {"urls": ["https://gpu:8000"], "api_key_file": missing, "tls": {"ca_file": missing}}
    )
    settings = Settings(models=(ModelSettings(name="a", vllm=VllmSettings(urls=("http://b:1",))),))
    check_access(settings)
    with pytest.raises(ConfigError) as caught:
        check_access(settings.model_copy(update={"models": (*settings.models, ModelSettings(name="m", vllm=vllm))}))
    assert [problem.place for problem in caught.value.problems] == [
        ("models", 1, "vllm", "api_key_file"),
        ("models", 1, "vllm", "tls"),
    ]
