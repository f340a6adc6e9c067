"""All that routing keeps of one model: its upstreams, its plan, who waits, and where `graduate` stands.

Neighbours: policy.py (decides), admission.py (waits), upstream.py (what is decided about), router.py (acts).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from random import random
from time import localtime, perf_counter

from backends.base import InferenceRequest
from backends.errors import BackendError, BackendLoading, BackendOverloaded, InvalidRequest
from routing import ask as asking
from routing.admission import Admission, Place
from routing.ask import Ask
from routing.budget import RetryBudget
from routing.demand import wake, wanted
from routing.errors import NoRoom, NotCapable, Overloaded, RequestRejected, Unavailable
from routing.policy import INCAPABLE, REJECTED, Decision, Plan, decide
from routing.prediction import queue_seconds
from routing.recall import Recalls
from routing.signals import GGUF, Obstacle, Signals, Stage
from routing.ticket import Ticket
from routing.trace import Moment
from routing.tracefile import TraceFile
from routing.upstream import Upstream, UpstreamPool, free_in_seconds

# How long an upstream that refuses a request for now is left alone where it does not say.
REST_SECONDS = 0.25
# What an engine has left to do when its model moves takes so many times as long as usual, beside the other one.
LEFT_ANSWERS = 2.0

_ALIVE = (Obstacle.NONE, Obstacle.FULL, Obstacle.RESTING)
_COMING = (Obstacle.STARTING, Obstacle.ASLEEP)
_AROUND = (*_ALIVE, Obstacle.STARTING)


class Lane:
    """One model. `workers` share its load. Belongs to the event loop."""

    def __init__(self, pool: UpstreamPool, plan: Plan, workers: int = 1, trace: TraceFile | None = None) -> None:
        """With a `trace` every decision is recorded there."""
        self._workers = workers
        self._trace = trace
        self.stage = Stage(GGUF)
        self.recalls = Recalls()
        self.budget = RetryBudget(plan.retry.budget)
        self.admission = Admission(plan.queue, self._take, self._put_back, self._give_up)
        self._hour = 0
        self._hour_until = 0.0
        self.adopt(pool, plan)

    def adopt(self, pool: UpstreamPool, plan: Plan) -> None:
        """Goes on with another pool or plan of the same model."""
        self.pool = pool
        self.plan = plan
        self.budget.share = plan.retry.budget
        self.admission.settings = plan.queue
        self._known: tuple[Upstream, ...] = ()

    def _members(self) -> tuple[Upstream, ...]:
        """The upstreams of now. Members of the pool come and go; new ones learn what the plan says about them."""
        upstreams = self.pool.upstreams
        if upstreams is not self._known:
            self._known = upstreams
            for upstream in upstreams:
                upstream.adopt(self.plan.breaker, self.plan.first_token_target_seconds, self._workers)
            self._images_matter = any("images" in upstream.lacks for upstream in upstreams) or any(
                "images" in rule.when.features for rule in self.plan.rules
            )
        return upstreams

    # -- looking -------------------------------------------------------------------------------------------------------

    def signals(self, tried: Collection[Upstream] = ()) -> Signals:
        """Everything as it is now; `tried` are those that have failed at this request."""
        now = perf_counter()
        if now >= self._hour_until:
            # Looking at the calendar costs more than a decision.
            local = localtime()
            self._hour = local.tm_hour
            self._hour_until = now + 60 - local.tm_sec
        pool = self._members()
        upstreams = tuple([upstream.look(now, pool) for upstream in pool])
        if tried:
            upstreams = tuple(
                seen._replace(obstacle=Obstacle.TRIED) if upstream in tried else seen
                for upstream, seen in zip(pool, upstreams, strict=True)
            )
        outstanding = sum([upstream.outstanding for upstream in upstreams])
        if self._workers > 1:
            # Connections are spread evenly: the others have about as many.
            outstanding = max(outstanding, self._workers * sum([upstream.in_flight for upstream in upstreams]))
        chance = random()  # noqa: S311 - nobody gains by guessing it
        return Signals(now, upstreams, outstanding, len(self.admission), self.stage, self._hour, chance)

    def ask(self, request: InferenceRequest, ticket: Ticket) -> Ask:
        """What a decision about `request` goes by."""
        self._members()
        features = asking.features(request) if self._images_matter else request.features
        affinity = 0
        if self.plan.replicas == "prefix_affinity":
            affinity = asking.prefix_affinity(request)
        elif self.plan.replicas == "session_affinity":
            affinity = asking.session_affinity(ticket.session, ticket.key)
        tokens = asking.prompt_tokens(request)
        return Ask(self.pool.model, tokens, request.max_output_tokens, features, ticket.key, ticket.tier, affinity)

    def has_others(self, tried: Collection[Upstream], *, patient: bool = False) -> bool:
        """Whether an upstream that is not among `tried` is up, or coming up. One that sleeps would be woken: a GGUF
        engine is there in a moment, vLLM only for those who are `patient`."""
        now = perf_counter()
        others = [upstream.look(now) for upstream in self.pool.upstreams if upstream not in tried]
        return any(
            (patient or other.kind == GGUF) if other.obstacle is Obstacle.ASLEEP else other.obstacle in _AROUND
            for other in others
        )

    # -- places --------------------------------------------------------------------------------------------------------

    def quick(self) -> Upstream | None:
        """The one upstream, counted, where there is nothing to decide and nobody waits: what nearly every model has."""
        upstreams = self.pool.upstreams
        if upstreams is not self._known:
            self._members()
        if len(upstreams) != 1 or self.plan.rules or self.admission.queue.places:
            return None
        upstream = upstreams[0]
        if not upstream.takes_more:
            return None
        upstream.in_flight += 1
        return upstream

    def _take(self, ask: Ask, ticket: Ticket) -> Place | None:
        """An upstream for a request, counted, and why this one; None while it has to wait. Raises RequestRejected and
        NotCapable."""
        signals = self.signals(ticket.tried)
        decision = decide(self.plan, signals, ask)
        moved, self.stage = decision.stage.kind != self.stage.kind, decision.stage
        for index in wanted(self.plan, signals, ask, decision):
            wake(self.pool.upstreams[index])
        if not decision.upstreams:
            self._refuse(decision, ask)
            return None
        if self._trace is not None:
            labels = [upstream.label for upstream in self.pool.upstreams]
            self._trace.add(self.plan, Moment(labels, signals, ask, decision))
        upstream = self.pool.upstreams[decision.upstreams[0]]
        upstream.in_flight += 1
        upstream.breaker.begin(signals.now)
        if moved and upstream.kind == self.stage.kind:
            room = sum(other.room for other in self.pool.upstreams if other.kind == upstream.kind)
            self.recalls.call(upstream.kind, room)
        if ticket.tried:
            return upstream, ticket.elsewhere
        return upstream, decision.reason

    def crowd(self, upstream: Upstream, now: float) -> int:
        """Of how many requests one that is sent there now is one; 0 where its answer will say nothing."""
        return crowd_of(upstream, self.pool.upstreams, self.stage, now)

    def give_back(self, upstream: Upstream) -> None:
        """A place on `upstream` is free again."""
        upstream.in_flight -= 1
        if self.admission.queue.places:
            self.admission.wake()

    def _put_back(self, upstream: Upstream) -> None:
        """The same of a place to which nothing was sent: if that was to be a trial, the next one is."""
        upstream.breaker.undecided()
        self.give_back(upstream)

    def _refuse(self, decision: Decision, ask: Ask) -> None:
        if decision.reason == REJECTED:
            raise RequestRejected(self.pool.model)
        if decision.reason == INCAPABLE:
            lacking = {upstream.kind: ask.features & upstream.lacks for upstream in self.pool.upstreams}
            raise NotCapable(self.pool.model, lacking)

    def _give_up(self, ask: Ask, ticket: Ticket, over: bool) -> Exception | None:
        """Why a request that got no place should not wait any longer; None where it should. `over`: it may not."""
        able = [upstream for upstream in self.pool.upstreams if ask.features.isdisjoint(upstream.lacks)]
        now = perf_counter()
        obstacles = {upstream: upstream.look(now).obstacle for upstream in able if upstream not in ticket.tried}
        alive = any(obstacle in _ALIVE for obstacle in obstacles.values())
        starting = [upstream for upstream, obstacle in obstacles.items() if obstacle in _COMING]
        if not alive and not starting:
            if Obstacle.NO_ROOM in obstacles.values():
                return NoRoom(self.pool.model)
            return Unavailable(self.pool.model, free_in_seconds(able, now))
        if not over and not self._rests_too_long(obstacles, ticket, now):
            return None
        if not alive:
            backend = starting[0].backend
            progress = float(getattr(backend, "progress", 0.0))
            return BackendLoading("The model is loading.", backend=backend.name, progress=progress)
        return Overloaded(self.pool.model, self._free_in_seconds(obstacles, now))

    def _rests_too_long(self, obstacles: Mapping[Upstream, Obstacle], ticket: Ticket, now: float) -> bool:
        """Whether all that could serve want to be left alone for longer than a request may wait."""
        until = ticket.entered_at + self.plan.queue.max_wait_seconds
        return all(
            obstacle is Obstacle.RESTING and now + upstream.breaker.free_in_seconds(now) > until
            for upstream, obstacle in obstacles.items()
            if obstacle in _ALIVE or obstacle in _COMING
        )

    def _free_in_seconds(self, upstreams: Collection[Upstream], now: float) -> float:
        """When it makes sense to ask again: by the answers that are ahead, and by what upstreams said themselves."""
        signals = self.signals()
        kinds = {upstream.kind for upstream in upstreams}
        busy = min(queue_seconds(kind, signals) for kind in kinds)
        resting = min(upstream.breaker.free_in_seconds(now) for upstream in upstreams)
        return min(max(busy, resting, 1.0), 60.0)

    # -- what became of a request --------------------------------------------------------------------------------------

    def failed(self, upstream: Upstream, error: BackendError) -> None:
        """A request has failed there, before its answer began or in its middle."""
        now = perf_counter()
        if isinstance(error, BackendOverloaded | BackendLoading):
            seconds = REST_SECONDS if error.retry_after_seconds is None else error.retry_after_seconds
            upstream.breaker.rest(now, seconds)
        elif isinstance(error, InvalidRequest):
            upstream.breaker.succeeded(now)  # it answered
        else:
            upstream.failed(now)


def crowd_of(upstream: Upstream, beside: Iterable[Upstream], stage: Stage, now: float) -> int:
    """How many requests `upstream` has. While others of those `beside` it are at work on the same cores, its answers
    say nothing about it: 0. Unless the model is at `upstream`, and what was left at the others when it moved there has
    had the time to end: then what they have is there to stay, whichever engine is used, and counts as well."""
    if not upstream.shares_cores:
        return upstream.in_flight
    others = [other for other in beside if other.shares_cores and other.in_flight and other is not upstream]
    if not others:
        return upstream.in_flight
    left = max([other.pace.service_seconds or 0.0 for other in others])
    if stage.kind != upstream.kind or now < stage.since + LEFT_ANSWERS * left:
        return 0
    return upstream.in_flight + sum([other.in_flight for other in others])
