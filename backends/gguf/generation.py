"""One choice of one request on its way through the engine, and what it gives off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from backends.gguf.constrain import Grammar
from backends.gguf.sampler import SamplingParams, TokenLogprob, TokenSampler
from backends.gguf.scheduler import Sequence
from backends.gguf.text import TextStream


@dataclass(slots=True)
class Output:
    """What one step added to one choice. `finish_reason` is "stop", "length" or "error" once it has ended."""

    index: int
    text: str
    token: int | None = None
    logprob: TokenLogprob | None = None
    finish_reason: str | None = None
    error: str | None = None


@dataclass(slots=True, eq=False)
class Generation:
    """One choice of one request. `deliver` is called on the event loop with each Output."""

    index: int
    prompt: list[int]
    max_tokens: int
    params: SamplingParams
    stop: tuple[str, ...]
    deliver: Callable[[Output], None]
    streamed: bool
    grammar: Grammar | None = None
    salt: str | None = None
    cancelled: bool = False
    completion_tokens: int = 0
    sequence: Sequence = field(init=False)
    text: TextStream = field(init=False)
    sampler: TokenSampler | None = None
    held: list[Output] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sequence = Sequence(self.prompt, self.max_tokens, salt=self.salt or "")
        self.text = TextStream(self.stop)

    @property
    def cached_tokens(self) -> int:
        return self.sequence.cached_tokens
