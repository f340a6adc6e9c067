"""The machines recorded in hardware/, by name."""

from __future__ import annotations

from pathlib import Path

from backends.hardware import Hardware, from_json

FOLDER = Path(__file__).parent / "hardware"
MACHINES: dict[str, Hardware] = {file.stem: from_json(file.read_text()) for file in FOLDER.glob("*.json")}
