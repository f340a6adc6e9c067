"""Ollama behind the seam, by its native API: request.py and answer.py translate, calls.py sends."""
