"""What the log says of a path. Clients make paths up, and some put their key into one: only words from here are shown.

Neighbours: log.py (the lines), dataplane.py (the paths).
"""

from __future__ import annotations

# Of our own routes, of the endpoints that other servers have and clients ask for, and what browsers look for.
_WORDS = """
    admin chat completions explain health keys livez metrics models openapi.json readyz rotate status v1 version
    api audio batches blobs classify completion config copy count_tokens create delete detokenize docs embed embeddings
    engines files generate images infill info invocations load messages moderations ping pooling props ps pull push
    redoc rerank responses score show slots tags tokenize v2
    favicon.ico robots.txt
"""
WORDS = frozenset(_WORDS.split())
# What stands for every other segment.
OTHER = "*"
MOST_SEGMENTS = 6


def shown(path: str) -> str:
    """`path`, decoded and without its query, with an asterisk in place of each segment that is no word of ours and of
    everything behind the sixth: at most some hundred characters, none of which needs escaping."""
    first, *segments = path.split("/", MOST_SEGMENTS + 1)
    known = [segment if segment in WORDS or not segment else OTHER for segment in segments]
    return "/".join([OTHER if first else "", *known])
