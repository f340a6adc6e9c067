"""The engine thread itself, with the demo model."""

from __future__ import annotations

import asyncio

import pytest

from backends.gguf.demo import DEMO_MODEL_PATH
from backends.gguf.generation import Generation, Output
from backends.gguf.llama import Context, FloatMatrix, Model
from backends.gguf.options import EngineOptions
from backends.gguf.runner import Engine
from backends.gguf.sampler import SamplingParams
from backends.gguf.tile import TILE_ROWS, Tiles
from tests.engine import wait_for

TEXT = "What is continuous batching? It means that requests join and leave a batch at every step. " * 12


class Watched:
    """How many rows each decode had."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tiles: Tiles | None) -> None:
        self.rows: list[int] = []
        decode = Context.decode

        def watched(
            context: Context, tokens: list[int], positions: list[int], slots: list[int], outputs: list[int]
        ) -> FloatMatrix:
            self.rows.append(len(tokens))
            return decode(context, tokens, positions, slots, outputs)

        monkeypatch.setattr(Context, "decode", watched)
        monkeypatch.setattr(Model, "tiles", lambda _model, _threads: tiles)


async def conversation() -> list[str]:
    """What is answered to a text that grows by pieces of 17 to 63 tokens, up to where a tile has no room any more."""
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    options = EngineOptions(DEMO_MODEL_PATH, parallel=2, context_tokens=256, threads=1)
    engine = Engine(options, asyncio.get_running_loop(), ended.set_result)
    engine.start()
    await asyncio.to_thread(wait_for, lambda: engine.ready)
    tokens = engine.model.tokenize(TEXT, add_special=True, parse_special=False)
    texts = []
    for length in (40, 57, 120, 150, 190, 210, 248):
        texts.append(await answer(engine, tokens[:length]))
        held = [engine.context.held_tokens(slot) for slot in range(2)]
        assert held == [engine.scheduler.held_tokens(slot) for slot in range(2)]
    engine.shut_down()
    assert await ended == ""
    assert len(tokens) >= 248
    return texts


async def answer(engine: Engine, prompt: list[int]) -> str:
    outputs: asyncio.Queue[Output] = asyncio.Queue()
    params = SamplingParams(temperature=0, ignore_eos=True)
    engine.submit([Generation(0, prompt, 8, params, (), outputs.put_nowait, streamed=False)])
    text = ""
    while True:
        output = await outputs.get()
        text += output.text
        if output.finish_reason is not None:
            assert output.finish_reason == "length", output.error
            return text


async def test_what_fills_up_a_tile_changes_no_answer_and_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        plain = Watched(patch, None)
        expected = await conversation()
    assert TILE_ROWS not in plain.rows
    with monkeypatch.context() as patch:
        filled = Watched(patch, Tiles(even_tokens=1e-9, alone=10.0))
        assert await conversation() == expected
    assert filled.rows.count(TILE_ROWS) >= 5


def test_the_demo_model_is_known_well_enough_to_be_filled_up() -> None:
    model = Model(DEMO_MODEL_PATH)
    tiles = model.tiles(1)
    model.close()
    assert tiles is not None
    assert tiles.filling(60, 256)
