"""`models[].vllm`: a model served by vLLM.

Neighbours: schema.py (the tree this hangs in).
"""

from __future__ import annotations

from pydantic import Field

from config.tree import Endpoint, Tree


class VllmSettings(Tree):
    """A model served by vLLM replicas that run elsewhere."""

    urls: tuple[Endpoint, ...] = Field(min_length=1, max_length=256)
    """Base URLs of vLLM servers, all of which serve the model under the same name."""
