"""The tree's own rules; texts and places of problems are test_load.py's."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from config.limits import LimitSettings
from config.schema import GgufSettings, ModelSettings, ServerSettings, Settings


def model(name: str, *aliases: str) -> ModelSettings:
    return ModelSettings(name=name, aliases=aliases, gguf=GgufSettings(source="demo"))


def test_defaults_serve_the_demo_model_on_loopback() -> None:
    settings = Settings()
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8484)
    assert [(m.name, m.gguf and m.gguf.source) for m in settings.models] == [("demo", "demo")]


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().server.port = 1


@pytest.mark.parametrize("name", ["llama3", "llama3:8b", "org/Model-1.5_q4@main", "7b", "x" * 128])
def test_names_that_people_use_are_accepted(name: str) -> None:
    assert model(name).name == name


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "a\nb", "a\x00", "é", "-a", "../x", "x" * 129, "a\n"], ids=lambda name: repr(name)[:12]
)
def test_names_that_break_headers_or_labels_are_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        model(name)


@pytest.mark.parametrize(
    "models",
    [(model("a"), model("a")), (model("a"), model("b", "a")), (model("a", "b"), model("b")), (model("a", "a"),)],
    ids=["two names", "alias of another's name", "name of another's alias", "alias of its own name"],
)
def test_one_name_belongs_to_one_model(models: tuple[ModelSettings, ...]) -> None:
    with pytest.raises(ValidationError, match="already used by"):
        Settings(models=models)


@pytest.mark.parametrize(
    "values",
    [{"port": 65536}, {"port": True}, {"port": "80"}, {"drain_seconds": float("nan")}, {"max_body_bytes": 0}],
    ids=str,
)
def test_numbers_have_bounds_and_a_type(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ServerSettings.model_validate(values)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://127.0.0.1:8080/v1", "http://127.0.0.1:8080"),
        ("http://llama-server.svc/v1/", "http://llama-server.svc"),
        ("http://[::1]:8080/", "http://[::1]:8080"),
        ("https://gpu.example:8443/v1", "https://gpu.example:8443"),
    ],
)
def test_base_urls_of_endpoints_lose_their_path(url: str, expected: str) -> None:
    assert GgufSettings(openai=url).openai == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8080",
        "ftp://x",
        "http://x/v2",
        "http://u:p@x",
        "http://x:0",
        "http://x:65536",
        "http://[:]",
        "http://x?a\n",
    ],
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValidationError, match=r"should be http\[s\]://host:port"):
        GgufSettings(openai=url)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "either source"),
        ({"source": "demo", "openai": "http://x"}, "either source"),
        ({"openai": "http://x", "parallel": 2}, "belong to source"),
        ({"openai": "http://x", "threads": 2}, "belong to source"),
        ({"source": "demo", "ollama": "http://x"}, "either source"),
        ({"source": "demo", "model": "phi3"}, "model belongs to ollama"),
        ({"source": "demo", "api_key": "k"}, "for endpoints that run elsewhere"),
        ({"openai": "http://x", "tls": {}}, "no URL that begins with https"),
        ({"openai": "http://x", "api_key": "k", "api_key_file": "f"}, "either api_key or api_key_file"),
        ({"openai": "https://x", "tls": {"key": "k.pem"}}, "a key and no certificate"),
    ],
    ids=str,
)
def test_model_has_one_engine(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GgufSettings.model_validate(values)


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "5", "none", 10**9 + 1], ids=str)
def test_limits_are_whole_numbers_or_unlimited(value: object) -> None:
    with pytest.raises(ValidationError):
        LimitSettings.model_validate({"requests_per_minute": value})


def test_auth_is_keys_or_the_word_none() -> None:
    assert Settings().auth is None
    assert Settings.model_validate({"auth": "none"}).auth == "none"
    others: list[object] = ["keys.yaml", "", 1, [], {}, {"keys_file": ""}]
    for value in others:
        with pytest.raises(ValidationError):
            Settings.model_validate({"auth": value})


@pytest.mark.parametrize(
    ("routing", "text"),
    [
        ({"graduate": {"to_vllm_at": 2, "back_to_gguf_at": 2}}, "back_to_gguf_at should be less than to_vllm_at"),
        ({"rules": [{"when": {}, "use": "vllm"}]}, "should name at least one condition"),
        ({"rules": [{"when": {"model": "nobody"}, "use": "vllm"}]}, "there is no 'nobody' in models"),
        ({"rules": [{"when": {"key_tier": "gold"}, "use": "vllm"}]}, "there is no 'gold' in limits.tiers"),
        ({"rules": [{"when": {"features": ["sight"]}, "use": "vllm"}]}, "'images'"),
        ({"policy": "roulette"}, "'graduate'"),
    ],
    ids=str,
)
def test_routing_that_cannot_work_is_refused(routing: dict[str, object], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        Settings.model_validate({"routing": routing})


@pytest.mark.parametrize(
    "key", ["two words", "line\nbreak", "sch\u00fcssel", "x" * 4097], ids=["blank", "line", "umlaut", "long"]
)
def test_key_that_is_none_is_refused_without_being_quoted(key: str) -> None:
    with pytest.raises(ValidationError, match="printable ASCII") as caught:
        GgufSettings.model_validate({"openai": "http://x", "api_key": key})
    assert key not in str([error["msg"] for error in caught.value.errors()])


def test_key_is_shown_by_nothing_that_prints_settings() -> None:
    settings = GgufSettings.model_validate({"openai": "http://x", "api_key": "sk-canary"})
    assert "canary" not in f"{settings!r} {settings} {settings.model_dump(mode='json')} {settings.model_dump_json()}"


def test_demo_model_is_on_vllm_too_where_the_profile_wants_it() -> None:
    (demo,) = Settings(profile="prod").models
    assert demo.vllm is not None
    assert demo.vllm.source == "demo"
    assert Settings(profile="dev").models[0].vllm is None
