"""The GGUF engine: continuous batching on llama-cpp-python, served as its own OpenAI-compatible process."""
