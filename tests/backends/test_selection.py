"""What each profile makes of what a model has."""

from __future__ import annotations

import pytest

from backends.selection import Choice, choose, rank, select
from config.errors import ConfigError
from config.schema import GgufSettings, ModelSettings, Settings
from config.tree import Profile
from config.vllm import VllmSettings

LOCAL = GgufSettings(source="/models/m.gguf")
REMOTE = VllmSettings(urls=("http://gpu-0:8000", "http://gpu-1:8000"))
BOTH = ModelSettings(name="both", gguf=LOCAL, vllm=REMOTE)
GGUF_ALONE = ModelSettings(name="small", gguf=GgufSettings(openai="http://far:8080"))
VLLM_ALONE = ModelSettings(name="large", vllm=REMOTE)


def served(choices: tuple[Choice, ...]) -> str:
    return " ".join(choice.kind for choice in choices if choice.served)


@pytest.mark.parametrize(
    ("model", "profile", "expected"),
    [
        (BOTH, "dev", "gguf"),
        (BOTH, "auto", "gguf vllm vllm"),
        (BOTH, "prod", "vllm vllm gguf"),
        (GGUF_ALONE, "dev", "gguf"),
        (GGUF_ALONE, "auto", "gguf"),
        (GGUF_ALONE, "prod", "gguf"),
        (VLLM_ALONE, "auto", "vllm vllm"),
        (VLLM_ALONE, "prod", "vllm vllm"),
        (VLLM_ALONE, "dev", ""),
    ],
    ids=lambda value: value.name if isinstance(value, ModelSettings) else str(value),
)
def test_profile_says_what_is_served_and_in_which_order(model: ModelSettings, profile: Profile, expected: str) -> None:
    choices = choose(model, profile)
    assert served(choices) == expected
    assert all(choice.place and choice.reason for choice in choices)


def test_what_is_not_served_is_not_in_the_settings_any_more() -> None:
    settings = Settings(profile="dev", models=(BOTH, GGUF_ALONE))
    selection = select(settings, "settings")
    assert selection.settings.models == (ModelSettings(name="both", gguf=LOCAL), GGUF_ALONE)
    assert [choice.served for choice in selection.choices["both"]] == [True, False, False]


def test_every_model_with_nothing_left_is_told_with_what_to_do() -> None:
    settings = Settings(profile="dev", models=(VLLM_ALONE, BOTH, VLLM_ALONE.model_copy(update={"name": "larger"})))
    with pytest.raises(ConfigError) as caught:
        select(settings, "upshift.yaml")
    assert [problem.place for problem in caught.value.problems] == [("models", 0), ("models", 2)]
    assert "models[2]: profile dev leaves 'larger' with nothing to serve it" in str(caught.value)
    assert "add gguf, or choose auto or prod" in str(caught.value)


def test_engines_of_other_names_keep_their_order() -> None:
    assert [rank(kind, "prod") for kind in ("vllm", "fake", "gguf")] == [0, 0, 1]
    assert [rank(kind, "auto") for kind in ("vllm", "fake", "gguf")] == [1, 0, 0]
