"""What `upshift doctor` finds, as data: every artifact with its choice and its size, problems, notes. Pure.

Neighbours: doctor.py (collects and prints it), backends/selection.py (chooses).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from backends.fit import gib
from backends.gpu import Gpu
from backends.selection import GGUF, VLLM, Choice, Surroundings, choose, select
from backends.vllm.fit import SHARE, gpus_for, usable_gpus
from config.errors import ConfigError
from config.schema import ModelSettings, Settings


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """`problems` keep something from being served as it is configured; `notes` are worth knowing. One line each."""

    profile: str
    choices: dict[str, tuple[Choice, ...]]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        models = [
            {"model": model, "artifacts": [_artifact(choice) for choice in choices]}
            for model, choices in self.choices.items()
        ]
        return {"profile": self.profile, "models": models, "problems": self.problems, "notes": self.notes}


def diagnose(settings: Settings, around: Surroundings) -> Diagnosis:
    """Of the models of `settings` in these surroundings, which are known in full."""
    choices = {model.name: choose(model, settings.profile, around) for model in settings.models}
    problems = [*_nothing_left(settings, around), *_unreadable(around)]
    if around.hardware.gpus.problem:
        problems.append(around.hardware.gpus.problem)
    for model in settings.models:
        problems += [
            f"{model.name}: {text}" for choice in choices[model.name] if (text := _problem(choice, settings, around))
        ]
    problems += _too_much_together(choices, around)
    problems += _crowded(settings.models, choices)
    notes = [*_notes(settings.models, choices, around), *_threads(settings.models, around)]
    return Diagnosis(settings.profile, choices, tuple(problems), tuple(notes))


def _artifact(choice: Choice) -> dict[str, Any]:
    found = asdict(choice)
    if choice.fit is not None:
        found["fit"] |= {"fits": choice.fit.fits, "total_bytes": choice.fit.needs.total_bytes}
    return found


def _nothing_left(settings: Settings, around: Surroundings) -> list[str]:
    try:
        select(settings, "settings", around)
    except ConfigError as error:
        return [problem.message for problem in error.problems]
    return []


def _unreadable(around: Surroundings) -> Iterator[str]:
    for (model, kind), shape in around.shapes.items():
        if kind == GGUF and isinstance(shape, str):
            yield f"{model}: {shape}"


def _problem(choice: Choice, settings: Settings, around: Surroundings) -> str:
    """What keeps this artifact from serving. That there is no GPU for vLLM is no problem where GGUF serves."""
    if choice.served:
        return f"{choice.kind}: {choice.doubt}" if choice.doubt else ""
    wanted = choice.kind == VLLM and settings.profile != "dev" and usable_gpus(around.hardware.gpus.devices)
    return f"{choice.kind}: {choice.reason}" if wanted else ""


def _too_much_together(choices: dict[str, tuple[Choice, ...]], around: Surroundings) -> Iterator[str]:
    """Engines that fit one by one and not at the same time."""
    fits = [choice.fit for each in choices.values() for choice in each if choice.served and choice.fit is not None]
    in_memory = [fit.needs.total_bytes for fit in fits if not fit.gpus]
    available_bytes = around.hardware.available_ram_bytes
    if sum(in_memory) > available_bytes >= max(in_memory, default=0):
        yield (
            f"all engines together need {gib(sum(in_memory))} of memory, and {gib(available_bytes)} are there: "
            "lower parallel or context_tokens, or serve fewer models here"
        )


def _crowded(models: tuple[ModelSettings, ...], choices: dict[str, tuple[Choice, ...]]) -> Iterator[str]:
    """vLLMs that would take more of the same GPUs than there is: each takes its share of the first ones it sees."""
    names, share = [], 0.0
    for model in models:
        if model.vllm is None or "CUDA_VISIBLE_DEVICES" in model.vllm.environment:
            continue
        if any(choice.served and choice.fit is not None and choice.fit.gpus for choice in choices[model.name]):
            names.append(model.name)
            share += model.vllm.memory_share or SHARE
    if len(names) > 1 and share > 1:
        yield (
            f"{', '.join(names)}: each takes its share of the same GPUs, {share:.0%} together; give them a "
            "memory_share, or GPUs of their own with vllm.environment: {CUDA_VISIBLE_DEVICES: …}"
        )


def _notes(
    models: tuple[ModelSettings, ...], choices: dict[str, tuple[Choice, ...]], around: Surroundings
) -> Iterator[str]:
    for model in models:
        served = [choice for choice in choices[model.name] if choice.kind == VLLM and choice.served]
        if model.vllm is None or model.vllm.source is None or not served:
            continue
        shape = around.shapes.get((model.name, VLLM))
        if isinstance(shape, str):
            yield f"{model.name}: vllm: {shape}; whether it fits is not known"
        elif served[0].fit is not None:
            gpus = gpus_for(model.vllm, around.hardware)[: served[0].fit.gpus]
            yield from _occupied(model.name, gpus, model.vllm.memory_share or SHARE)


def _threads(models: tuple[ModelSettings, ...], around: Surroundings) -> Iterator[str]:
    """GGUF engines that would get in each other's way: threads that share a core wait for each other by spinning."""
    cores = around.hardware.usable_cores
    engines = {model.name: model.gguf.threads for model in models if model.gguf is not None and model.gguf.source}
    threads = sum(max(cores - 1, 1) if count == "auto" else count for count in engines.values())
    if len(engines) > 1 and threads > cores:
        yield (
            f"{', '.join(engines)}: their engines have {threads} threads for {cores} cores; when several compute at "
            "the same time, all become slow: gguf.threads divides them"
        )


def _occupied(model: str, gpus: tuple[Gpu, ...], share: float) -> Iterator[str]:
    for gpu in gpus:
        if 0 < gpu.free_bytes < share * gpu.total_bytes:
            yield (
                f"{model}: vllm takes {gib(int(share * gpu.total_bytes))} of {gpu.name} and does not start with less; "
                f"{gib(gpu.free_bytes)} are free now"
            )
