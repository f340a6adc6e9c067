"""Settings of routing: which backend serves a request, and what comes before that choice.

Neighbours: schema.py (the tree that holds this), routing/policy.py (what it means).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from config.limits import TierName
from config.tree import ModelName, Profile, Tree

Policy = Literal["graduate", "gguf_first", "vllm_first", "fastest", "least_load"]
ReplicaPolicy = Literal["least_load", "power_of_two", "prefix_affinity", "session_affinity"]
Feature = Literal["tools", "logprobs", "structured_output", "images"]
KeyName = Annotated[str, StringConstraints(min_length=1, max_length=64, strict=True)]
Requests = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
Seconds = Annotated[float, Field(strict=True, ge=0, le=86400)]


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
    more. `fastest`: the shortest predicted time to the first token. `least_load`: the least busy one of both kinds.
    Unset: `graduate` in profile `auto`, `vllm_first` in `prod`, `gguf_first` in `dev`."""

    replicas: ReplicaPolicy = "least_load"
    """Which of several vLLM servers: the least busy one, the less busy of two chosen by chance, the one that knows the
    beginning of the prompt, or the one that has served the session (X-Session-ID, otherwise the key)."""

    graduate: GraduateSettings = GraduateSettings()
    """Thresholds of `graduate`."""

    rules: tuple[RuleSettings, ...] = Field(default=(), max_length=100)
    """Exceptions to the policy. The first one that matches decides."""
