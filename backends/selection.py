"""Which artifacts of each model become upstreams, in which order, and why: settings in, choices out. Pure.

Neighbours: factory.py (builds what is left of the settings), the gateway's `serve` and `doctor` (apply and show this).
Whoever applies it does so once, before there are workers: all of them must serve the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from config.errors import ConfigError, Problem
from config.schema import ModelSettings, Settings
from config.tree import Profile

GGUF = "gguf"
VLLM = "vllm"

_NO_VLLM = "profile dev serves GGUF alone"
_REMOTE = "runs elsewhere"
_LAUNCHED = "launched here"


@dataclass(frozen=True, slots=True)
class Choice:
    """What becomes of one artifact of a model. `place` is its file, folder or URL; `reason` is for people."""

    kind: str
    place: str
    served: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Selection:
    """`settings` are those given, without what is not served; `choices` are all artifacts by model, best first."""

    settings: Settings
    choices: dict[str, tuple[Choice, ...]]


def select(settings: Settings, source: str) -> Selection:
    """Decides for every model. Raises ConfigError, which names `source`, where a model is left with nothing."""
    choices = {model.name: choose(model, settings.profile) for model in settings.models}
    problems = [
        Problem(("models", index), _nothing_left(model, settings.profile, choices[model.name]))
        for index, model in enumerate(settings.models)
        if not any(choice.served for choice in choices[model.name])
    ]
    if problems:
        raise ConfigError(source, tuple(problems))
    models = tuple(_without_unserved(model, choices[model.name]) for model in settings.models)
    return Selection(settings.model_copy(update={"models": models}), choices)


def choose(model: ModelSettings, profile: Profile) -> tuple[Choice, ...]:
    """All artifacts of one model, best first under `profile`."""
    return tuple(sorted(_choices(model, profile), key=lambda choice: rank(choice.kind, profile)))


def rank(kind: str, profile: Profile) -> int:
    """Where a kind of engine stands in the order of a model's upstreams: vLLM first under `prod`, else GGUF."""
    return int(kind == (GGUF if profile == "prod" else VLLM))


def _choices(model: ModelSettings, profile: Profile) -> Iterator[Choice]:
    if model.gguf is not None:
        place = model.gguf.source or model.gguf.openai or ""
        yield Choice(GGUF, place, True, _role_of_gguf(model, profile))
    if model.vllm is not None:
        where = _REMOTE if model.vllm.source is None else _LAUNCHED
        for place in model.vllm.places:
            yield Choice(VLLM, place, profile != "dev", _NO_VLLM if profile == "dev" else where)


def _role_of_gguf(model: ModelSettings, profile: Profile) -> str:
    if profile == "dev":
        return "profile dev serves GGUF"
    if model.vllm is None:
        return "there is nothing else"
    return "answers while vLLM starts or is down" if profile == "prod" else "the policy chooses for each request"


def _nothing_left(model: ModelSettings, profile: Profile, choices: tuple[Choice, ...]) -> str:
    reasons = ", ".join(dict.fromkeys(choice.reason for choice in choices))
    left = f"profile {profile} leaves {model.name!r} with nothing to serve it ({reasons})"
    return f"{left}; add gguf, or choose auto or prod"


def _without_unserved(model: ModelSettings, choices: tuple[Choice, ...]) -> ModelSettings:
    served = {choice.kind for choice in choices if choice.served}
    return model.model_copy(update={kind: None for kind in (GGUF, VLLM) if kind not in served})
