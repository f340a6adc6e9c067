"""Holds one answer to a grammar, from its first token or from a text on that the model writes itself.

Neighbours: constrain.py (makes grammars), sampler.py (asks before it draws), llama.py (GrammarState).
"""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt

from backends.gguf.constrain import Grammar
from backends.gguf.llama import GrammarState, LlamaError, Model

logger = logging.getLogger(__name__)


class Constraint:
    """Belongs to the engine thread; call close()."""

    def __init__(self, model: Model, grammar: Grammar) -> None:
        """Raises LlamaError for a grammar that holds from the beginning and cannot be used."""
        self._model = model
        self._grammar = grammar
        self._after = grammar.after.encode()
        self._written = b""
        self._state = None if self._after else GrammarState(model, grammar.text)

    def allows(self, token: int) -> bool:
        """Whether `token` may come next."""
        return self._state is None or self._state.admits(token)

    def restrict(self, logits: npt.NDArray[np.float32]) -> bool:
        """Makes impossible what may not come next, in place. False where nothing may: the answer is over."""
        return self._state is None or self._state.restrict(logits)

    def accept(self, token: int) -> None:
        """`token` was written."""
        if self._state is not None:
            self._state.accept(token)
        elif self._after:
            self._watch(self._model.pieces[token])

    def _watch(self, piece: bytes) -> None:
        self._written += piece
        _, found, rest = self._written.partition(self._after)
        if not found:
            self._written = self._written[1 - len(self._after) :] if len(self._after) > 1 else b""
            return
        # The token may have brought more than the text that was waited for. White space is in any grammar here; with
        # anything else the model is on its own.
        self._after = b""
        if rest.strip():
            return
        try:
            self._state = GrammarState(self._model, self._grammar.text)
        except LlamaError as error:
            logger.warning("an answer goes on without its grammar: %s", error)

    def close(self) -> None:
        """Idempotent."""
        if self._state is not None:
            self._state.close()
