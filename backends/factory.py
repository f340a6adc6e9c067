"""From a model's settings to the backend that serves it. Nothing is started here."""

from __future__ import annotations

from collections.abc import Sequence

from backends.engine import GgufBackend
from backends.launch import gguf_engine_argv
from backends.process import EngineProcess
from config.schema import ModelSettings


def create_backend(model: ModelSettings) -> GgufBackend:
    """A STOPPED backend. Its engine answers to the name and all aliases, for clients' bodies are
    passed on as they are."""

    def argv(socket_path: str) -> Sequence[str]:
        return gguf_engine_argv(
            model.gguf.source,
            uds=socket_path,
            names=(model.name, *model.aliases),
            parallel=model.gguf.parallel,
            context_tokens=model.context_tokens,
            threads=model.gguf.threads,
        )

    return GgufBackend(EngineProcess(model.name, argv))
