"""What each profile makes of what a model has."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.hardware import Hardware
from backends.selection import Choice, Surroundings, choose, rank, select
from backends.shape import ModelShape
from backends.survey import full_survey, survey
from config.errors import ConfigError
from config.schema import GgufSettings, ModelSettings, Settings
from config.tree import Profile
from config.vllm import VllmSettings
from tests.backends.machines import MACHINES
from tests.backends.vllm.test_fit import LLAMA_8B, LLAMA_70B

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


LAUNCHED = ModelSettings(name="m", gguf=LOCAL, vllm=VllmSettings(source="org/m"))
ONLY_LAUNCHED = ModelSettings(name="m", vllm=VllmSettings(source="org/m"))


def around(machine: str, shape: ModelShape | str = LLAMA_8B, *, installed: bool = True) -> Surroundings:
    return Surroundings(MACHINES[machine], installed, {("m", "vllm"): shape})


@pytest.mark.parametrize(
    ("machine", "shape", "expected", "reason"),
    [
        ("2-cores", LLAMA_8B, "gguf", "this machine has no GPU"),
        ("mac", LLAMA_8B, "gguf", "this machine has no GPU"),
        ("1xL40S", LLAMA_8B, "gguf vllm", "fits on 1 × NVIDIA L40S"),
        ("1xL40S", LLAMA_70B, "gguf", "it needs 134.6 GiB on the GPU, and 41.4 GiB are there for it"),
        ("2xA100", LLAMA_70B, "gguf vllm", "fits on 2 × NVIDIA A100-SXM4-80GB"),
        ("8xH100", LLAMA_70B, "gguf vllm", "fits on 4 × NVIDIA H100 80GB HBM3"),
        ("1xL40S", "it is not here yet", "gguf vllm", "its size is not known: it is not here yet"),
    ],
    ids=["2-cores", "mac", "8B-L40S", "70B-L40S", "70B-A100", "70B-H100", "unknown"],
)
def test_auto_serves_by_vllm_what_fits_on_a_gpu(
    machine: str, shape: ModelShape | str, expected: str, reason: str
) -> None:
    model = LAUNCHED.model_copy(update={"context_tokens": 4096})
    choices = choose(model, "auto", around(machine, shape))
    assert served(choices) == expected
    assert reason in choices[1].reason


def test_auto_leaves_out_a_vllm_that_is_not_installed() -> None:
    gguf, vllm = choose(LAUNCHED, "auto", around("1xL40S", installed=False))
    assert (gguf.served, vllm.served) == (True, False)
    assert "`upshift engine install vllm`" in vllm.reason
    own = ModelSettings(name="m", vllm=VllmSettings(source="org/m", command=("vllm", "serve")))
    assert served(choose(own, "auto", around("1xL40S", installed=False))) == "vllm"


@pytest.mark.parametrize("machine", sorted(MACHINES))
def test_prod_starts_vllm_whatever_the_machine_is_and_says_what_it_doubts(machine: str) -> None:
    vllm, gguf = choose(LAUNCHED, "prod", around(machine, LLAMA_70B))
    assert (vllm.kind, vllm.served, gguf.served) == ("vllm", True, True)
    assert vllm.fit is not None
    assert bool(vllm.doubt) == (not vllm.fit.fits)


def test_auto_with_nothing_left_says_how_to_start_vllm_all_the_same() -> None:
    with pytest.raises(ConfigError, match=r"this machine has no GPU\); add gguf, or choose profile prod, which starts"):
        select(Settings(models=(ONLY_LAUNCHED,)), "settings", around("2-cores"))


@pytest.mark.parametrize(
    ("machine", "shape", "resolved"),
    [("8xH100", LLAMA_8B, 1), ("8xH100", LLAMA_70B, 4), ("2-cores", LLAMA_8B, "auto"), ("8xH100", "?", "auto")],
)
def test_auto_values_become_numbers(machine: str, shape: ModelShape | str, resolved: int | str) -> None:
    settings = Settings(profile="prod", models=(LAUNCHED.model_copy(update={"context_tokens": 4096}),))
    (model,) = select(settings, "settings", around(machine, shape)).settings.models
    assert model.vllm is not None
    assert model.vllm.tensor_parallel == resolved


def test_nobody_looks_at_the_machine_where_nothing_depends_on_it() -> None:
    def look() -> Hardware:
        raise AssertionError("somebody looked")

    assert survey(Settings(models=(BOTH,)), look) is None
    assert survey(Settings(profile="dev", models=(LAUNCHED,)), look) is None


def test_a_survey_knows_the_sizes_of_files_that_are_here(tmp_path: Path) -> None:
    model = ModelSettings(name="m", gguf=GgufSettings(source="demo"), vllm=VllmSettings(source="demo"))
    lost = ModelSettings(
        name="lost", gguf=GgufSettings(source=str(tmp_path / "a.gguf")), vllm=VllmSettings(source=str(tmp_path))
    )
    far = ModelSettings(name="far", vllm=VllmSettings(source="nobody/has-this"))
    found = full_survey(Settings(models=(model, lost, far, VLLM_ALONE)), MACHINES["2-cores"]).shapes
    assert found["m", "gguf"] == found["m", "vllm"]
    assert "a.gguf: No such file" in str(found["lost", "gguf"])
    assert "config.json: No such file" in str(found["lost", "vllm"])
    assert found["far", "vllm"] == "nobody/has-this is not on this machine yet"
    assert len(found) == 5
    around = survey(Settings(models=(model, lost, far)), lambda: MACHINES["2-cores"])
    assert around is not None
    assert set(around.shapes) == {("m", "vllm"), ("lost", "vllm"), ("far", "vllm")}


def test_a_vllm_that_is_kept_from_all_gpus_is_left_out() -> None:
    hidden = VllmSettings(source="org/m", environment={"CUDA_VISIBLE_DEVICES": ""})
    _, vllm = choose(LAUNCHED.model_copy(update={"vllm": hidden}), "auto", around("8xH100"))
    assert (vllm.served, vllm.reason) == (False, "its environment leaves it no GPU")


def test_more_context_than_the_model_was_trained_for_is_doubted() -> None:
    too_much = LLAMA_8B.context_tokens + 1
    model = LAUNCHED.model_copy(update={"context_tokens": too_much})
    expected = f"context_tokens is {too_much}, and the model was trained for {LLAMA_8B.context_tokens}"
    (prod, _) = choose(model, "prod", around("8xH100"))
    assert (prod.served, prod.doubt.startswith(expected)) == (True, True)
    (_, auto) = choose(model, "auto", around("8xH100"))
    assert (auto.served, auto.reason.startswith(expected)) == (False, True)
    enough = LAUNCHED.model_copy(update={"context_tokens": LLAMA_8B.context_tokens})
    assert not any("trained for" in choice.reason + choice.doubt for choice in choose(enough, "prod", around("8xH100")))


def test_of_a_size_that_nobody_knows_one_gpu_is_taken() -> None:
    (prod, _) = choose(LAUNCHED, "prod", around("8xH100", "it is not here yet"))
    assert prod.reason.endswith("on 1 × NVIDIA H100 80GB HBM3")
