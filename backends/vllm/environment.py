"""The Python environment that holds vLLM, apart from ours: where it is, and what is in it.

Neighbours: install.py (makes one), command.py (launches from one).
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from backends.errors import EngineStartFailed

_STAMP = "upshift-vllm.json"


@dataclass(frozen=True, slots=True)
class Installed:
    """What a finished installation has left: `device` is "cuda", "rocm" or "cpu", `pins` the digest of what it was made
    from."""

    device: str
    version: str
    pins: str


def cache_folder() -> Path:
    """Where Upshift keeps what can be had again; UPSHIFT_CACHE names another folder."""
    return Path(os.environ.get("UPSHIFT_CACHE") or Path.home() / ".cache" / "upshift")


def default_folder() -> Path:
    """The environment that is used where the settings name none."""
    return cache_folder() / "vllm"


def interpreter(folder: Path) -> Path:
    """The Python of the environment in `folder`."""
    return folder / "bin" / "python"


def installed(folder: Path) -> Installed | None:
    """What is in `folder`; None where nothing is, or an installation that has not come to its end."""
    try:
        found = Installed(**json.loads((folder / _STAMP).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    return found if interpreter(folder).exists() else None


def mark(folder: Path, what: Installed | None) -> None:
    """Says that `folder` now holds `what`; None: that it is not finished."""
    stamp = folder / _STAMP
    if what is None:
        stamp.unlink(missing_ok=True)
    else:
        stamp.write_text(json.dumps(asdict(what)) + "\n")


def default_interpreter() -> str:
    """The Python of the installed environment. Raises EngineStartFailed where there is none."""
    folder = default_folder()
    if installed(folder) is None:
        state = "is not finished" if folder.exists() else "is missing"
        text = f"vLLM's environment {folder} {state}; `upshift engine install vllm` makes it"
        raise EngineStartFailed(f"{text}, `vllm.python` names another")
    return str(interpreter(folder))
