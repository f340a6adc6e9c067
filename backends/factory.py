"""From a model's settings to the backends that serve it. Nothing is started here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from backends.access import Access, access_to
from backends.base import Backend
from backends.claim import gguf_claim
from backends.discovery import Discovery, DnsLookup, Target
from backends.engine import EngineBackend
from backends.inquiry import openai_health
from backends.kinds import KINDS
from backends.launch import EnginePlan, gguf_engine_argv
from backends.ollama.calls import OllamaCalls, ollama_health
from backends.openai import OpenAIBackend
from backends.process import EngineProcess
from backends.release import LLAMA_SERVER_RELEASE, OLLAMA_RELEASE, VLLM_RELEASE
from backends.remote import Dialect, RemoteBackend
from backends.selection import GGUF, VLLM
from backends.vllm.command import engine_plan
from config.remote import RemoteSettings, dns_name
from config.schema import GgufSettings, ModelSettings


def own_engine(plan: EnginePlan) -> EngineBackend:
    """The engine of `plan` as a child of this process."""
    process = EngineProcess(
        plan.name,
        plan.argv,
        kind=KINDS[plan.kind],
        served_names=plan.served_names,
        environment=plan.environment,
        dozes=plan.dozes,
    )
    return EngineBackend(plan.kind, process, plan.idle_stop_seconds, plan.claim)


def create_backends(model: ModelSettings, engine: Callable[[EnginePlan], Backend] = own_engine) -> tuple[Backend, ...]:
    """The STOPPED backends of `model`, GGUF before vLLM, at least one. `engine` makes those that are launched here; a
    process that does not own the engines gives one that borrows them. Raises ConfigError for a key or certificate that
    cannot be read."""
    return tuple(_backends(model, engine))


def _backends(model: ModelSettings, engine: Callable[[EnginePlan], Backend]) -> Iterator[Backend]:
    if model.gguf is not None:
        if model.gguf.openai is not None:
            yield openai_endpoint(GGUF, access_to(model.gguf.openai, model.gguf), model)
        elif model.gguf.ollama is not None:
            yield ollama_endpoint(model.gguf.ollama, model, model.gguf)
        else:
            yield engine(_gguf_plan(model, model.gguf))
    if model.vllm is not None:
        if model.vllm.source is not None:
            yield engine(engine_plan(model, model.vllm))
        for url in model.vllm.urls or ():
            yield openai_endpoint(VLLM, access_to(url, model.vllm), model)
        if model.vllm.discover is not None:
            yield discovery(model.vllm.discover, model, model.vllm)


def openai_endpoint(kind: str, access: Access, model: ModelSettings) -> RemoteBackend:
    """The OpenAI endpoint that `access` leads to. It has to know the model's name and aliases, for bodies are passed on
    as they are."""
    look = partial(openai_health, names=(model.name, *model.aliases))
    release = VLLM_RELEASE if kind == VLLM else LLAMA_SERVER_RELEASE
    return RemoteBackend(kind, access, Dialect(partial(OpenAIBackend, kind), look, release=release))


def discovery(name: str, model: ModelSettings, remote: RemoteSettings) -> Discovery:
    """The vLLM replicas behind a name in DNS, all with the same access."""
    access = access_to("", remote)

    def backend(target: Target) -> RemoteBackend:
        return openai_endpoint(VLLM, access.at(*target), model)

    return Discovery(VLLM, name, DnsLookup(dns_name(name), "https" if remote.tls else "http"), backend)


def ollama_endpoint(address: str, model: ModelSettings, gguf: GgufSettings) -> RemoteBackend:
    """The Ollama server at `address`. Requests name its model whatever the client called it."""
    name = gguf.model or model.name
    calls = partial(OllamaCalls, GGUF, model=name, context_tokens=model.context_tokens)
    dialect = Dialect(calls, partial(ollama_health, model=name), metered=False, release=OLLAMA_RELEASE)
    return RemoteBackend(GGUF, access_to(address, gguf), dialect)


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

    idle = gguf.idle_stop_seconds
    return EnginePlan(GGUF, f"{model.name}/{GGUF}", argv, idle_stop_seconds=idle, claim=partial(gguf_claim, model))
