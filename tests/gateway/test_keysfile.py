"""The keys file: what it may say, what a person is told about a broken one, and how it is replaced."""

from __future__ import annotations

import multiprocessing
import os
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from config.errors import ConfigError
from config.limits import LimitSettings
from gateway.keysfile import KeyEntry, KeysFile, editing, expiry, load_keys, write_keys

HASH = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64


def written(folder: Path, text: str) -> Path:
    file = folder / "keys.yaml"
    file.write_text(text)
    file.chmod(0o600)
    return file


def test_every_field_is_read(tmp_path: Path) -> None:
    text = f"""
keys:
  - name: alice
    hash: {HASH}
    tier: batch
    models: [llama3, demo]
    limits: {{requests_per_minute: 5, concurrent: unlimited}}
    expires: 2027-01-31
  - {{name: bob@example.com, hash: "{OTHER}"}}
"""
    alice, bob = load_keys(written(tmp_path, text)).keys
    assert alice == KeyEntry(
        name="alice",
        hash=HASH,
        tier="batch",
        models=("llama3", "demo"),
        limits=LimitSettings(requests_per_minute=5, concurrent="unlimited"),
        expires="2027-01-31",
    )
    assert (bob.tier, bob.models, bob.limits, bob.expires) == (None, None, LimitSettings(), None)


@pytest.mark.parametrize("text", ["", "keys: []", "# nothing yet"])
def test_file_without_keys_is_one(tmp_path: Path, text: str) -> None:
    assert load_keys(written(tmp_path, text)) == KeysFile()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("key: []", "line 1: key: unknown key; did you mean keys?"),
        ("keys:\n- {name: a}", "line 2: keys[0].hash: is missing"),
        (f"keys:\n- {{hash: '{HASH}'}}", "line 2: keys[0].name: is missing"),
        (f"keys:\n- {{name: a b, hash: '{HASH}'}}", "line 2: keys[0].name: has characters that are not allowed here"),
        ("keys:\n- {name: a, hash: up-secret}", "line 2: keys[0].hash: has characters that are not allowed here"),
        (
            f"keys:\n- name: a\n  hash: '{HASH}'\n  expire: 2027-01-01",
            "line 4: keys[0].expire: unknown key; did you mean expires?",
        ),
        (
            f"keys:\n- name: a\n  hash: '{HASH}'\n  expires: 2027-02-30",
            "line 4: keys[0].expires: should be a date or a time, such as 2027-01-31 or 2027-01-31T12:00Z",
        ),
        (
            f"keys:\n- name: a\n  hash: '{HASH}'\n  limits:\n    concurrent: 0",
            "line 5: keys[0].limits.concurrent: should be greater than or equal to 1 or should be 'unlimited'",
        ),
        (f"keys:\n- {{name: a, hash: '{HASH}', models: []}}", "line 2: keys[0].models: should have at least one entry"),
        (
            f"keys:\n- {{name: a, hash: '{HASH}'}}\n- {{name: a, hash: '{OTHER}'}}",
            "line 3: keys[1].name: is already that of keys[0]",
        ),
        (
            f"keys:\n- {{name: a, hash: '{HASH}'}}\n- {{name: b, hash: '{HASH}'}}",
            "line 3: keys[1].hash: is already that of keys[0]",
        ),
        (
            f"keys:\n- name: ${{USER}}\n  hash: '{HASH}'",
            "line 2: keys[0].name: the environment variable USER is not set (${USER:-default} gives one)",
        ),
    ],
    ids=lambda value: value.rpartition(": ")[2][:30],
)
def test_problem_names_its_place(tmp_path: Path, text: str, problem: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_keys(file)
    assert str(caught.value) == f"{file}: {problem}"


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml: cannot be read"):
        load_keys(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2027-01-31", datetime(2027, 2, 1, tzinfo=UTC)),
        ("2027-01-31T12:00", datetime(2027, 1, 31, 12, tzinfo=UTC)),
        ("2027-01-31 12:00:00", datetime(2027, 1, 31, 12, tzinfo=UTC)),
        ("2027-01-31T12:00Z", datetime(2027, 1, 31, 12, tzinfo=UTC)),
        ("2027-01-31T12:00+02:00", datetime(2027, 1, 31, 10, tzinfo=UTC)),
    ],
    ids=["a date counts to its end", "UTC without zone", "as YAML writes it", "Z", "offset"],
)
def test_expiry(text: str, moment: datetime) -> None:
    assert expiry(text) == moment.timestamp()


@pytest.mark.parametrize("text", ["", "soon", "9999-12-31", "2027-01-31T25:00", "1" * 80])
def test_what_is_no_expiry_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expires"):
        KeyEntry(name="a", hash=HASH, expires=text)


def test_file_readable_by_everybody_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = written(tmp_path, "keys: []")
    load_keys(file)
    assert caplog.text == ""
    file.chmod(0o644)
    load_keys(file)
    assert "can be read by every user" in caplog.text


def test_written_file_reads_back_the_same(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    limits = LimitSettings(tokens_per_minute=7, concurrent="unlimited")
    entry = KeyEntry(name="null", hash=HASH, tier="1.5", models=("7", "a:b"), limits=limits, expires="2027-01-31")
    for keys in (KeysFile(keys=(entry, KeyEntry(name="b", hash=OTHER))), KeysFile()):
        write_keys(file, keys)
        assert load_keys(file) == keys
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["keys.yaml"]


def test_replaced_file_keeps_its_mode_less_the_others(tmp_path: Path) -> None:
    file = written(tmp_path, "keys: []")
    file.chmod(0o644)
    write_keys(file, KeysFile())
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_link_stays_a_link(tmp_path: Path) -> None:
    real = written(tmp_path, "keys: []")
    link = tmp_path / "link.yaml"
    link.symlink_to(real)
    write_keys(link, KeysFile(keys=(KeyEntry(name="a", hash=HASH),)))
    assert link.is_symlink()
    assert [key.name for key in load_keys(real).keys] == ["a"]


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, "keys: []")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_keys(file, KeysFile(keys=(KeyEntry(name="a", hash=HASH),)))
    assert os.listdir(tmp_path) == ["keys.yaml"]
    assert load_keys(file) == KeysFile()


def test_more_keys_than_can_be_read_again_are_not_written(tmp_path: Path) -> None:
    file = written(tmp_path, "keys: []")
    models = tuple(f"{number:0128}" for number in range(900))
    entries = tuple(KeyEntry(name=f"a{n}", hash=f"sha256:{n:064x}", models=models) for n in range(10))
    with pytest.raises(ConfigError, match="would be larger than"):
        write_keys(file, KeysFile(keys=entries))
    assert load_keys(file) == KeysFile()


def _add(file: Path, number: int) -> None:
    with editing(file) as keys:
        entry = KeyEntry(name=f"key-{number}", hash=f"sha256:{number:064x}")
        write_keys(file, KeysFile(keys=(*keys.keys, entry)))


def test_editors_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    context = multiprocessing.get_context("spawn")
    editors = [context.Process(target=_add, args=(file, number)) for number in range(4)]
    for editor in editors:
        editor.start()
    for editor in editors:
        editor.join(60)
        assert editor.exitcode == 0
    assert {key.name for key in load_keys(file).keys} == {f"key-{number}" for number in range(4)}
