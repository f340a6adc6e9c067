"""What llama.cpp says that it allocates: `python -m tests.backends.gguf.buffers FILE SLOTS TOKENS` prints JSON.

Its own figures from its own log, for a context made as the engine makes it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

_MIB = 1024 * 1024


def buffer_bytes(path: Path, slots: int, slot_tokens: int) -> dict[str, int]:
    """Bytes of its buffers "model", "KV", "RS", "compute". In a process of its own: the log's callback is global."""
    command = [sys.executable, "-m", "tests.backends.gguf.buffers", str(path), str(slots), str(slot_tokens)]
    asked = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    found: dict[str, int] = json.loads(asked.stdout)
    return found


def main(path: str, slots: int, slot_tokens: int) -> None:
    import llama_cpp.llama_cpp as C  # noqa: N812, PLC0415 - only the child loads the library

    from backends.gguf.llama import Context, Model, self_check  # noqa: PLC0415

    lines: list[str] = []

    @C.llama_log_callback  # type: ignore[untyped-decorator] # a ctypes function type
    def note(_level: int, text: bytes, _user_data: Any) -> None:
        lines.append(text.decode("utf-8", "replace"))

    self_check()
    C.llama_log_set(note, None)
    model = Model(Path(path))
    context = Context(model, slots=slots, slot_tokens=slot_tokens, batch_tokens=512, threads=1)
    found: dict[str, int] = {}
    for name, size in re.findall(r"(model|KV|RS|compute) buffer size = +([\d.]+) MiB", "".join(lines)):
        found[name] = found.get(name, 0) + round(float(size) * _MIB)
    context.close()
    model.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
