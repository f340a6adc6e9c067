"""What routing wants to know of a request: who asks, and what an upstream must be able to do for it.

Neighbours: policy.py (decides by it), router.py (makes it, where there is anything to decide).
"""

from __future__ import annotations

from hashlib import blake2b
from typing import NamedTuple
from zlib import crc32

from backends.base import InferenceRequest

# What a token of text is taken for; engines tokenize, the gateway does not.
BYTES_PER_TOKEN = 4
# This much of a prompt has to be the same for two requests to share an upstream: a system prompt and how it goes on.
HEAD_BYTES = 1024

_PROMPTS = (b'"messages"', b'"prompt"', b'"input"')


class Ask(NamedTuple):
    """One request, as policies see it. `prompt_tokens` is an estimate, `max_tokens` None where the client set no bound,
    `affinity` a number that is equal for requests that belong on one upstream."""

    model: str
    prompt_tokens: int = 0
    max_tokens: int | None = None
    features: frozenset[str] = frozenset()
    key: str = ""
    tier: str | None = None
    affinity: int = 0


def prompt_tokens(request: InferenceRequest) -> int:
    """The length of the prompt, roughly."""
    return len(request.body) // BYTES_PER_TOKEN


def features(request: InferenceRequest) -> frozenset[str]:
    """All that an engine has to have for `request`; images cost a look at the whole body."""
    # Inside a JSON string the quotes would be escaped, so this is a key or the value of "type".
    return request.features | {"images"} if b'"image_url"' in request.body else request.features


def session_affinity(session: bytes, key: str) -> int:
    """The same number for the same session; for the same key where there is no session."""
    return number_of(session or key.encode())


def prefix_affinity(request: InferenceRequest) -> int:
    """The same number for prompts that begin alike."""
    body = request.body
    for name in _PROMPTS:
        start = body.find(name)
        if start >= 0:
            break
    else:
        start = 0
    # A cryptographic hash of a kilobyte costs as much as half of the decision. Who makes prompts that collide meets
    # himself on one replica, until that carries more than its share.
    return crc32(body[start : start + HEAD_BYTES]) >> 2


def number_of(data: bytes) -> int:
    """30 bits that are the same in every process and on every machine."""
    return int.from_bytes(blake2b(data, digest_size=4).digest()) >> 2
