"""Settings of routing: which backend serves a request, and what comes before that choice.

Neighbours: schema.py (the tree that holds this), routing/policy.py (what it means).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from config.limits import TierName
from config.tree import ModelName, Profile, SourcePath, Tree

Policy = Literal["graduate", "gguf_first", "vllm_first", "fastest", "least_load"]
ReplicaPolicy = Literal["least_load", "power_of_two", "prefix_affinity", "session_affinity"]
Feature = Literal["tools", "logprobs", "structured_output", "images"]
KeyName = Annotated[str, StringConstraints(min_length=1, max_length=64, strict=True)]
Requests = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
Seconds = Annotated[float, Field(strict=True, ge=0, le=86400)]


# Of one backend. `auto`: what its engine computes at once where that is configured, otherwise as many as come.
# `adaptive`: found out by the time to the first token.
MaxInFlight = Annotated[int, Field(strict=True, ge=1, le=100_000)] | Literal["auto", "adaptive"]


class GraduateSettings(Tree):
    """When the policy `graduate` moves a model from GGUF to vLLM and back."""

    to_vllm_at: Requests = 4
    """Requests in flight for the model, the new one included, from which on vLLM is preferred."""

    back_to_gguf_at: Annotated[int, Field(strict=True, ge=0, le=1_000_000)] = 2
    """Not more than so many for `dwell_seconds` on end, and GGUF is preferred again."""

    dwell_seconds: Seconds = 10.0
    """Shortest time between two moves."""

    @model_validator(mode="after")
    def _hysteresis(self) -> GraduateSettings:
        if self.back_to_gguf_at >= self.to_vllm_at:
            text = "back_to_gguf_at should be less than to_vllm_at, or the model would move with every request"
            raise PydanticCustomError("no_hysteresis", text)
        return self


class WhenSettings(Tree):
    """What a rule asks of a request. Everything given must hold."""

    prompt_tokens_over: Annotated[int, Field(strict=True, ge=0)] | None = None
    """The prompt is longer, by estimate: four bytes of the request's body count as a token."""

    max_tokens_over: Annotated[int, Field(strict=True, ge=0)] | None = None
    """The request asks for more tokens than this, or sets no bound."""

    features: tuple[Feature, ...] = Field(default=(), max_length=4)
    """It uses one of these: `tools`, `logprobs`, `structured_output`, `images`."""

    key: KeyName | None = None
    """The name of its API key."""

    key_tier: TierName | None = None
    """The tier of its API key."""

    model: ModelName | None = None
    """The configured name of its model, whatever alias it used."""

    profile: Profile | None = None
    """The profile that the gateway runs with."""

    gpu: Annotated[bool, Field(strict=True)] | None = None
    """Whether the machine has a GPU."""

    hours: (
        tuple[Annotated[int, Field(strict=True, ge=0, le=23)], Annotated[int, Field(strict=True, ge=0, le=24)]] | None
    ) = None
    """From the first hour to before the second one, local time; [22, 6] goes over midnight."""

    gguf_queue_seconds_over: Seconds | None = None
    """It would wait longer than this for the GGUF engine, by estimate."""

    vllm_queue_seconds_over: Seconds | None = None
    """It would wait longer than this for vLLM, by estimate."""

    @model_validator(mode="after")
    def _asks_for_something(self) -> WhenSettings:
        if not self.model_fields_set:
            raise PydanticCustomError("no_condition", "should name at least one condition")
        return self


class RuleSettings(Tree):
    """One rule. The first one that matches decides, before the policy."""

    when: WhenSettings
    """The conditions."""

    use: Literal["gguf", "vllm", "reject"]
    """The backend that serves such a request, or `reject`: it is refused with 403."""


class QueueSettings(Tree):
    """Where requests of a model wait while none of its backends can take one more."""

    max_waiting: Annotated[int, Field(strict=True, ge=0, le=1_000_000)] = 256
    """Requests of one model that may wait; further ones get 503. Each worker has its equal share."""

    max_wait_seconds: Seconds = 30.0
    """Longest wait; then 503."""

    ping_seconds: Annotated[float, Field(strict=True, gt=0, le=3600)] = 5.0
    """A stream that waits so long gets its headers and a comment with its position, again and again until it starts."""

    priority: dict[TierName, Annotated[int, Field(strict=True, ge=-1000, le=1000)]] = Field(default={}, max_length=100)
    """By tier of the key: who waits with a higher number goes first. Others have 0."""


class RetrySettings(Tree):
    """What happens when a backend fails before the first byte of its answer."""

    attempts: Annotated[int, Field(strict=True, ge=1, le=10)] = 3
    """Times that a backend is asked for one request, the first one included."""

    budget: Annotated[float, Field(strict=True, ge=0, le=1)] = 0.2
    """Further attempts of a model, as a share of its requests, besides the first ten. Unspent ones are kept, up to
    500."""

    hedge_after_seconds: Annotated[float, Field(strict=True, gt=0, le=3600)] | None = None
    """A second backend is asked when the first one has not begun to answer by then, and the faster one is used. Unset:
    never."""


class BreakerSettings(Tree):
    """When a backend that fails is left alone, and how it comes back."""

    failures: Annotated[int, Field(strict=True, ge=1, le=1000)] = 5
    """Failures in a row that open the breaker."""

    open_seconds: Annotated[float, Field(strict=True, gt=0, le=3600)] = 1.0
    """How long it stays open at first; doubled with each failed trial, up to `max_open_seconds`."""

    max_open_seconds: Annotated[float, Field(strict=True, gt=0, le=3600)] = 30.0
    """Longest time without a trial."""

    slow_start_seconds: Seconds = 10.0
    """How long one that has come back takes to get its full share, where another one can serve meanwhile."""


class TraceSettings(Tree):
    """A record of the decisions, without anything that was said."""

    file: SourcePath
    """Where to write, a line of JSON for each decision; a relative path starts at the config file's folder."""

    max_bytes: Annotated[int, Field(strict=True, ge=4096, le=1 << 40)] = 16 * 1024 * 1024
    """Size at which the file is turned over."""

    keep: Annotated[int, Field(strict=True, ge=1, le=100)] = 3
    """Files that are kept besides the current one."""


class ModelRoutingSettings(Tree):
    """What one model does differently."""

    policy: Policy | None = None
    """Instead of `routing.policy`."""

    replicas: ReplicaPolicy | None = None
    """Instead of `routing.replicas`."""

    graduate: GraduateSettings | None = None
    """Instead of `routing.graduate`."""


class RoutingSettings(Tree):
    """Which backend serves a request of a model that has several."""

    policy: Policy | None = None
    """`graduate`: GGUF while it is quiet, vLLM when it is busy. `gguf_first`, `vllm_first`: that one while it can take
    more. `fastest`: the one that has the first lines of an answer soonest. `least_load`: the least busy one of both
    kinds. Unset: `graduate` in profile `auto`, `vllm_first` in `prod`, `gguf_first` in `dev`."""

    replicas: ReplicaPolicy = "least_load"
    """Which of several vLLM servers: the least busy one, the less busy of two chosen by chance, the one that knows the
    beginning of the prompt, or the one that has served the session (X-Session-ID, otherwise the key)."""

    graduate: GraduateSettings = GraduateSettings()
    """Thresholds of `graduate`."""

    rules: tuple[RuleSettings, ...] = Field(default=(), max_length=100)
    """Exceptions to the policy. The first one that matches decides."""

    queue: QueueSettings = QueueSettings()
    """Where requests wait."""

    retry: RetrySettings = RetrySettings()
    """Further attempts."""

    breaker: BreakerSettings = BreakerSettings()
    """Leaving failing backends alone."""

    first_token_target_seconds: Annotated[float, Field(strict=True, gt=0, le=3600)] = 2.0
    """Where `max_in_flight` is `adaptive`: a backend gets more requests at once until first tokens take longer."""

    trace: TraceSettings | None = None
    """Where decisions are recorded for `upshift replay`. Unset: nowhere."""
