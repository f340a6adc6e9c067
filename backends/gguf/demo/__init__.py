"""The bundled demo model: a tiny Llama in one GGUF file, with the scripts that trained it."""

from pathlib import Path

DEMO_MODEL_PATH: Path = Path(__file__).parent / "demo.gguf"
