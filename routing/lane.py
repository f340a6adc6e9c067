"""All that routing keeps of one model: its upstreams, its plan, and where `graduate` stands.

Neighbours: policy.py (decides), upstream.py (what is decided about), router.py (acts).
"""

from __future__ import annotations

from collections.abc import Collection
from random import random
from time import localtime, perf_counter

from backends.base import InferenceRequest
from routing import ask as asking
from routing.ask import Ask
from routing.errors import NotCapable, RequestRejected
from routing.policy import GGUF, INCAPABLE, REJECTED, Decision, Plan, decide
from routing.signals import Obstacle, Signals, Stage
from routing.ticket import Ticket
from routing.upstream import Upstream, UpstreamPool


class Lane:
    """One model. Belongs to the event loop."""

    __slots__ = ("_hour", "_hour_until", "_images_matter", "plan", "pool", "stage")

    def __init__(self, pool: UpstreamPool, plan: Plan) -> None:
        self.stage = Stage(GGUF)
        self._hour = 0
        self._hour_until = 0.0
        self.adopt(pool, plan)

    def adopt(self, pool: UpstreamPool, plan: Plan) -> None:
        """Goes on with another pool or plan of the same model."""
        self.pool = pool
        self.plan = plan
        self._images_matter = any("images" in rule.when.features for rule in plan.rules) or any(
            "images" in upstream.lacks for upstream in pool.upstreams
        )

    @property
    def only(self) -> Upstream | None:
        """The one upstream that there is nothing to decide about; None where there is more to it."""
        upstreams = self.pool.upstreams
        return upstreams[0] if len(upstreams) == 1 and not self.plan.rules else None

    def signals(self, tried: Collection[Upstream] = ()) -> Signals:
        """Everything as it is now."""
        now = perf_counter()
        if now >= self._hour_until:
            # Looking at the calendar costs more than a decision.
            local = localtime()
            self._hour = local.tm_hour
            self._hour_until = now + 60 - local.tm_sec
        upstreams = tuple([upstream.look() for upstream in self.pool.upstreams])
        if tried:
            upstreams = tuple(
                seen._replace(obstacle=Obstacle.TRIED) if upstream in tried else seen
                for upstream, seen in zip(self.pool.upstreams, upstreams, strict=True)
            )
        outstanding = sum([upstream.outstanding for upstream in upstreams])
        return Signals(now, upstreams, outstanding, 0, self.stage, self._hour, random())  # noqa: S311 - nobody gains by guessing it

    def ask(self, request: InferenceRequest, ticket: Ticket) -> Ask:
        """What a decision about `request` goes by."""
        features = asking.features(request) if self._images_matter else request.features
        affinity = 0
        if self.plan.replicas == "prefix_affinity":
            affinity = asking.prefix_affinity(request)
        elif self.plan.replicas == "session_affinity":
            affinity = asking.session_affinity(ticket.session, ticket.key)
        tokens = asking.prompt_tokens(request)
        return Ask(self.pool.model, tokens, request.max_output_tokens, features, ticket.key, ticket.tier, affinity)

    def choose(self, ask: Ask, tried: Collection[Upstream] = ()) -> tuple[Upstream | None, str]:
        """The upstream for a request, and why; none while it has to wait. Raises RequestRejected and NotCapable."""
        signals = self.signals(tried)
        decision = decide(self.plan, signals, ask)
        self.stage = decision.stage
        if decision.upstreams:
            return self.pool.upstreams[decision.upstreams[0]], decision.reason
        self._refuse(decision, ask)
        return None, decision.reason

    def _refuse(self, decision: Decision, ask: Ask) -> None:
        if decision.reason == REJECTED:
            raise RequestRejected(self.pool.model)
        if decision.reason == INCAPABLE:
            lacking = {upstream.backend.name: ask.features & upstream.lacks for upstream in self.pool.upstreams}
            raise NotCapable(self.pool.model, lacking)
