"""Draws the next token of one sequence from its row of logits; alone or in a batch, the same seed draws the same.

Bias, penalties and bans are applied here to the row in place (OpenAI's and vLLM's formulae); the draw itself is an
argmax or llama.cpp's sampler chain (llama.py), repeated where a grammar forbids what it gave (constraint.py). Used by
runner.py, one `TokenSampler` per sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from backends.gguf.constraint import Constraint
from backends.gguf.llama import Context, SamplerChain, SamplerSettings

# As in vLLM: dividing logits by less overflows float32.
_GREEDY_BELOW = 1e-5

FloatRow = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to draw. Defaults are OpenAI's; `seed` None means a fresh one. `top_logprobs` None means no logprobs."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_tokens: int = 0
    ignore_eos: bool = False
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural logarithms under the model's own distribution, before temperature, penalties and bias (as vLLM's)."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class TokenSampler:
    """State of the drawing for one sequence: what was written so far and the C sampler chain. Call close()."""

    def __init__(
        self,
        params: SamplingParams,
        *,
        prompt: Sequence[int],
        end_tokens: frozenset[int],
        constraint: Constraint | None = None,
    ) -> None:
        """Owns `constraint`."""
        self._params = params
        self._constraint = constraint
        self._end_tokens = np.fromiter(end_tokens, dtype=np.int64)
        self._written: dict[int, int] = {}
        self._penalised = params.frequency_penalty != 0 or params.presence_penalty != 0
        self._seen = set(prompt) if params.repetition_penalty != 1 else None
        self._bias = (
            np.fromiter(params.logit_bias.keys(), dtype=np.int64),
            np.fromiter(params.logit_bias.values(), dtype=np.float32),
        )
        self._chain: SamplerChain | None = None
        if params.temperature >= _GREEDY_BELOW:
            self._chain = SamplerChain(
                SamplerSettings(params.temperature, params.top_k, params.top_p, params.min_p, params.seed)
            )
        self.wants_logprobs = params.top_logprobs is not None
        # Bans and an argmax are all there is to do: runner.py takes the argmax of a whole batch in one call.
        self.plain_greedy = not (
            self._chain or self._penalised or self._seen is not None or params.logit_bias or self.wants_logprobs
            or constraint
        )  # fmt: skip

    def ban(self, logits: FloatRow, written: int) -> None:
        """Makes tokens impossible that must not come after `written` tokens; in place."""
        if self._params.ignore_eos or written < self._params.min_tokens:
            logits[self._end_tokens] = -np.inf

    def draw(self, context: Context, logits: FloatRow, row: int, *, written: int) -> tuple[int, TokenLogprob | None]:
        """The next token after `written` ones. `logits` is row `row` of the batch just decoded, changed in place."""
        raw = logits.copy() if self.wants_logprobs else None
        self._adjust(logits)
        self.ban(logits, written)
        token = self._pick(context, logits, row)
        if self._constraint is not None:
            # Nearly always it wants what it may: looking at one token first spares looking at all of them.
            if not self._constraint.allows(token):
                token = self._pick(context, logits, row) if self._constraint.restrict(logits) else self._end()
            self._constraint.accept(token)
        if self._penalised:
            self._written[token] = self._written.get(token, 0) + 1
        if self._seen is not None:
            self._seen.add(token)
        return token, None if raw is None else _logprob(raw, token, self._params.top_logprobs or 0)

    def _pick(self, context: Context, logits: FloatRow, row: int) -> int:
        return int(logits.argmax()) if self._chain is None else context.sample(self._chain, row)

    def _end(self) -> int:
        return int(self._end_tokens.min())

    def _adjust(self, logits: FloatRow) -> None:
        """Bias, then penalties: vLLM's order."""
        params = self._params
        if len(self._bias[0]):
            logits[self._bias[0]] += self._bias[1]
        if self._seen is not None:
            seen = np.fromiter(self._seen, dtype=np.int64)
            values = logits[seen]
            factor = np.float32(params.repetition_penalty)
            logits[seen] = np.where(values > 0, values / factor, values * factor)
        if self._written:
            tokens = np.fromiter(self._written.keys(), dtype=np.int64)
            counts = np.fromiter(self._written.values(), dtype=np.float32)
            logits[tokens] -= counts * np.float32(params.frequency_penalty) + np.float32(params.presence_penalty)

    def close(self) -> None:
        """Idempotent; frees what is C's."""
        if self._chain is not None:
            self._chain.close()
        if self._constraint is not None:
            self._constraint.close()


def _logprob(logits: FloatRow, token: int, top: int) -> TokenLogprob:
    highest = logits.max()
    normaliser = highest + np.log(np.exp(logits - highest).sum())
    best: list[tuple[int, float]] = []
    if top := min(top, len(logits)):
        indices = np.argpartition(logits, -top)[-top:]
        indices = indices[np.argsort(-logits[indices], kind="stable")]
        best = [(int(i), float(logits[i] - normaliser)) for i in indices]
    return TokenLogprob(token, float(logits[token] - normaliser), tuple(best))
