"""From a model's settings to the backend that serves it. Nothing is started here."""

from __future__ import annotations

from collections.abc import Sequence

from backends.base import Backend
from backends.engine import GgufBackend
from backends.launch import gguf_engine_argv
from backends.process import EngineProcess
from backends.remote import RemoteBackend
from config.schema import ModelSettings


def create_backend(model: ModelSettings) -> Backend:
    """A STOPPED backend of the name "gguf": an engine of ours for `source`, calls to an endpoint for `openai`."""
    gguf = model.gguf
    if gguf.source is not None:
        return _engine(model, gguf.source)
    if gguf.openai is not None:
        return RemoteBackend("gguf", gguf.openai)
    raise AssertionError("the schema asks for one of the two")


def _engine(model: ModelSettings, source: str) -> GgufBackend:
    """Its engine answers to the name and all aliases, for clients' bodies are passed on as they are."""

    def argv(socket_path: str) -> Sequence[str]:
        return gguf_engine_argv(
            source,
            uds=socket_path,
            names=(model.name, *model.aliases),
            parallel=model.gguf.parallel,
            context_tokens=model.context_tokens,
            threads=model.gguf.threads,
        )

    return GgufBackend(EngineProcess(model.name, argv))
