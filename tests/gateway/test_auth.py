"""Who comes in, with which models and limits, and what a refused one learns: nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from config.errors import ConfigError
from config.limits import LimitSettings, LimitsSettings
from config.schema import GgufSettings, ModelSettings, ServerSettings, Settings
from gateway.auth import ANONYMOUS, MAX_KEY_BYTES, Authenticator, check_exposure, check_model, keys_of, principals
from gateway.errors import InvalidKey, ModelNotAllowed
from gateway.keys import hash_of, new_key
from gateway.keysfile import KeyEntry, KeysFile, write_keys
from gateway.limits import Limits
from gateway.ratelimit_store import LimitStore

KEY = new_key()
SETTINGS = Settings(
    models=(ModelSettings(name="llama3", aliases=("gpt-4o-mini",), gguf=GgufSettings(source="demo")),),
    limits=LimitsSettings(
        default=LimitSettings(requests_per_minute=60), tiers={"batch": LimitSettings(tokens_per_minute=10)}
    ),
)


def entry(key: str = KEY, name: str = "alice", **fields: Any) -> KeyEntry:
    return KeyEntry(name=name, hash=hash_of(key), **fields)


def authenticator(*entries: KeyEntry, now: float = 0.0) -> Authenticator:
    keys = KeysFile(keys=entries or (entry(),))
    return Authenticator(principals(SETTINGS, keys, LimitStore(64).slot_of), now=lambda: now)


def bearer(key: str | bytes) -> dict[bytes, bytes]:
    return {b"authorization": b"Bearer " + (key.encode() if isinstance(key, str) else key)}


@pytest.mark.parametrize(
    "headers",
    [
        bearer(KEY),
        {b"authorization": b"bearer " + KEY.encode()},
        {b"authorization": b"BEARER  " + KEY.encode()},
        {b"x-api-key": KEY.encode()},
        {b"x-api-key": KEY.encode(), **bearer(KEY)},
    ],
    ids=["bearer", "small letters", "capitals, two spaces", "x-api-key", "both the same"],
)
def test_key_comes_in_by_either_header(headers: dict[bytes, bytes]) -> None:
    assert authenticator().principal(headers).name == "alice"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {b"authorization": b""},
        {b"authorization": b"Bearer"},
        {b"authorization": b"Bearer "},
        {b"authorization": KEY.encode()},
        {b"authorization": b"Basic " + KEY.encode()},
        {b"authorization": b"Basic eDp5", b"x-api-key": KEY.encode()},
        {b"x-api-key": b""},
        {b"x-api-key": new_key().encode(), **bearer(KEY)},
        {b"api-key": KEY.encode()},
        bearer(new_key()),
        bearer(KEY[:-1]),
        bearer(KEY + "x"),
        bearer(KEY.lower()),
        bearer(hash_of(KEY)),
        bearer(f"Bearer {KEY}"),
        bearer(b"' OR 1=1 --"),
        bearer(b"a\x00b\r\nx: y"),
        bearer(b"\xff\xfe\xc3("),
        bearer(b"x" * 2**20),
        bearer(b"x" * (MAX_KEY_BYTES + 1)),
    ],
    ids=lambda headers: str(headers)[:50],
)
def test_everything_else_is_refused_and_never_repeated(headers: dict[bytes, bytes]) -> None:
    with pytest.raises(InvalidKey) as caught:
        authenticator().principal(headers)
    told = caught.value.message
    assert len(told) < 120
    for value in headers.values():
        for part in value.decode("latin-1").split(" "):
            assert len(part) < 8 or part not in told


def test_mistyped_key_is_told_from_an_unknown_one() -> None:
    with pytest.raises(InvalidKey, match="mistyped"):
        authenticator().principal(bearer(KEY[:-1]))
    with pytest.raises(InvalidKey, match=r"not valid\.$"):
        authenticator().principal(bearer(new_key()))


def test_key_of_another_make_works_by_its_hash() -> None:
    assert authenticator(entry("sk-my-own")).principal(bearer("sk-my-own")).name == "alice"


def test_key_expires_at_its_moment() -> None:
    fields = {"expires": "1970-01-01T00:01Z"}
    assert authenticator(entry(**fields), now=59.9).principal(bearer(KEY)).name == "alice"
    with pytest.raises(InvalidKey, match="expired") as refused:
        authenticator(entry(**fields), now=60.0).principal(bearer(KEY))
    assert refused.value.key == "alice"  # the log says whose it was


def test_replaced_keys_hold_from_the_next_request_on() -> None:
    other = new_key()
    store = LimitStore(64)
    door = Authenticator(principals(SETTINGS, KeysFile(keys=(entry(),)), store.slot_of))
    before = door.principal(bearer(KEY))
    door.replace(principals(SETTINGS, KeysFile(keys=(entry(other, "bob"), entry(name="renamed"))), store.slot_of))
    assert door.principal(bearer(other)).name == "bob"
    after = door.principal(bearer(KEY))
    assert (after.name, after.slot) == ("renamed", before.slot)
    door.replace({})
    with pytest.raises(InvalidKey):
        door.principal(bearer(KEY))


def test_without_keys_everybody_is_the_same_principal() -> None:
    door = Authenticator(principals(SETTINGS, None, LimitStore(64).slot_of))
    anonymous = door.principal({})
    assert door.principal(bearer("anything")) is anonymous
    assert (anonymous.models, anonymous.limits) == (None, Limits(requests_per_minute=60))


def test_no_key_has_the_digest_of_the_anonymous() -> None:
    with pytest.raises(InvalidKey):
        authenticator().principal(bearer(ANONYMOUS))


def test_limits_come_from_key_tier_and_default() -> None:
    principal = authenticator(entry(tier="batch", limits=LimitSettings(concurrent=2))).principal(bearer(KEY))
    assert (principal.tier, principal.limits) == ("batch", Limits(60, 10, 2))


def test_unknown_tier_is_a_problem_of_the_keys_file() -> None:
    with pytest.raises(ConfigError, match=r"keys\[1\]\.tier: there is no tier 'gold' .*known there: batch"):
        authenticator(entry(), entry(new_key(), "b", tier="gold"))


def test_nobody_is_an_operator_whose_key_does_not_say_so() -> None:
    def surfaces(**fields: Any) -> set[str]:
        return set(authenticator(entry(**fields)).principal(bearer(KEY)).surfaces)

    assert surfaces() == {"openai"}
    assert surfaces(surfaces=("operators",)) == {"operators"}
    assert surfaces(surfaces=("openai", "operators")) == {"openai", "operators"}
    anonymous = Authenticator(principals(SETTINGS, None, LimitStore(64).slot_of)).principal({})
    assert set(anonymous.surfaces) == {"openai", "operators"}


def test_model_outside_the_list_is_refused_by_name() -> None:
    door = authenticator(entry(models=("gpt-4o-mini", "phi")))
    principal = door.principal(bearer(KEY))
    check_model(principal, "llama3")
    check_model(principal, "phi")
    with pytest.raises(ModelNotAllowed, match="demo") as caught:
        check_model(principal, "demo")
    assert caught.value.param == "model"
    check_model(authenticator().principal(bearer(KEY)), "demo")


def test_principal_does_not_show_its_digest() -> None:
    principal = authenticator().principal(bearer(KEY))
    assert "digest" not in repr(principal)
    assert KEY not in repr(principal)


def test_keys_are_read_from_the_file_the_settings_name(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    keys = KeysFile(keys=(entry(),))
    write_keys(file, keys)
    assert keys_of(Settings.model_validate({"auth": {"keys_file": str(file)}})) == keys
    assert keys_of(Settings()) is None
    assert keys_of(Settings(auth="none")) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "gateway.example"])
def test_open_listener_needs_a_word_on_who_may_use_it(host: str) -> None:
    refused = check_exposure(Settings(server=ServerSettings(host=host)))
    assert refused is not None
    assert "upshift keys add" in refused
    assert "auth: none" in refused
    assert check_exposure(Settings(server=ServerSettings(host=host), auth="none")) is None
    with_keys = {"server": {"host": host}, "auth": {"keys_file": "keys.yaml"}}
    assert check_exposure(Settings.model_validate(with_keys)) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_listener_needs_nothing(host: str) -> None:
    assert check_exposure(Settings(server=ServerSettings(host=host))) is None
