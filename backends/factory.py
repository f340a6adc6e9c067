"""From a model's settings to the backends that serve it. Nothing is started here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from backends.base import Backend
from backends.engine import EngineBackend
from backends.launch import EnginePlan, gguf_engine_argv
from backends.process import EngineProcess
from backends.remote import RemoteBackend
from config.schema import GgufSettings, ModelSettings

GGUF = "gguf"
VLLM = "vllm"


def own_engine(plan: EnginePlan) -> EngineBackend:
    """The engine of `plan` as a child of this process."""
    return EngineBackend(plan.kind, EngineProcess(plan.name, plan.argv))


def create_backends(model: ModelSettings, engine: Callable[[EnginePlan], Backend] = own_engine) -> tuple[Backend, ...]:
    """The STOPPED backends of `model`, GGUF before vLLM, at least one. `engine` makes those that are launched here; a
    process that does not own the engines gives one that borrows them."""
    return tuple(_backends(model, engine))


def _backends(model: ModelSettings, engine: Callable[[EnginePlan], Backend]) -> Iterator[Backend]:
    if model.gguf is not None:
        if model.gguf.openai is not None:
            yield RemoteBackend(GGUF, model.gguf.openai)
        else:
            yield engine(_gguf_plan(model, model.gguf))
    if model.vllm is not None:
        for url in model.vllm.urls:
            yield RemoteBackend(VLLM, url)


def _gguf_plan(model: ModelSettings, gguf: GgufSettings) -> EnginePlan:
    """Its engine answers to the name and all aliases, for clients' bodies are passed on as they are."""
    source = gguf.source
    if source is None:
        raise AssertionError("the schema asks for a source")

    def argv(socket_path: str) -> Sequence[str]:
        return gguf_engine_argv(
            source,
            uds=socket_path,
            names=(model.name, *model.aliases),
            parallel=gguf.parallel,
            context_tokens=model.context_tokens,
            threads=gguf.threads,
        )

    return EnginePlan(GGUF, f"{model.name}/{GGUF}", argv)
