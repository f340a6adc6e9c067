"""The engines of all configurations that somebody still uses, and the messages that tell workers of them.

An engine is one artifact that is launched here. It is stopped when the configuration no longer has it and every worker
has let go of it. Neighbours: keeper.py (owns this), link.py (reads the messages),
gateway/served.py (what an artifact is).
"""

from __future__ import annotations

import asyncio
import base64
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from backends.base import BackendState
from backends.engine import EngineBackend
from backends.lifecycle import going_to_sleep
from config.schema import ModelSettings, Settings
from gateway.served import MakeBackends
from gateway.workers.channel import Channel
from gateway.workers.rest import Rest
from routing.upstream import Upstream


@dataclass(frozen=True, slots=True)
class Configuration:
    """What a worker is to serve: the settings, and by number the artifacts whose engines the keeper has."""

    generation: int
    settings: Settings
    engines: Mapping[int, ModelSettings]


def configuration_from(message: Mapping[str, Any]) -> Configuration:
    """The other end of `Engines.configuration`."""
    made: Configuration = pickle.loads(base64.b64decode(message["configuration"]))  # noqa: S301 - our own keeper's
    return made


@dataclass(slots=True, eq=False)
class Engine:
    """One engine; `users` are the workers that may have requests on it, with the generation that lent it to them."""

    number: int
    artifact: ModelSettings
    backend: EngineBackend
    upstream: Upstream
    wanted: bool = True
    users: dict[Channel, int] = field(default_factory=dict)
    rest: Rest = field(init=False)

    def __post_init__(self) -> None:
        self.rest = Rest(self.number, lambda: self.users, lambda: self.status)

    @property
    def status(self) -> dict[str, Any]:
        """What workers are told of it, by number: JSON has no other keys than text."""
        status = self.backend.status
        if self.rest.resting and status.state is BackendState.READY:
            status = going_to_sleep(status)
        return {str(self.number): asdict(status)}


class Engines:
    """Belongs to the keeper's event loop."""

    def __init__(self, make_backends: MakeBackends) -> None:
        self._make_backends = make_backends
        self._engines: dict[int, Engine] = {}
        self._generation = 0
        self._made = 0
        self.needed = True

    def adopt(self, settings: Settings) -> list[Engine]:
        """From now on those of `settings` are wanted, and `needed` says whether nothing else serves its models. Returns
        the engines that are new; nothing is started."""
        self._generation += 1
        new: list[Engine] = []
        wanted: list[Engine] = []
        artifacts = [artifact for model in settings.models for artifact in model.artifacts]
        launched = [artifact for artifact in artifacts if artifact.launched]
        self.needed = launched == artifacts
        for artifact in launched:
            found = next((engine for engine in self._engines.values() if engine.artifact == artifact), None)
            if found is not None:
                wanted.append(found)
                continue
            for backend in self._make_backends(artifact):
                if isinstance(backend, EngineBackend):
                    self._made += 1
                    new.append(Engine(self._made, artifact, backend, Upstream(backend)))
        for engine in self._engines.values():
            engine.wanted = engine in wanted
        self._engines |= {engine.number: engine for engine in new}
        return new

    @property
    def upstreams(self) -> list[tuple[str, Upstream]]:
        """(model, upstream) of every engine that is wanted."""
        return [(engine.artifact.name, engine.upstream) for engine in self._engines.values() if engine.wanted]

    def get(self, number: int) -> Engine | None:
        """The one with that number, as long as it is kept."""
        return self._engines.get(number)

    def keeps(self, engine: Engine) -> bool:
        """Whether it is neither stopped nor about to be."""
        return engine.number in self._engines

    def configuration(self, settings: Settings) -> dict[str, Any]:
        """The message that tells a worker what to serve, with the state of every engine in it."""
        wanted = [engine for engine in self._engines.values() if engine.wanted]
        made = Configuration(self._generation, settings, {engine.number: engine.artifact for engine in wanted})
        statuses: dict[str, Any] = {}
        for engine in wanted:
            statuses |= engine.status
        return {"configuration": base64.b64encode(pickle.dumps(made)).decode(), "engines": statuses}

    def lend(self, channel: Channel) -> None:
        """The worker behind `channel` may use what is wanted."""
        for engine in self._engines.values():
            if engine.wanted:
                engine.users[channel] = self._generation

    def give_up(self, channel: Channel, number: int, generation: int) -> None:
        """That worker, at `generation`, has let go of an engine. From before it was lent again, that is old news."""
        engine = self._engines.get(number)
        if engine is not None and generation >= engine.users.get(channel, 0):
            engine.users.pop(channel, None)
            engine.rest.hear(channel, may=True)

    def take_back(self, channel: Channel) -> None:
        """That worker is gone."""
        for engine in self._engines.values():
            engine.users.pop(channel, None)
            engine.rest.hear(channel, may=True)

    def pop_unused(self) -> list[Engine]:
        """Those that nobody wants or uses any more; they are to be stopped and are not kept from here on."""
        unused = [engine for engine in self._engines.values() if not engine.wanted and not engine.users]
        for engine in unused:
            del self._engines[engine.number]
        return unused

    @property
    def all(self) -> list[Engine]:
        """Everything that is kept."""
        return list(self._engines.values())


async def stop(engines: Iterable[Engine]) -> None:
    """Ends them, all at once."""
    await asyncio.gather(*(engine.backend.stop() for engine in engines), return_exceptions=True)
