"""When a piece of a prompt is filled up to a tile: beside what two real models took (AMD EPYC with AVX-512)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.gguf.tile import TILE_ROWS, Tiles, tiles_for

SMALL = {"weights": 1_476_672, "layers": 5, "heads": 6, "head_size": 32}
LARGE = {"weights": 357_870_464, "layers": 24, "heads": 14, "head_size": 64}
DEMO = tiles_for(**SMALL, vector=64, threads=1)
DEMO_BY_TWO = tiles_for(**SMALL, vector=64, threads=2)
HALF_BILLION = tiles_for(**LARGE, vector=64, threads=1)
HALF_BILLION_BY_TWO = tiles_for(**LARGE, vector=64, threads=2)

# Milliseconds by the tokens before them: of 8, 16, 24, 32, 40, 48, 56, 63 and 64 rows.
ROWS = (8, 16, 24, 32, 40, 48, 56, 63, 64)
MEASURED = [
    (DEMO, 0, (0.5, 0.84, 1.29, 1.85, 2.54, 3.37, 4.42, 5.20, 2.0)),
    (DEMO, 64, (1.39, 2.51, 3.76, 5.12, 6.61, 8.17, 9.76, 11.26, 2.4)),
    (DEMO, 256, (3.58, 6.99, 10.39, 14.04, 17.73, 21.34, 25.12, 28.52, 3.6)),
    (DEMO, 1000, (13.1, 25.7, 38.0, 50.9, 63.8, 77.0, 90.4, 101.1, 7.68)),
    (DEMO, 3000, (38.7, 75.9, 113.7, 152.0, 189.5, 226.0, 264.3, 296.2, 19.6)),
    (HALF_BILLION, 0, (93, 116, 170, 213, 256, 296, 343, 410, 375)),
    (HALF_BILLION, 256, (103, 134, 200, 251, 301, 352, 400, 478, 400)),
    (HALF_BILLION, 1000, (127, 185, 276, 351, 425, 503, 585, 672, 474)),
    (HALF_BILLION, 2000, (160, 255, 373, 482, 592, 701, 821, 936, 572)),
    (HALF_BILLION, 3000, (194, 330, 482, 631, 792, 959, 1109, 1261, 697)),
    (DEMO_BY_TWO, 0, (0.30, 0.49, 0.76, 1.08, 1.44, 1.96, 2.37, 2.83, 1.20)),
    (DEMO_BY_TWO, 256, (2.05, 3.78, 5.58, 7.48, 9.40, 11.47, 13.46, 15.22, 2.76)),
    (DEMO_BY_TWO, 1000, (6.95, 13.53, 20.06, 26.76, 33.25, 39.97, 46.99, 52.69, 6.39)),
    (HALF_BILLION_BY_TWO, 0, (51.7, 64.0, 92.1, 113, 135, 158, 181, 214, 202)),
    (HALF_BILLION_BY_TWO, 1000, (67.6, 98.0, 143, 181, 221, 259, 297, 352, 266)),
    (HALF_BILLION_BY_TWO, 2000, (86.6, 136, 194, 262, 307, 368, 426, 486, 334)),
]


@pytest.mark.parametrize(("tiles", "start", "took"), MEASURED)
def test_the_way_that_was_quicker_is_taken(tiles: Tiles, start: int, took: tuple[float, ...]) -> None:
    as_a_tile = took[-1]
    for rows, alone in zip(ROWS, took, strict=True):
        chosen = as_a_tile if tiles.filling(rows, start) else alone
        assert chosen <= 1.1 * min(alone, as_a_tile), rows


@given(st.integers(1, 300), st.integers(0, 100_000), st.sampled_from([DEMO, HALF_BILLION]))
def test_what_is_filled_up_is_one_tile_and_more_context_speaks_for_it(rows: int, start: int, tiles: Tiles) -> None:
    filling = tiles.filling(rows, start)
    assert filling in (0, TILE_ROWS - rows)
    assert not filling or (1 < rows < TILE_ROWS and tiles.filling(rows, start + 100) == filling)


def test_heads_in_whole_vectors_are_filled_up_later() -> None:
    assert tiles_for(**SMALL, vector=64, threads=1).filling(40, 0)
    assert not tiles_for(**SMALL, vector=32, threads=1).filling(40, 0)


@pytest.mark.parametrize(
    ("heads", "threads", "pieces"), [(14, 1, 14), (14, 2, 20), (32, 8, 32), (32, 16, 64), (14, 16, 76)]
)
def test_a_tile_cut_between_threads_costs_as_much_as_two(heads: int, threads: int, pieces: int) -> None:
    tiles = tiles_for(weights=10**9, layers=10, heads=heads, head_size=64, vector=64, threads=threads)
    assert tiles.in_tiles == pytest.approx(2.4 * pieces / heads)
