"""The settings tree: frozen, typed, unknown keys refused, units in names.

Neighbours: load.py (fills it from YAML, environment and command line), example.yaml (every key, loaded by a test).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from config.auth import Auth, AuthSettings
from config.edge import AdminSettings, LogSettings, TlsSettings, TracingSettings
from config.limits import LimitsSettings
from config.redis import RedisSettings
from config.remote import RemoteSettings
from config.routing import MaxInFlight, ModelRoutingSettings, RoutingSettings
from config.tree import DEMO_SOURCE, Endpoint, HostName, IdleSeconds, ModelName, Network, Profile, SourcePath, Tree
from config.vllm import VllmSettings


class GgufSettings(RemoteSettings):
    """A model served by a GGUF engine: ours on a file (`source`), or one that runs elsewhere (`openai`, `ollama`)."""

    source: SourcePath | None = None
    """`demo` (the bundled model) or the path of a .gguf file; a relative path starts at the config file's folder."""

    openai: Endpoint | None = None
    """Instead of `source`: base URL of an OpenAI endpoint that serves the model under the same name (llama-server)."""

    ollama: Endpoint | None = None
    """Instead of `source`: URL of an Ollama server, which is called by its native API."""

    model: ModelName | None = None
    """The model's name in Ollama, `phi3` or `llama3:8b`. Unset: the same name as here."""

    parallel: Annotated[int, Field(strict=True, ge=1, le=256)] | Literal["auto"] = "auto"
    """Answers computed at the same time. `auto` fits the machine."""

    threads: Annotated[int, Field(strict=True, ge=1, le=512)] | Literal["auto"] = "auto"
    """CPU threads of the engine. `auto` is the number of usable physical cores less one."""

    max_in_flight: MaxInFlight = "auto"
    """Requests sent to it at once; others wait in the gateway. `auto` is `parallel` where that is a number."""

    idle_stop_seconds: IdleSeconds = None
    """The engine is stopped when it had no request for so long, and started again by the next one. Unset: never."""

    @model_validator(mode="after")
    def _one_engine(self) -> GgufSettings:
        if [self.source, self.openai, self.ollama].count(None) != 2:
            text = "should have either source (a GGUF file), openai or ollama (the URL of a server)"
            raise PydanticCustomError("one_engine", text)
        ours = (self.parallel, self.threads, self.idle_stop_seconds)
        if self.source is None and ours != ("auto", "auto", None):
            text = (
                "parallel, threads and idle_stop_seconds belong to source; a server elsewhere has settings of its own"
            )
            raise PydanticCustomError("not_our_engine", text)
        if self.model is not None and self.ollama is None:
            raise PydanticCustomError("not_ollama", "model belongs to ollama")
        self.check_remote(() if self.url is None else (self.url,))
        return self

    @property
    def url(self) -> str | None:
        """Where it runs, if that is elsewhere."""
        return self.openai or self.ollama


class ModelSettings(Tree):
    """One logical model: the name clients use, and what serves it."""

    name: ModelName
    """The name clients send as `model`, and the `model` label of every metric."""

    aliases: tuple[ModelName, ...] = Field(default=(), max_length=64)
    """Further names for the same model, such as the one an application has built in."""

    context_tokens: Annotated[int, Field(strict=True, ge=64, le=16_777_216)] | None = None
    """Longest prompt plus answer, in tokens. Unset: what the model was trained for; with GGUF at most 4,096, with vLLM
    as much of it as fits."""

    gguf: GgufSettings | None = None
    """The GGUF engine that serves the model."""

    vllm: VllmSettings | None = None
    """The vLLM that serves the model. With `gguf` beside it the router chooses for each request."""

    routing: ModelRoutingSettings = ModelRoutingSettings()
    """What the router does differently for this model."""

    @model_validator(mode="after")
    def _served_by_something(self) -> ModelSettings:
        if self.gguf is None and self.vllm is None:
            raise PydanticCustomError("no_engine", "should have gguf, vllm or both")
        return self

    @property
    def artifacts(self) -> tuple[ModelSettings, ...]:
        """The same model by one engine each: GGUF before vLLM."""
        # How requests are routed is no matter of the engines.
        alone = self.model_copy(update={"routing": ModelRoutingSettings()})
        by_gguf, by_vllm = alone.model_copy(update={"vllm": None}), alone.model_copy(update={"gguf": None})
        return tuple(one for one in (by_gguf, by_vllm) if one.gguf is not None or one.vllm is not None)

    @property
    def launched(self) -> bool:
        """Whether an engine for it is launched here."""
        return any(engine is not None and engine.source is not None for engine in (self.gguf, self.vllm))

    @property
    def places(self) -> tuple[str, ...]:
        """What serves it, for people: files and URLs."""
        gguf = () if self.gguf is None else (self.gguf.source or self.gguf.url or "",)
        return (*gguf, *(() if self.vllm is None else self.vllm.places))


class ServerSettings(Tree):
    """The listener and what one client may take from it."""

    host: HostName = "127.0.0.1"
    """Address to listen on. On a loopback address only requests addressed to loopback names are answered."""

    port: Annotated[int, Field(strict=True, ge=0, le=65535)] = 8484
    """TCP port; 0 lets the system choose one."""

    workers: Annotated[int, Field(strict=True, ge=1, le=256)] | Literal["auto"] = 1
    """Processes that serve clients, each with an event loop of its own. `auto` is the number of usable cores."""

    allowed_hosts: tuple[HostName, ...] = Field(default=(), max_length=64)
    """Host names accepted on a loopback address besides loopback ones, for a reverse proxy that passes its own on."""

    max_connections: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 4096
    """Client connections held at once; further ones are answered 503 and closed. Each worker has its equal share."""

    max_connections_per_address: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] | None = None
    """The same for one address (IPv6: /64 network). Unset: no bound of its own. `trusted_proxies` are not counted."""

    trusted_proxies: tuple[Network, ...] = Field(default=(), max_length=64)
    """Addresses and networks of reverse proxies: X-Forwarded-For is believed from them alone, and their connections are
    many clients'."""

    max_body_bytes: Annotated[int, Field(strict=True, ge=1024, le=1 << 30)] = 10 * 1024 * 1024
    """Largest request body."""

    max_bodies_bytes: Annotated[int, Field(strict=True, ge=1024, le=1 << 40)] = 256 * 1024 * 1024
    """Memory for the bodies of requests that no engine has answered yet, those of more than 64 KiB; further ones are
    answered 503. One key may take half of it. Each worker has its equal share, in which there is always room for
    one."""

    isolate_caches: Annotated[bool, Field(strict=True)] = False
    """Whether keys are kept from sharing prefix caches: by its timing a shared one tells who else sent the same."""

    remote_media: Annotated[bool, Field(strict=True)] = False
    """Whether images, audio and video may be named by URL, which the engine then fetches from where it runs."""

    body_timeout_seconds: Annotated[float, Field(strict=True, gt=0, le=3600)] = 30.0
    """Longest time a request body may take to arrive."""

    response_timeout_seconds: Annotated[float, Field(strict=True, gt=0, le=86400)] = 600.0
    """Longest wait for the engine's first byte; a long prompt on a small machine takes minutes."""

    idle_timeout_seconds: Annotated[float, Field(strict=True, gt=0, le=86400)] = 120.0
    """Longest pause inside an answer, of the engine or of a client that does not read."""

    drain_seconds: Annotated[float, Field(strict=True, ge=0, le=3600)] = 30.0
    """How long running answers may go on after SIGTERM or SIGINT."""

    drain_delay_seconds: Annotated[float, Field(strict=True, ge=0, le=3600)] = 0.0
    """How long before that new connections are still welcome, while /readyz answers 503: a balancer has to see it."""


def _demo(settings: dict[str, Any]) -> tuple[ModelSettings, ...]:
    vllm = VllmSettings(source=DEMO_SOURCE, tool_parser="hermes") if settings.get("profile") == "prod" else None
    return (ModelSettings(name="demo", gguf=GgufSettings(source=DEMO_SOURCE), vllm=vllm),)


class Settings(Tree):
    """Everything Upshift can be told."""

    profile: Profile = "auto"
    """`dev`: GGUF alone. `prod`: vLLM first, GGUF while vLLM starts and when it is down. `auto`: what this machine can
    run, and for each request what the policy chooses."""

    server: ServerSettings = ServerSettings()
    """The listener."""

    models: tuple[ModelSettings, ...] = Field(default_factory=_demo, min_length=1, max_length=1000)
    """The models served. Unset: the bundled demo model, in profile `prod` on vLLM too."""

    routing: RoutingSettings = RoutingSettings()
    """Which backend serves a request of a model that has several."""

    auth: Auth | None = None
    """API keys, or `none`: everybody who reaches the listener may use it. Unset is `none` on a loopback address and
    refused on any other."""

    limits: LimitsSettings = LimitsSettings()
    """What each key may take."""

    redis: RedisSettings = RedisSettings()
    """The Redis that replicas of this gateway share."""

    tls: TlsSettings | None = None
    """TLS on the listener. Unset: plain HTTP."""

    admin: AdminSettings | None = None
    """A listener for operators. Unset: /metrics and /admin are on the main one."""

    log: LogSettings = LogSettings()
    """What is written."""

    tracing: TracingSettings | None = None
    """OpenTelemetry spans. Unset: none."""

    @model_validator(mode="after")
    def _names_fit(self) -> Settings:
        owners: dict[str, str] = {}
        for index, model in enumerate(self.models):
            places: list[tuple[str, tuple[str | int, ...]]] = [(model.name, ("models", index, "name"))]
            places += [(alias, ("models", index, "aliases", number)) for number, alias in enumerate(model.aliases)]
            for name, place in places:
                if name in owners:
                    detail = {"place": place, "name": name, "owner": owners[name]}
                    raise PydanticCustomError("name_taken", "'{name}' is already used by models[{owner}]", detail)
                owners[name] = str(index)
        if isinstance(self.auth, AuthSettings) and self.auth.keys_store == "redis" and not self.redis.url:
            raise PydanticCustomError("no_redis", "keys_store: redis needs redis.url", {"place": ("auth",)})
        for name in self.limits.models:
            if all(name != model.name for model in self.models):
                detail = {"place": ("limits", "models", name), "name": name}
                raise PydanticCustomError("no_such_model", "there is no model '{name}' in models", detail)
        return self

    @model_validator(mode="after")
    def _rules_name_what_exists(self) -> Settings:
        known = {"model": {model.name for model in self.models}, "key_tier": self.limits.tiers.keys()}
        for index, rule in enumerate(self.routing.rules):
            for field, names in known.items():
                name = getattr(rule.when, field)
                if name is not None and name not in names:
                    detail = {"place": ("routing", "rules", index, "when", field), "name": name}
                    where = "models" if field == "model" else "limits.tiers"
                    raise PydanticCustomError("no_such_name", f"there is no '{{name}}' in {where}", detail)
        return self
