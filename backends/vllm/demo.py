"""The bundled model as a folder that vLLM can load, written once per machine.

Neighbours: gguf/demo/export.py (writes it, in a process of its own: it needs numpy), command.py (names it to vLLM).
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from backends.errors import EngineStartFailed
from backends.gguf.demo import DEMO_MODEL_PATH
from backends.vllm.environment import cache_folder

_EXPORT_SECONDS = 120


def demo_folder() -> Path:
    """Where the export of this very model is. Takes a second or two the first time. Raises EngineStartFailed."""
    try:
        digest = hashlib.sha256(DEMO_MODEL_PATH.read_bytes()).hexdigest()[:16]
        folder = cache_folder() / "demo" / digest
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            _export(folder)
    except OSError as error:
        raise EngineStartFailed(f"the demo model cannot be written for vLLM: {error}") from error
    return folder


def _export(folder: Path) -> None:
    """All or nothing, whoever else does the same at the same time."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        target = Path(scratch, "model")
        command = [sys.executable, "-P", "-m", "backends.gguf.demo.export", str(target)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_EXPORT_SECONDS, check=False)
        if ended.returncode != 0:
            said = ended.stderr.strip().splitlines()[-1:] or ["it said nothing"]
            advice = (
                "" if "ModuleNotFound" not in said[0] else "; install what it needs with: pip install 'upshift[gguf]'"
            )
            raise EngineStartFailed(f"the demo model cannot be written for vLLM: {said[0]}{advice}")
        try:
            target.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            shutil.rmtree(target)
