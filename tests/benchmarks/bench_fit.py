"""How far off the estimate of a GGUF model's memory is: beside llama.cpp's own log, and beside the engine's process.

    python -m tests.benchmarks.bench_fit [--folder KEEP]

Writes models of several shapes (600 MB in all; --folder keeps them), loads each with several slots and contexts, and
prints a table. Takes a few minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from backends.fit import MIB, gguf_needs
from backends.gguf.demo import DEMO_MODEL_PATH
from backends.gguf.shape import read_shape
from tests.backends.gguf.buffers import buffer_bytes
from tests.benchmarks.random_model import SHAPES, Shape, write_random_model
from tests.engine import running_engine

MODELS = {
    "0.5b": SHAPES["0.5b"],
    "32k-vocabulary": Shape(4, 512, 8, 8, 1376, 32_000, 8192),
    "wide": Shape(2, 1024, 8, 2, 1024, 4096, 4096),
    "large-feed-forward": Shape(2, 256, 4, 4, 4096, 4096, 4096),
    "large-vocabulary": Shape(2, 128, 4, 4, 256, 151_936, 2048),
}
SIZES = ((1, 512), (4, 4096), (16, 1024))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="Where the models are written and kept.")
    folder = parser.parse_args().folder
    with contextlib.ExitStack() as stack:
        folder = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        print(
            f"{'model':<20}{'slots x tokens':>16}{'log MiB':>10}{'estimate':>10}{'':>8}{'process':>10}{'estimate':>10}"
        )
        for name, path in models(folder):
            for slots, tokens in SIZES:
                print(
                    row(name, path, slots, tokens, Path(stack.enter_context(tempfile.TemporaryDirectory()))), flush=True
                )


def models(folder: Path) -> Iterator[tuple[str, Path]]:
    """Each model's name and file, written when it is asked for."""
    yield "demo", DEMO_MODEL_PATH
    for name, shape in MODELS.items():
        path = folder / f"{name}.gguf"
        if not path.exists():
            write_random_model(path, shape)
        yield name, path


def row(name: str, path: Path, slots: int, tokens: int, folder: Path) -> str:
    """One line of the table."""
    shape = read_shape(path)
    needs = gguf_needs(shape, tokens, slots)
    allocated = sum(buffer_bytes(path, slots, tokens).values())
    # The engine's copy of the logits is in no buffer that the log names.
    foreseen = needs.total_bytes - needs.process_bytes - 4 * slots * shape.vocabulary
    resident = resident_bytes(path, slots, tokens, folder)
    sizes = f"{slots} x {tokens}"
    beside_log = f"{allocated / MIB:>10.1f}{foreseen / MIB:>10.1f}{foreseen / allocated - 1:>+8.1%}"
    beside_process = f"{resident / MIB:>10.1f}{needs.total_bytes / MIB:>10.1f}{needs.total_bytes / resident - 1:>+8.1%}"
    return f"{name:<20}{sizes:>16}{beside_log}{beside_process}"


def resident_bytes(path: Path, slots: int, tokens: int, folder: Path) -> int:
    """Of the engine after it has computed long prompts in some slots."""
    with running_engine(path, folder, "--parallel", str(slots), "--context-tokens", str(tokens)) as engine:
        body = {"model": "tiny", "prompt": "hello world " * (tokens // 16), "max_tokens": 8, "n": min(slots, 4)}
        for _ in range(2):
            engine.client.post("/v1/completions", json=body, timeout=300).raise_for_status()
        return int(engine.resident_mib() * MIB)


if __name__ == "__main__":
    main()
