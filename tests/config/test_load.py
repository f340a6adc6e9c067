"""Layers, variables, and what a person is told about a broken file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import config
from config.auth import AuthSettings
from config.errors import ConfigError
from config.limits import LimitSettings
from config.load import MAX_FILE_BYTES, Override, load
from config.routing import GraduateSettings, RoutingSettings
from config.schema import GgufSettings, ModelSettings, Settings
from config.show import show
from config.vllm import VllmSettings

EXAMPLE = Path(config.__file__).parent / "example.yaml"


def written(folder: Path, text: str) -> Path:
    file = folder / "upshift.yaml"
    file.write_text(text)
    return file


def problems(folder: Path, text: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(written(folder, text), environ=environ)
    return [str(problem) for problem in caught.value.problems]


def test_example_names_every_key_and_is_valid() -> None:
    settings = load(EXAMPLE, environ={}).settings
    assert settings.models[0].aliases == ("gpt-4o-mini",)
    data = yaml.safe_load(EXAMPLE.read_text())
    assert set(data["server"]) == set(settings.server.model_fields_set)
    assert set(data["server"]) == set(type(settings.server).model_fields)
    assert {key for model in data["models"] for key in model} == set(ModelSettings.model_fields)
    assert set(data["models"][0]["gguf"]) == set(GgufSettings.model_fields)
    assert set(data["models"][1]["vllm"]) == set(VllmSettings.model_fields)
    assert set(data["limits"]["default"]) == set(LimitSettings.model_fields)
    assert set(data["routing"]) == set(RoutingSettings.model_fields)
    assert set(data["routing"]["graduate"]) == set(GraduateSettings.model_fields)
    assert set(data) == set(Settings.model_fields)


def test_example_shows_the_defaults() -> None:
    assert load(EXAMPLE, environ={}).settings.server == Settings().server


def test_nothing_given_is_the_demo_model() -> None:
    loaded = load(environ={})
    assert loaded.settings == Settings()
    assert loaded.file is None


def test_command_line_beats_environment_beats_file(tmp_path: Path) -> None:
    file = written(tmp_path, "server: {host: 10.0.0.1, port: 1, drain_seconds: 3}")
    environ = {"UPSHIFT_PORT": "2", "UPSHIFT_HOST": "10.0.0.2"}
    loaded = load(file, environ=environ, overrides=[Override(("server", "port"), 3, "--port")])
    server = loaded.settings.server
    assert (server.port, server.host, server.drain_seconds) == (3, "10.0.0.2", 3)
    assert loaded.origins["server.port"] == "--port"
    assert loaded.origins["server.host"] == "UPSHIFT_HOST"
    assert loaded.origins["server.drain_seconds"] == f"{file}:1"


def test_environment_names_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, "server: {port: 7}")
    assert load(environ={"UPSHIFT_CONFIG": str(file)}).settings.server.port == 7


def test_empty_environment_variables_count_as_unset() -> None:
    assert load(environ={"UPSHIFT_CONFIG": "", "UPSHIFT_PORT": ""}).settings == Settings()


@pytest.mark.parametrize(
    ("text", "environ", "port"),
    [
        ("${PORT}", {"PORT": "80"}, 80),
        ("${PORT:-81}", {}, 81),
        ("${PORT:-81}", {"PORT": ""}, 81),
        ("8${DIGIT}", {"DIGIT": "2"}, 82),
    ],
    ids=["set", "default", "empty takes the default", "inside"],
)
def test_variables_read_as_if_written_in_the_file(
    tmp_path: Path, text: str, environ: dict[str, str], port: int
) -> None:
    file = written(tmp_path, f"server:\n  port: {text}\n")
    assert load(file, environ=environ).settings.server.port == port


def test_variable_in_quotes_stays_text_and_two_dollars_escape(tmp_path: Path) -> None:
    text = 'models: [{name: a, gguf: {source: "/${N}"}}, {name: b, gguf: {source: "/$${N}"}}]'
    sources = [m.gguf and m.gguf.source for m in load(written(tmp_path, text), environ={"N": "1"}).settings.models]
    assert sources == ["/1", "/${N}"]


def test_variable_content_is_a_value_and_never_structure(tmp_path: Path) -> None:
    file = written(tmp_path, "models:\n  - name: ${N}\n    gguf: {source: demo}\n")
    with pytest.raises(ConfigError, match="characters that are not allowed"):
        load(file, environ={"N": "a\n    aliases: [b]"})


def test_relative_sources_start_at_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    text = """
models:
  - {name: a, gguf: {source: models/a.gguf}}
  - {name: b, gguf: {source: ~/b.gguf}}
  - {name: c, gguf: {source: /srv/c.gguf}}
  - {name: d, gguf: {source: demo}}
"""
    sources = [m.gguf and m.gguf.source for m in load(written(tmp_path, text), environ={}).settings.models]
    assert sources == [str(tmp_path / "models/a.gguf"), "/home/someone/b.gguf", "/srv/c.gguf", "demo"]


def test_relative_keys_file_starts_at_the_file(tmp_path: Path) -> None:
    settings = load(written(tmp_path, "auth: {keys_file: secret/keys.yaml}"), environ={}).settings
    assert settings.auth == AuthSettings(keys_file=str(tmp_path / "secret/keys.yaml"))


MODEL = "models:\n  - name: a\n    gguf: {source: demo}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("servr: {}", "line 1: servr: unknown key; did you mean server?"),
        ("quota: 1", "line 1: quota: unknown key; known here: profile, server, models"),
        ("profile: test", "line 1: profile: should be 'dev', 'prod' or 'auto'"),
        ("server:\n  prot: 1", "line 2: server.prot: unknown key; did you mean port?"),
        ("server: {port: abc}", "line 1: server.port: should be a whole number"),
        ("server: {port: 70000}", "line 1: server.port: should be less than or equal to 65535"),
        ("server: {drain_seconds: soon}", "line 1: server.drain_seconds: should be a number"),
        ("server: 3", "line 1: server: should be a mapping (key: value)"),
        ("models: []", "line 1: models: should have at least one entry"),
        ("models: {}", "line 1: models: should be a list"),
        ("models:\n  - gguf: {source: demo}", "line 2: models[0].name: is missing"),
        ("models:\n  - name: a", "line 2: models[0]: should have gguf, vllm or both"),
        (MODEL + "    context_tokens: 1", "line 4: models[0].context_tokens: should be greater than or equal to 64"),
        (
            "models:\n  - name: a\n    gguf: {parallel: 1}",
            "line 3: models[0].gguf: should have either source (a GGUF file), openai or ollama (the URL of a server)",
        ),
        (
            "models:\n  - name: a\n    gguf: {openai: x}",
            "line 3: models[0].gguf.openai: should be http[s]://host:port, with or without /v1 behind it",
        ),
        (
            "models: [{name: a, gguf: {source: demo, parallel: many}}]",
            "line 1: models[0].gguf.parallel: should be a whole number or should be 'auto'",
        ),
        (
            "models: [{name: a, gguf: {source: demo}},\n {name: b, aliases: [c, a], gguf: {source: demo}}]",
            "line 2: models[1].aliases[1]: 'a' is already used by models[0]",
        ),
        ("server:\n  port: 1\n  port: 2", "line 3: server.port: is given twice"),
        ("server:\n  port: ${NOPE}", "line 2: server.port: the environment variable NOPE is not set "),
        ("server: {port: ${NOPE}}", "line 1: not valid YAML: "),
        ("- 1", "line 1: the top level should be a mapping (key: value)"),
        ("auth: keys.yaml", "line 1: auth: should be 'none'"),
        ("auth: {}", "line 1: auth: should have keys_file, keys_store or jwt"),
        ("auth: [a]", "line 1: auth: should be a mapping (key: value)"),
        (
            "limits: {default: {requests_per_min: 1}}",
            "line 1: limits.default.requests_per_min: unknown key; did you mean",
        ),
        ("limits:\n  tiers:\n    a: {concurent: 1}", "line 3: limits.tiers.a.concurent: unknown key; did you mean"),
        ("limits:\n  tiers:\n    a b: {}", "line 3: limits.tiers.a b: has characters that are not allowed here"),
        ("limits: {tiers: []}", "line 1: limits.tiers: should be a mapping (key: value)"),
        (
            "limits: {default: {concurrent: many}}",
            "line 1: limits.default.concurrent: should be a whole number or should be 'unlimited'",
        ),
        ("server: [", "line 1: not valid YAML: "),
        ("server: !!python/name:os.system", "line 1: server: the YAML tag 'os.system' is not supported"),
        ("server: {<<: {port: 1}}", "line 1: server: keys should be plain words"),
        ("1: 2", "line 1: keys should be plain words"),
        ("a: &a [*a]", "line 1: not valid YAML: nested too deeply"),
        ("[" * 500, "nested too deeply"),
        ("---\na: 1\n---\nb: 2", "line 3: not valid YAML: "),
        ("\x07", "not valid YAML: "),
    ],
    ids=lambda value: value[:40],
)
def test_one_problem_names_its_place(tmp_path: Path, text: str, expected: str) -> None:
    [problem] = problems(tmp_path, text)
    assert problem.startswith(expected)


def test_mistake_inside_a_choice_of_forms_names_the_inner_place(tmp_path: Path) -> None:
    assert problems(tmp_path, "auth:\n  keys_fil: x") == [
        "line 2: auth.keys_fil: unknown key; did you mean keys_file?",
    ]


def test_all_problems_come_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = """
server:
  prot: 1
models:
  - name: a b
    gguf:
      source: ${NOPE}
      thread: 4
profile: test
"""
    places = [problem.split(": ")[:2] for problem in problems(tmp_path, text)]
    assert places == [
        ["line 3", "server.prot"],
        ["line 5", "models[0].name"],
        ["line 7", "models[0].gguf.source"],
        ["line 8", "models[0].gguf.thread"],
        ["line 9", "profile"],
    ]


def test_alias_bomb_is_refused_before_it_grows(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
    bomb += "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))
    assert problems(tmp_path, bomb)[0].endswith("more than 50000 values")


def test_problem_from_outside_the_file_names_where_it_came_from() -> None:
    with pytest.raises(ConfigError, match=r"server\.port: should be a whole number \(from UPSHIFT_PORT\)"):
        load(environ={"UPSHIFT_PORT": "many"})


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"\xff\xfe", "is not UTF-8"), (b"#" * (MAX_FILE_BYTES + 1), "is larger than")],
    ids=["not text", "too large"],
)
def test_files_that_are_no_configuration(tmp_path: Path, content: bytes, expected: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=expected):
        load(file, environ={})


@pytest.mark.parametrize("name", ["missing.yaml", "."], ids=["missing", "a folder"])
def test_unreadable_files_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / name, environ={})


def test_byte_order_mark_of_an_editor_is_ignored(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(b"\xef\xbb\xbfserver: {port: 5}")
    assert load(file, environ={}).settings.server.port == 5


def test_shown_settings_read_back_the_same_and_say_where_from(tmp_path: Path) -> None:
    loaded = load(EXAMPLE, environ={"UPSHIFT_PORT": "9"})
    text = show(loaded)
    assert load(written(tmp_path, text), environ={}).settings == loaded.settings
    assert "  port: 9  # UPSHIFT_PORT\n" in text
    assert f'  - name: "demo"  # {EXAMPLE}:' in text
    assert "  port: 8484  # default\n" in show(load(environ={}))
    remote = load(written(tmp_path, 'models: [{name: r, gguf: {openai: "http://[::1]:1/v1"}}]'), environ={})
    assert load(written(tmp_path, show(remote)), environ={}).settings == remote.settings
    replaced = load(environ={}, overrides=[Override(("models",), [{"name": "x", "gguf": {"source": "/x"}}], "--model")])
    assert '      source: "/x"  # --model\n' in show(replaced)


@pytest.mark.parametrize(
    "text", ["auth: none", "auth: {keys_file: /k.yaml}", "limits: {tiers: {a: {concurrent: unlimited}, b: {}}}"]
)
def test_shown_auth_and_limits_read_back_the_same(tmp_path: Path, text: str) -> None:
    loaded = load(written(tmp_path, text), environ={})
    assert load(written(tmp_path, show(loaded)), environ={}).settings == loaded.settings


def test_schema_describes_every_key() -> None:
    schema = Settings.model_json_schema()
    described = json.dumps(schema)
    assert schema["additionalProperties"] is False
    for tree in (*schema["$defs"].values(), schema):
        for name, field in tree["properties"].items():
            assert "description" in field or "$ref" in field, name
    assert "idle_timeout_seconds" in described


def test_paths_of_endpoints_start_at_the_files_folder(tmp_path: Path) -> None:
    access = "api_key_file: k, tls: {ca_file: ca.pem, certificate: ../c.pem}"
    text = f"models: [{{name: m, vllm: {{urls: ['https://x'], {access}}}}}]"
    vllm = load(written(tmp_path, text), environ={}).settings.models[0].vllm
    assert vllm is not None
    assert vllm.tls is not None
    assert (vllm.api_key_file, vllm.tls.ca_file) == (str(tmp_path / "k"), str(tmp_path / "ca.pem"))
    assert (vllm.tls.certificate, vllm.tls.key) == (str(tmp_path.parent / "c.pem"), None)


def test_secret_from_the_environment_is_used_and_never_shown(tmp_path: Path) -> None:
    text = 'models: [{name: m, vllm: {urls: ["https://x"], api_key: "${VLLM_KEY}"}}]'
    loaded = load(written(tmp_path, text), environ={"VLLM_KEY": "sk-canary"})
    vllm = loaded.settings.models[0].vllm
    assert vllm is not None
    assert vllm.api_key is not None
    assert vllm.api_key.get_secret_value() == "sk-canary"
    assert "canary" not in show(loaded) + repr(loaded)
    found = problems(tmp_path, text.replace("x", "x:0"), VLLM_KEY="sk-canary of two")
    assert len(found) == 2
    assert "canary" not in "".join(found)
