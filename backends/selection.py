"""Which artifacts of each model become upstreams, in which order, and why: settings and surroundings in, choices out.

Pure. Neighbours: survey.py (looks around), factory.py (builds what is left of the settings), the gateway's `serve` and
`doctor` (apply and show this). Whoever applies it does so before there are workers: all of them must serve the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from backends.fit import Fit, gguf_fit, gib
from backends.hardware import Hardware
from backends.shape import ModelShape
from backends.vllm.fit import gpus_for, usable_gpus, vllm_fit
from config.errors import ConfigError, Problem
from config.schema import GgufSettings, ModelSettings, Settings
from config.tree import Profile
from config.vllm import VllmSettings

GGUF = "gguf"
VLLM = "vllm"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a choice depends on besides the settings. `shapes` are the sizes of models by name and kind of engine, or
    why they are not known; an artifact that runs elsewhere has none."""

    hardware: Hardware
    vllm_installed: bool
    shapes: Mapping[tuple[str, str], ModelShape | str]


@dataclass(frozen=True, slots=True)
class Choice:
    """What becomes of one artifact of a model. `place` is its file, folder or URL; `reason` is for people. `doubt` is
    what speaks against it although it is served; `fit` is None where its size is not known, or not ours to know."""

    kind: str
    place: str
    served: bool
    reason: str
    doubt: str = ""
    fit: Fit | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """`settings` are those given, without what is not served; `choices` are all artifacts by model, best first."""

    settings: Settings
    choices: dict[str, tuple[Choice, ...]]


def select(settings: Settings, source: str, around: Surroundings | None = None) -> Selection:
    """Decides for every model. Raises ConfigError, which names `source`, where a model is left with nothing. `around`
    may be None where survey.py says so."""
    choices = {model.name: choose(model, settings.profile, around) for model in settings.models}
    problems = [
        Problem(("models", index), _nothing_left(model, settings.profile, choices[model.name]))
        for index, model in enumerate(settings.models)
        if not any(choice.served for choice in choices[model.name])
    ]
    if problems:
        raise ConfigError(source, tuple(problems))
    models = tuple(_as_served(model, choices[model.name]) for model in settings.models)
    return Selection(settings.model_copy(update={"models": models}), choices)


def choose(model: ModelSettings, profile: Profile, around: Surroundings | None = None) -> tuple[Choice, ...]:
    """All artifacts of one model, best first under `profile`."""
    found = [*_gguf_choice(model, profile, around), *_vllm_choices(model, profile, around)]
    return tuple(sorted(found, key=lambda choice: rank(choice.kind, profile)))


def rank(kind: str, profile: Profile) -> int:
    """Where a kind of engine stands in the order of a model's upstreams: vLLM first under `prod`, else GGUF."""
    return int(kind == (GGUF if profile == "prod" else VLLM))


def _gguf_choice(model: ModelSettings, profile: Profile, around: Surroundings | None) -> Iterator[Choice]:
    settings = model.gguf
    if settings is None:
        return
    place = settings.source or settings.url or ""
    fit = _fit_of_gguf(model, settings, around)
    shape = around.shapes.get((model.name, GGUF)) if around is not None else None
    yield Choice(GGUF, place, True, _role_of_gguf(model, profile), _too_long(model, shape) or _against(fit), fit)


def _fit_of_gguf(model: ModelSettings, settings: GgufSettings, around: Surroundings | None) -> Fit | None:
    shape = around.shapes.get((model.name, GGUF)) if around is not None else None
    if around is None or not isinstance(shape, ModelShape):
        return None
    parallel = None if settings.parallel == "auto" else settings.parallel
    return gguf_fit(shape, around.hardware.available_ram_bytes, model.context_tokens, parallel)


def _role_of_gguf(model: ModelSettings, profile: Profile) -> str:
    if profile == "dev":
        return "profile dev serves GGUF"
    if model.vllm is None:
        return "there is nothing else"
    return "answers while vLLM starts or is down" if profile == "prod" else "the policy chooses for each request"


def _vllm_choices(model: ModelSettings, profile: Profile, around: Surroundings | None) -> Iterator[Choice]:
    settings = model.vllm
    if settings is None:
        return
    if profile == "dev":
        yield from (Choice(VLLM, place, False, "profile dev serves GGUF alone") for place in settings.places)
    elif settings.source is None:
        yield from (Choice(VLLM, place, True, "runs elsewhere") for place in settings.places)
    else:
        yield _launched(model, settings, profile, around)


def _launched(model: ModelSettings, settings: VllmSettings, profile: Profile, around: Surroundings | None) -> Choice:
    """vLLM on this machine: `prod` starts it whatever the estimate says, `auto` where it runs on a GPU and fits."""
    place = settings.source or ""
    shape = around.shapes.get((model.name, VLLM)) if around is not None else None
    if around is None:
        return Choice(VLLM, place, True, "launched here")
    fit = vllm_fit(shape, settings, around.hardware, model.context_tokens) if isinstance(shape, ModelShape) else None
    gpus = gpus_for(settings, around.hardware)
    # Of a checkpoint whose size nobody knows here, `auto` makes one part.
    parts = 1 if settings.tensor_parallel == "auto" else settings.tensor_parallel
    count = fit.gpus if fit else parts * settings.pipeline_parallel * settings.data_parallel
    where = f"on {count} × {gpus[0].name}" if gpus else "on the CPU"
    there = around.vllm_installed or settings.python is not None or settings.command is not None
    missing = "" if there else "vLLM is not installed (`upshift engine install vllm`)"
    against = _too_long(model, shape) or _against(fit)
    if profile == "prod":
        return Choice(VLLM, place, True, f"profile prod asks it first, {where}", missing or against, fit)
    obstacle = "" if gpus else _no_gpu(around.hardware)
    obstacle = obstacle or missing or against
    if obstacle:
        return Choice(VLLM, place, False, obstacle, fit=fit)
    known = f"fits {where}" if fit is not None else f"{where}; its size is not known: {shape}"
    return Choice(VLLM, place, True, known, fit=fit)


def _no_gpu(hardware: Hardware) -> str:
    if usable_gpus(hardware.gpus.devices):
        return "its environment leaves it no GPU"
    if hardware.gpus.devices:
        gpu = hardware.gpus.devices[0]
        return f"vLLM does not run on {gpu.name} ({gpu.capability})"
    return hardware.gpus.problem or "this machine has no GPU"


def _too_long(model: ModelSettings, shape: object) -> str:
    """What speaks against more context than the model was trained for: vLLM refuses it, and llama.cpp writes noise."""
    if model.context_tokens is None or not isinstance(shape, ModelShape):
        return ""
    trained = shape.context_tokens
    if not 0 < trained < model.context_tokens:
        return ""
    return f"context_tokens is {model.context_tokens}, and the model was trained for {trained}: set {trained} or less"


def _against(fit: Fit | None) -> str:
    """Why an engine would not fit, and what would help; empty where it does, or where nobody knows."""
    if fit is None or fit.fits:
        return ""
    share = f" on each of {fit.gpus} GPUs" if fit.gpus > 1 else " on the GPU" if fit.gpus else ""
    needs = f"it needs {gib(fit.needs.total_bytes)}{share}, and {gib(fit.available_bytes)} are there for it"
    return f"{needs}; it would fit with {' or '.join(fit.changes)}" if fit.changes else needs


def _nothing_left(model: ModelSettings, profile: Profile, choices: tuple[Choice, ...]) -> str:
    reasons = ", ".join(dict.fromkeys(choice.reason for choice in choices))
    others = "auto or prod" if profile == "dev" else "profile prod, which starts vLLM whatever the machine is"
    return f"profile {profile} leaves {model.name!r} with nothing to serve it ({reasons}); add gguf, or choose {others}"


def _as_served(model: ModelSettings, choices: tuple[Choice, ...]) -> ModelSettings:
    served = {choice.kind: choice for choice in choices if choice.served}
    left: dict[str, object] = {kind: None for kind in (GGUF, VLLM) if kind not in served}
    if VLLM in served and model.vllm is not None and model.vllm.source is not None:
        fit = served[VLLM].fit
        copies = model.vllm.pipeline_parallel * model.vllm.data_parallel
        if fit is not None and fit.gpus and model.vllm.tensor_parallel == "auto":
            left[VLLM] = model.vllm.model_copy(update={"tensor_parallel": fit.gpus // copies})
    return model.model_copy(update=left)
