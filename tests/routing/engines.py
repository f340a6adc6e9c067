"""Two engines and their clients in virtual time, under the real policies: a crossover in a tenth of a second.

An engine works in turns, as ours and vLLM do: a turn computes the prompts that have come and one token for each answer
under way, and its length is `turn + each * answers + prompt * prompts`. While several engines that share cores work,
each gets its share of the processor. Deterministic. Neighbours: test_crossover.py; bench_crossover.py is the same with
real engines.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise
from math import inf
from random import Random

from routing.ask import Ask
from routing.lane import crowd_of
from routing.policy import Plan, decide
from routing.signals import GGUF, Signals, Stage
from routing.upstream import Upstream

TOKENS = 48
# How much longer turns take than by the engine's share, while others work on the same cores.
_WASTE = 1.2
_NEVER = (inf, inf)


@dataclass(slots=True, eq=False)
class Request:
    """One request of client number `client`. Times are virtual seconds, 0.0 while there is none."""

    client: int
    sent_at: float
    dispatched_at: float = 0.0
    in_flight: int = 0
    first_at: float = 0.0
    ended_at: float = 0.0
    left: int = TOKENS
    kind: str = ""


@dataclass(slots=True, eq=False)
class Engine:
    """Seconds of a turn, of each answer and each prompt in it."""

    upstream: Upstream
    turn: float
    each: float
    prompt: float
    arrived: deque[Request] = field(default_factory=deque)
    running: list[Request] = field(default_factory=list)
    working: bool = False

    def begin(self) -> float:
        """How long the next turn takes by itself; 0.0 where there is nothing to do."""
        if not self.arrived and not self.running:
            self.working = False
            return 0.0
        self.working = True
        prompts = len(self.arrived)
        self.running += self.arrived
        self.arrived.clear()
        return self.turn + self.each * (len(self.running) - prompts) + self.prompt * prompts

    def end(self, now: float) -> list[Request]:
        """The answers that this turn has ended."""
        for request in self.running:
            request.first_at = request.first_at or now
            request.left -= 1
        done = [request for request in self.running if not request.left]
        self.running = [request for request in self.running if request.left]
        return done


def _others(chance: Random) -> Iterator[tuple[float, float]]:
    """From when to when other programs hold the engines up."""
    now = 0.0
    while True:
        now += chance.expovariate(1 / 20)
        began, now = now, now + chance.expovariate(1 / 0.5)
        yield began, now


class Lab:
    """Closed-loop clients before `engines` under `plan`. A turn takes up to `noise` more or less, as a share of it.
    Where others use the machine, too, it takes three times as long: for a moment every twenty seconds or so (`busy`),
    or from and to the seconds in `held_up`."""

    def __init__(
        self, plan: Plan, engines: Sequence[Engine], *, seed: int = 0, noise: float = 0.0, busy: bool = False
    ) -> None:
        self.plan = plan
        self.engines = engines
        self._chance, self._noise = Random(seed), noise
        self._others = _others(Random(seed)) if busy else iter(())
        self.held_up = next(self._others, _NEVER)
        self.stage = Stage(GGUF)
        self.now = 0.0
        self.done: list[Request] = []
        self._turns: list[tuple[float, int, Engine]] = []
        self._numbers = count()

    def step(self, clients: int, seconds: float) -> list[Request]:
        """So many clients for so long; then all wait for their last answers. What was answered meanwhile."""
        before, until = len(self.done), self.now + seconds
        for number in range(clients):
            self._send(Request(number, self.now))
        while self._turns:
            self.now, _, engine = heapq.heappop(self._turns)
            for request in engine.end(self.now):
                self._finish(engine, request)
                if self.now < until:
                    self._send(Request(request.client, self.now))
            self._go_on(engine)
        return self.done[before:]

    def _send(self, request: Request) -> None:
        upstreams = tuple(engine.upstream.look(self.now) for engine in self.engines)
        outstanding = sum(upstream.outstanding for upstream in upstreams)
        decision = decide(self.plan, Signals(self.now, upstreams, outstanding, 0, self.stage, 12, 0.0), Ask("m"))
        moved, self.stage = decision.stage.kind != self.stage.kind, decision.stage
        engine = self.engines[decision.upstreams[0]]
        engine.upstream.in_flight += 1
        request.dispatched_at, request.kind = self.now, engine.upstream.kind
        beside = [other.upstream for other in self.engines]
        request.in_flight = crowd_of(engine.upstream, beside, self.stage, self.now)
        engine.arrived.append(request)
        if not engine.working:
            self._go_on(engine)
        if moved:
            self._recall(engine)

    def _recall(self, to: Engine) -> None:
        """What the others have not begun goes along, as in routing/recall.py."""
        for engine in self.engines:
            if engine is to or engine.upstream.kind == to.upstream.kind:
                continue
            back = [*engine.arrived, *(request for request in engine.running if not request.first_at)]
            engine.arrived.clear()
            engine.running = [request for request in engine.running if request.first_at]
            for request in back:
                engine.upstream.in_flight -= 1
                self._send(request)

    def _finish(self, engine: Engine, request: Request) -> None:
        request.ended_at = self.now
        took, first = self.now - request.dispatched_at, request.first_at - request.dispatched_at
        engine.upstream.answered(self.now, took, first, TOKENS, request.in_flight)
        engine.upstream.in_flight -= 1
        self.done.append(request)

    def _go_on(self, engine: Engine) -> None:
        seconds = engine.begin()
        if not engine.working:
            return
        if self._disturbed(engine):
            seconds *= 2 * _WASTE
        seconds *= 1 + self._noise * self._chance.uniform(-1, 1)
        while self.held_up[1] < self.now:
            self.held_up = next(self._others, _NEVER)
        if self.held_up[0] <= self.now:
            seconds *= 3
        heapq.heappush(self._turns, (self.now + seconds, next(self._numbers), engine))

    def _disturbed(self, engine: Engine) -> bool:
        """Whether another one is at work on the same cores."""
        shared = engine.upstream.shares_cores
        return shared and any(e.upstream.shares_cores and e.working for e in self.engines if e is not engine)


@dataclass(frozen=True, slots=True)
class Figures:
    """`p95` of the times to the first token, in seconds."""

    tokens_per_second: float
    p95: float


def figures(requests: Sequence[Request]) -> Figures:
    """Of one step, or of all."""
    first = sorted(request.first_at - request.sent_at for request in requests)
    seconds = max(request.ended_at for request in requests) - min(request.sent_at for request in requests)
    return Figures(TOKENS * len(requests) / seconds, first[int(len(first) * 0.95)])


def moves(requests: Sequence[Request]) -> Iterator[tuple[str, str]]:
    """From which kind to which, in the order in which the requests were sent."""
    ordered = sorted(requests, key=lambda request: (request.sent_at, request.client))
    return ((a.kind, b.kind) for a, b in pairwise(ordered) if a.kind != b.kind)
