"""Which upstreams serve a request, best first, and why. Pure: the same signals and request give the same decision.

Neighbours: signals.py and ask.py (all that is looked at), rules.py (exceptions), replicas.py (the order within one
kind), router.py (looks, decides, acts).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from config.routing import (
    BreakerSettings,
    GraduateSettings,
    ModelRoutingSettings,
    QueueSettings,
    RetrySettings,
    RoutingSettings,
    RuleSettings,
)
from config.tree import Profile
from routing.ask import Ask
from routing.fastest import fastest
from routing.replicas import ORDERS
from routing.rules import matches
from routing.signals import GGUF, VLLM, Obstacle, Signals, Stage, UpstreamSignals

# Reasons, besides the names of orders and of one policy: they are header values and labels.
ONLY = "only"  # the model has one upstream
QUIET, BUSY = "quiet", "busy"  # graduate, below and above its threshold
FASTEST = "fastest"
PREFERRED = "preferred"  # gguf_first, vllm_first
RULE = "rule"
CAPABILITY = "capability"  # the preferred kind lacks a feature that the request needs
SPILL = "spill"  # the preferred kind is full
BRIDGE = "bridge"  # the preferred kind is starting, or about to
FAILOVER = "failover"  # the preferred kind is down, or has just failed at this request
HEDGE = "hedge"  # the one that was asked first has not begun to answer in time
WAIT = "wait"  # nobody can take it now
REJECTED = "rejected"  # by a rule
INCAPABLE = "incapable"  # no upstream has the features that it needs


class Decision(NamedTuple):
    """Indices into the signals' upstreams, best first, and the reason for the first one: one word. Without upstreams
    the reason is WAIT, REJECTED or INCAPABLE. `stage` is where `graduate` or `fastest` stands from now on."""

    upstreams: tuple[int, ...]
    reason: str
    stage: Stage


DEFAULTS, NOTHING_OWN = RoutingSettings(), ModelRoutingSettings()
USUAL: dict[Profile, str] = {"dev": "gguf_first", "prod": "vllm_first", "auto": "graduate"}


@dataclass(frozen=True, slots=True)
class Plan:
    """How one model is routed."""

    policy: str
    replicas: str
    graduate: GraduateSettings
    rules: tuple[RuleSettings, ...]
    queue: QueueSettings
    retry: RetrySettings
    breaker: BreakerSettings
    first_token_target_seconds: float


def plan_for(
    model: str,
    routing: RoutingSettings = DEFAULTS,
    own: ModelRoutingSettings = NOTHING_OWN,
    profile: Profile = "auto",
    *,
    has_gpu: bool = False,
) -> Plan:
    """The plan of `model`: what it says itself, then what `routing` says, then what is usual for the profile; without
    the rules for other models, profiles and machines."""
    rules = tuple(
        rule
        for rule in routing.rules
        if rule.when.model in (None, model)
        and rule.when.profile in (None, profile)
        and rule.when.gpu in (None, has_gpu)
    )
    return Plan(
        own.policy or routing.policy or USUAL[profile],
        own.replicas or routing.replicas,
        own.graduate or routing.graduate,
        rules,
        routing.queue,
        routing.retry,
        routing.breaker,
        routing.first_token_target_seconds,
    )


def decide(plan: Plan, signals: Signals, ask: Ask) -> Decision:
    """The decision for one request."""
    upstreams = signals.upstreams
    able: Sequence[int] = range(len(upstreams))
    if ask.features:
        able = [index for index in able if ask.features.isdisjoint(upstreams[index].lacks)]
        if not able:
            return Decision((), INCAPABLE, signals.stage)
    for rule in plan.rules:
        if matches(rule.when, signals, ask):
            if rule.use == "reject":
                return Decision((), REJECTED, signals.stage)
            return _prefer(rule.use, RULE, _Choice(plan, signals, ask, able), signals.stage, spills=False)
    decision = POLICIES[plan.policy](_Choice(plan, signals, ask, able))
    # No policy has chosen where there is one upstream.
    return decision._replace(reason=ONLY) if len(upstreams) == 1 and decision.upstreams else decision


class _Choice(NamedTuple):
    """What a policy gets: `able` are the indices of the upstreams that have what the request needs."""

    plan: Plan
    signals: Signals
    ask: Ask
    able: Sequence[int]


def _graduate(choice: _Choice) -> Decision:
    stage = next_stage(choice.plan.graduate, choice.signals)
    return _prefer(stage.kind, BUSY if stage.kind == VLLM else QUIET, choice, stage)


def next_stage(settings: GraduateSettings, signals: Signals) -> Stage:
    """Where `graduate` stands when one more request has come. Up at once; down only when it has been quiet for the
    whole dwell time, for a batch that ends leaves a moment with nothing in flight."""
    kind, since, busy_at, _, before, _ = signals.stage
    now = signals.now
    load = signals.outstanding + signals.waiting + 1
    if load > settings.back_to_gguf_at:
        busy_at = now
    elif before > settings.back_to_gguf_at:
        # Nobody asked while a long batch was computed. It was busy until that ended.
        busy_at = max([busy_at, *(upstream.pace.measured_at for upstream in signals.upstreams)])
    if now - since >= settings.dwell_seconds:
        if kind == GGUF and load >= settings.to_vllm_at:
            return Stage(VLLM, now, now, crowd=load)
        if kind == VLLM and now - busy_at >= settings.dwell_seconds and load <= settings.back_to_gguf_at:
            return Stage(GGUF, now, busy_at, crowd=load)
    return Stage(kind, since, busy_at, crowd=load)


def _gguf_first(choice: _Choice) -> Decision:
    return _prefer(GGUF, PREFERRED, choice, choice.signals.stage)


def _vllm_first(choice: _Choice) -> Decision:
    return _prefer(VLLM, PREFERRED, choice, choice.signals.stage)


def _fastest(choice: _Choice) -> Decision:
    order, stage = fastest(choice.signals, _free(choice.signals.upstreams, choice.able))
    return Decision(order, FASTEST if order else WAIT, stage)


def _least_load(choice: _Choice) -> Decision:
    upstreams = choice.signals.upstreams
    free = _free(upstreams, choice.able)
    free.sort(key=[upstream.share for upstream in upstreams].__getitem__)
    return Decision(tuple(free), "least_load" if free else WAIT, choice.signals.stage)


POLICIES: dict[str, Callable[[_Choice], Decision]] = {
    "graduate": _graduate,
    "gguf_first": _gguf_first,
    "vllm_first": _vllm_first,
    "fastest": _fastest,
    "least_load": _least_load,
}


def _prefer(kind: str, reason: str, choice: _Choice, stage: Stage, *, spills: bool = True) -> Decision:
    """The upstreams of `kind` before the others. The others serve when none of `kind` can: at once where those are
    down, and where they are only full if it `spills`."""
    upstreams = choice.signals.upstreams
    first: list[int] = []
    second: list[int] = []
    hindered: set[Obstacle] = set()
    for index in choice.able:
        upstream = upstreams[index]
        if upstream.obstacle is _FREE:
            (first if upstream.kind == kind else second).append(index)
        elif upstream.kind == kind:
            hindered.add(upstream.obstacle)
    if not first:
        if not second or (not spills and not hindered.isdisjoint(_BUSY)):
            return Decision((), WAIT, stage)
        return Decision(_ordered(second, choice), _why_not(kind, hindered, choice), stage)
    return Decision(_ordered(first, choice) + _ordered(second, choice), reason, stage)


def _ordered(group: list[int], choice: _Choice) -> tuple[int, ...]:
    if len(group) > 1:
        group = ORDERS[choice.plan.replicas](group, choice.signals.upstreams, choice.ask, choice.signals.chance)
    return tuple(group)


def _why_not(kind: str, hindered: set[Obstacle], choice: _Choice) -> str:
    """The reason for another kind than `kind`."""
    if Obstacle.FULL in hindered or Obstacle.RESTING in hindered:
        return SPILL
    if Obstacle.STARTING in hindered or Obstacle.ASLEEP in hindered:
        return BRIDGE
    if hindered:
        return FAILOVER
    has_it = any(upstream.kind == kind for upstream in choice.signals.upstreams)
    return CAPABILITY if has_it else choice.plan.replicas


def _free(upstreams: Sequence[UpstreamSignals], able: Sequence[int]) -> list[int]:
    return [index for index in able if upstreams[index].obstacle is _FREE]


_FREE = Obstacle.NONE
# Up, and without room just now.
_BUSY = frozenset({Obstacle.FULL, Obstacle.RESTING})
