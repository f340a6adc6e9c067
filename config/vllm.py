"""`models[].vllm`: a model served by vLLM, launched here (`source`) or running elsewhere (`urls`).

Neighbours: schema.py (the tree this hangs in), backends/vllm/command.py (each setting as vLLM's own option).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from config.remote import Discover, RemoteSettings
from config.routing import MaxInFlight
from config.tree import Endpoint, IdleSeconds, SourcePath

_Word = Annotated[str, StringConstraints(max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", strict=True)]
_Parallel = Annotated[int, Field(strict=True, ge=1, le=1024)]
_OptionName = Annotated[
    str, StringConstraints(max_length=64, pattern=r"^[a-z0-9][a-z0-9-]*(\.[A-Za-z0-9._-]+)?$", strict=True)
]
_VariableName = Annotated[str, StringConstraints(max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", strict=True)]
_Argument = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00]+$", strict=True)]


def _all_different(urls: tuple[str, ...]) -> tuple[str, ...]:
    """One server twice would count as two: its load, its limits and what it is down for."""
    seen = set()
    for url in urls:
        parts = urlsplit(url)
        place = (parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
        if place in seen:
            raise PydanticCustomError("twice", "names {url} twice", {"url": url})
        seen.add(place)
    return urls


_Urls = Annotated[tuple[Endpoint, ...], Field(min_length=1, max_length=256), AfterValidator(_all_different)]

# vLLM's options that are not for `args`: how to say them instead. "" where nobody has anything to say.
TAKEN_ARGS = {
    "model": "source",
    "served-model-name": "name and aliases",
    "max-model-len": "context_tokens",
    "tensor-parallel-size": "tensor_parallel",
    "pipeline-parallel-size": "pipeline_parallel",
    "data-parallel-size": "data_parallel",
    "dtype": "dtype",
    "max-num-seqs": "max_sequences",
    "max-num-queued-reqs": "max_queued",
    "gpu-memory-utilization": "memory_share",
    "kv-cache-memory-bytes": "kv_cache_bytes",
    "quantization": "quantization",
    "enable-prefix-caching": "prefix_caching",
    "tool-call-parser": "tool_parser",
    "enable-auto-tool-choice": "tool_parser",
    "reasoning-parser": "reasoning_parser",
    "speculative-config": "speculative",
    "enable-sleep-mode": "sleep_mode",
    **dict.fromkeys(("host", "port", "uds", "root-path", "api-key", "headless", "shutdown-timeout"), ""),
    **dict.fromkeys(("ssl-keyfile", "ssl-certfile", "ssl-ca-certs", "ssl-cert-reqs"), ""),
}


# What can be said of replicas that run elsewhere.
_REMOTE = frozenset({"urls", "discover", "source", "max_in_flight", *RemoteSettings.model_fields})


class VllmSettings(RemoteSettings):
    """A model served by vLLM: one that is launched here (`source`), or replicas that run elsewhere (`urls`,
    `discover`)."""

    urls: _Urls | None = None
    """Base URLs of vLLM servers, each once, all of which serve the model under the same name."""

    discover: Discover | None = None
    """Instead of `urls`: a name in DNS behind which there are replicas, `dns://vllm-headless:8000` for its addresses,
    `dns://_http._tcp.vllm` for its SRV records. Looked up again and again; `tls` makes the calls https."""

    source: SourcePath | None = None
    """Instead of `urls`: what vLLM loads. A folder in the Hugging Face layout (a relative path that exists starts at
    the config file's folder), a model's id on the Hugging Face hub, or `demo`: the bundled model."""

    python: SourcePath | None = None
    """Interpreter of the environment that has vLLM in it. Unset: the one that `upshift engine install vllm` made."""

    command: tuple[_Argument, ...] | None = Field(default=None, min_length=1, max_length=64)
    """Instead of `python`: the command that serves, to which the model and the options are added: `[vllm, serve]`."""

    environment: dict[_VariableName, str] = Field(default={}, max_length=64)
    """Environment variables of the engine, besides our own: `{CUDA_VISIBLE_DEVICES: "0,1"}`."""

    tensor_parallel: _Parallel | Literal["auto"] = "auto"
    """GPUs that each layer is split over. `auto`: the fewest on which the model fits with room to batch, 1
    where nobody can tell."""

    pipeline_parallel: _Parallel = 1
    """Groups of GPUs that the layers are dealt out to."""

    data_parallel: _Parallel = 1
    """Copies of the model inside this one engine, each on GPUs of its own."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Type of weights and activations. `auto`: the checkpoint's own."""

    max_sequences: Annotated[int, Field(strict=True, ge=1, le=65536)] | None = None
    """Answers computed at the same time. Unset: vLLM chooses by the device."""

    max_in_flight: MaxInFlight = "auto"
    """Requests sent to one server at once; others wait in the gateway. `auto` is `max_sequences` where that is given,
    otherwise as many as come."""

    max_queued: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 4096
    """Requests inside the engine, running and waiting, from which on it refuses further ones: the second line of
    defence behind the gateway's own queue."""

    memory_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of each GPU's memory that the engine may take. Unset: vLLM's own, 0.92."""

    kv_cache_bytes: Annotated[int, Field(strict=True, ge=1 << 20, le=1 << 50)] | None = None
    """Instead of `memory_share`: exact size of the KV cache, for each GPU. Unset on a CPU: a quarter of the free
    memory, at most 4 GiB."""

    quantization: _Word | None = None
    """How the weights are quantized: `fp8_per_tensor` makes one byte of each while they are loaded. Unset: as the
    checkpoint says."""

    prefix_caching: Annotated[bool, Field(strict=True)] = True
    """Whether prompts that begin alike are computed once."""

    tool_parser: _Word | None = None
    """The form in which the model writes tool calls, by vLLM's name (`hermes`, `llama3_json`, …). Unset: no tools."""

    reasoning_parser: _Word | None = None
    """The form in which the model writes its reasoning, by vLLM's name (`qwen3`, `deepseek_r1`, …)."""

    speculative: dict[str, Any] | None = Field(default=None, min_length=1)
    """vLLM's speculative decoding, as its own configuration: `{method: ngram, num_speculative_tokens: 4}`."""

    idle_stop_seconds: IdleSeconds = None
    """The engine is stopped when it had no request for so long, and started again by the next one. Unset: never."""

    sleep_mode: Annotated[bool, Field(strict=True)] = False
    """Whether an idle engine keeps its process and moves its weights to the machine's memory (vLLM's sleep mode), where
    otherwise it would be stopped. On GPUs alone; on a CPU it is stopped."""

    args: dict[_OptionName, Any] = Field(default={}, max_length=128)
    """Any further option of vLLM by its name without dashes: `{enforce-eager: true, swap-space: 8}`. `false` becomes
    `--no-NAME`, a list several values, a mapping JSON."""

    @property
    def places(self) -> tuple[str, ...]:
        """What serves it, for people: a source or URLs."""
        return self.urls or (self.discover or self.source or "",)

    @model_validator(mode="after")
    def _one_place(self) -> VllmSettings:
        if [self.source, self.urls, self.discover].count(None) != 2:
            text = "should have either source (vLLM is launched here), urls or discover (it runs elsewhere)"
            raise PydanticCustomError("one_engine", text)
        fields = type(self).model_fields.items()
        ours = [name for name, field in fields if name not in _REMOTE and getattr(self, name) != field.get_default()]
        if self.source is None and ours:
            text = "{names}: only with source; servers elsewhere have settings of their own"
            raise PydanticCustomError("not_our_engine", text, {"names": ", ".join(ours)})
        found = ("https:" if self.tls else "http:",) if self.discover else ()
        self.check_remote(self.urls or found)
        if self.python is not None and self.command is not None:
            raise PydanticCustomError("one_command", "should have python or command, not both")
        if self.sleep_mode and self.idle_stop_seconds is None:
            raise PydanticCustomError("no_idle_time", "sleep_mode needs idle_stop_seconds")
        if self.memory_share is not None and self.kv_cache_bytes is not None:
            raise PydanticCustomError("one_size", "should have memory_share or kv_cache_bytes, not both")
        return self

    @model_validator(mode="after")
    def _args_are_free(self) -> VllmSettings:
        for name in self.args:
            plain = name.removeprefix("no-")
            if plain in TAKEN_ARGS:
                instead = TAKEN_ARGS[plain]
                text = "args.{name}: " + ("say {instead} instead" if instead else "is the gateway's own affair")
                raise PydanticCustomError("taken_arg", text, {"name": name, "instead": instead})
        return self
