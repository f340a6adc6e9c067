"""`upshift keys`: what it prints where, what it writes, and that a key it prints opens the door."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest

from config.schema import Settings
from gateway.auth import Authenticator, principals
from gateway.cli import main
from gateway.errors import InvalidKey
from gateway.keysfile import load_keys, write_keys
from gateway.slot import Slot


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def keys(*arguments: str, file: Path) -> int:
    return main(["keys", *arguments, "--file", str(file)])


def name_behind(key: str, file: Path) -> str:
    door = Authenticator(principals(Settings(), load_keys(file), Slot))
    return door.principal({b"authorization": b"Bearer " + key.encode()}).name


def test_added_key_is_the_only_line_of_output_and_works(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert keys("add", "alice", file=file) == 0
    shown = capsys.readouterr()
    assert re.fullmatch(r"up-[0-9A-Za-z]{39}\n", shown.out)
    assert "cannot be shown again" in shown.err
    assert name_behind(shown.out.strip(), file) == "alice"
    assert shown.out.strip() not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_rights_of_a_key_are_written(file: Path) -> None:
    rights = ["--tier", "batch", "--models", "llama3,demo", "--expires", "2099-12-31", "--rpm", "30"]
    assert (
        keys(
            "add",
            "alice",
            *rights,
            "--concurrent",
            "unlimited",
            "--tpm",
            "9",
            "--tpd",
            "99",
            "--max-tokens",
            "5",
            file=file,
        )
        == 0
    )
    [entry] = load_keys(file).keys
    assert (entry.tier, entry.models, entry.expires) == ("batch", ("llama3", "demo"), "2099-12-31")
    assert entry.limits.model_dump() == {
        "requests_per_minute": 30,
        "tokens_per_minute": 9,
        "tokens_per_day": 99,
        "concurrent": "unlimited",
        "max_tokens_per_request": 5,
    }


def test_list_shows_rights_and_no_hash(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys("add", "alice", file=file)
    keys("add", "nightly", "--tier", "batch", "--models", "a,b", "--rpm", "5", "--max-tokens", "9", file=file)
    keys("add", "prometheus", "--surfaces", "operators", file=file)
    capsys.readouterr()
    assert keys("list", file=file) == 0
    heading, alice, nightly, prometheus = capsys.readouterr().out.splitlines()
    assert heading.split() == ["NAME", "TIER", "MODELS", "SURFACES", "LIMITS", "EXPIRES"]
    assert alice.split() == ["alice", "-", "all", "openai", "-", "never"]
    assert nightly.split() == ["nightly", "batch", "a,b", "openai", "rpm=5,max-tokens=9", "never"]
    assert prometheus.split() == ["prometheus", "-", "all", "operators", "-", "never"]


def test_rotated_key_replaces_the_old_one_and_keeps_its_rights(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys("add", "other", file=file)
    keys("add", "alice", "--tier", "batch", file=file)
    old = capsys.readouterr().out.split()[-1]
    before = load_keys(file)
    assert keys("rotate", "alice", file=file) == 0
    new = capsys.readouterr().out.strip()
    after = load_keys(file)
    assert [(entry.name, entry.tier) for entry in after.keys] == [("other", None), ("alice", "batch")]
    assert after.keys[0] == before.keys[0]
    write_keys(file, after.model_copy(update={"keys": (after.keys[1].model_copy(update={"tier": None}),)}))
    assert name_behind(new, file) == "alice"
    with pytest.raises(InvalidKey):
        name_behind(old, file)


def test_revoked_key_is_gone(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys("add", "alice", file=file)
    keys("add", "bob", file=file)
    assert keys("revoke", "alice", file=file) == 0
    assert "within a second" in capsys.readouterr().err
    assert [entry.name for entry in load_keys(file).keys] == ["bob"]
    assert keys("revoke", "bob", file=file) == 0
    assert load_keys(file).keys == ()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["add", "alice"], "has a key 'alice' already; `upshift keys rotate alice` replaces it"),
        (["add", "a b"], "keys[1].name: has characters that are not allowed here"),
        (["add", "bob", "--rpm", "0"], "limits.requests_per_minute: should be greater than or equal to 1"),
        (
            ["add", "bob", "--tpm", "many"],
            "limits.tokens_per_minute: should be a whole number or should be 'unlimited'",
        ),
        (["add", "bob", "--expires", "soon"], "expires: should be a date or a time"),
        (["add", "bob", "--expires", "2020-01-01"], "keys[1].expires: is in the past"),
        (["add", "bob", "--models", ""], "keys[1].models[0]: "),
        (["revoke", "bob"], "has no key 'bob' (there: alice)"),
        (["rotate", "bob"], "has no key 'bob' (there: alice)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_change_nothing_and_print_no_key(
    arguments: list[str], told: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys("add", "alice", file=file)
    before = file.read_text()
    capsys.readouterr()
    assert keys(*arguments, file=file) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert told in shown.err
    assert file.read_text() == before


def test_broken_file_is_not_overwritten(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("keys: [{name: a}]\n")
    assert keys("add", "alice", file=file) == 1
    assert "keys[0].hash: is missing" in capsys.readouterr().err
    assert file.read_text() == "keys: [{name: a}]\n"


def test_place_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert keys("add", "a", file=tmp_path / "nothing" / "keys.yaml") == 1
    assert "No such file" in capsys.readouterr().err


def test_settings_name_the_file_and_know_the_tiers(
    tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "upshift.yaml"
    config.write_text("auth: {keys_file: keys.yaml}\nlimits: {tiers: {batch: {}}}\n")
    assert main(["keys", "add", "alice", "--tier", "batch", "--config", str(config)]) == 0
    assert main(["keys", "add", "bob", "--tier", "bach", "--config", str(config)]) == 1
    assert "there is no tier 'bach' in limits.tiers (known there: batch)" in capsys.readouterr().err
    monkeypatch.setenv("UPSHIFT_CONFIG", str(config))
    assert main(["keys", "list"]) == 0
    assert "alice" in capsys.readouterr().out
    assert [entry.name for entry in load_keys(file).keys] == ["alice"]


@pytest.mark.parametrize("text", [None, "auth: none\n"], ids=["no settings", "settings without keys"])
def test_without_a_file_the_command_asks_for_one(
    text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UPSHIFT_CONFIG", raising=False)
    config = tmp_path / "upshift.yaml"
    if text is not None:
        config.write_text(text)
        monkeypatch.setenv("UPSHIFT_CONFIG", str(config))
    assert main(["keys", "add", "alice"]) == 2
    assert "give --file keys.yaml, or --config" in capsys.readouterr().err


def test_database_is_changed_by_the_same_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, config = tmp_path / "keys.db", tmp_path / "upshift.yaml"
    config.write_text("auth: {keys_store: keys.db}\n")
    assert main(["keys", "add", "alice", "--surfaces", "operators", "--config", str(config)]) == 0
    assert keys("add", "bob", file=file) == 0
    assert keys("add", "bob", file=file) == 1
    assert keys("rotate", "alice", file=file) == 0
    assert keys("revoke", "bob", file=file) == 0
    capsys.readouterr()
    assert main(["keys", "list", "--config", str(config)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["NAME", "alice"]
    assert file.read_bytes().startswith(b"SQLite format 3")


def test_keys_at_redis_need_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "upshift.yaml"
    config.write_text("auth: {keys_store: redis}\n")
    assert main(["keys", "list", "--config", str(config)]) == 1
    assert "auth: keys_store: redis needs redis.url" in capsys.readouterr().err
    config.write_text("auth: {keys_store: redis}\nredis: {url: 'redis://127.0.0.1:1'}\n")
    assert main(["keys", "add", "a", "--config", str(config)]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "redis: cannot be used: " in shown.err
