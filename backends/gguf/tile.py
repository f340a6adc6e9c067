"""When a short piece of a prompt is computed sooner as a whole tile. Pure; decision 002 has what it was measured on.

On CPUs llama.cpp computes attention in tiles of 64 rows, and fewer rows than that one by one: the more context there is
before them, the more it pays to compute rows that nobody wants.
"""

from __future__ import annotations

from dataclasses import dataclass

# GGML_FA_TILE_Q of llama.cpp.
TILE_ROWS = 64
# Below, what a row costs is not its attention.
MIN_ROWS = 8
# How much longer an operation of attention takes than one with the weights: in tiles, and in a row alone; there, what
# is left of a head behind its last whole vector is computed number by number.
_IN_TILES = 2.4
_ALONE = 6.4
_WITHOUT_VECTORS = 8 * _ALONE


@dataclass(frozen=True, slots=True)
class Tiles:
    """`even_tokens` of context take as many operations as the weights; `alone` and `in_tiles` are how much longer than
    one of those an operation of attention takes in a row alone and in a tile."""

    even_tokens: float
    alone: float
    in_tiles: float = _IN_TILES

    def filling(self, rows: int, start: int) -> int:
        """How many rows more to compute with `rows` rows behind `start` tokens."""
        if not MIN_ROWS <= rows < TILE_ROWS:
            return 0
        as_they_are = rows * (1 + self.alone * (start + rows / 2) / self.even_tokens)
        as_a_tile = TILE_ROWS * (1 + self.in_tiles * (start + TILE_ROWS / 2) / self.even_tokens)
        return TILE_ROWS - rows if as_they_are > as_a_tile else 0


def tiles_for(*, weights: int, layers: int, heads: int, head_size: int, vector: int, threads: int) -> Tiles:
    """Of a model that multiplies each token by so many `weights` and attends in so many `layers`; `vector` is how many
    numbers of a head are computed at once."""
    left_over = head_size % vector / head_size
    alone = _ALONE * (1 - left_over) + _WITHOUT_VECTORS * left_over
    in_tiles = _IN_TILES * _pieces(heads, threads) / heads
    return Tiles(2 * weights / (4 * layers * heads * head_size), alone, in_tiles)


def _pieces(heads: int, threads: int) -> int:
    """Into how many pieces the tiles of `heads` are cut by the borders between threads, each at the cost of a whole one
    (ggml_compute_forward_flash_attn_ext_f16: four chunks of rows for each thread)."""
    rows = heads * TILE_ROWS
    per_chunk = rows if threads == 1 else -(-rows // (4 * threads))
    return len({*range(0, rows, per_chunk), *range(0, rows, TILE_ROWS)})
