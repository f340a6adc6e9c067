"""What a request costs in tokens: what is likely before it, and what it took in the end.

Neighbours: relay.py (the caller), ratelimit.py (counts it).
"""

from __future__ import annotations

from backends.base import Usage
from backends.errors import BackendOverloaded, BackendUnavailable
from gateway.door import Reserved
from gateway.pace import Pace
from gateway.record import Record
from gateway.windows import MAX_TOKENS
from routing.errors import Overloaded, Unavailable

BYTES_PER_TOKEN = 4
# What is reserved for an answer whose length the client leaves open, until it is known.
DEFAULT_OUTPUT_TOKENS = 256

# What says that nobody began: the request is given back, for waiting until a model is loaded should burn nothing.
_UNSERVED = (BackendUnavailable, BackendOverloaded, Overloaded, Unavailable)


def estimate_tokens(body_bytes: int, output_cap: int | None, n: int, default_output_tokens: int) -> int:
    """What a request is likely to cost at most: the prompt by its length, and `n` answers of `output_cap` tokens
    (`default_output_tokens` where the client named none)."""
    cap = default_output_tokens if output_cap is None else output_cap
    tokens = -(-body_bytes // BYTES_PER_TOKEN)
    if cap > 0:
        tokens += cap * n if n > 1 else cap
    return tokens if tokens < MAX_TOKENS else MAX_TOKENS


def settle(record: Record, reservation: Reserved | None, pace: Pace | None) -> None:
    """Corrects what was reserved to what the request of `record` took: as the engine reported it, or nothing where no
    answer began and no engine was left alone with it. A stream that says nothing about it, or was cut before, has about
    one token in each event."""
    if record.usage is None and pace is not None and record.first_byte is not None:
        record.usage = Usage(estimate_tokens(record.bytes_in, 0, 1, 0), pace.tokens)
    if reservation is None:
        return
    if record.usage is not None:
        reservation.settle(record.usage.prompt_tokens + record.usage.completion_tokens)
    elif record.first_byte is None and not record.left_an_engine:
        reservation.settle(0, served=not isinstance(record.error, _UNSERVED))
    else:
        reservation.settle(None)
