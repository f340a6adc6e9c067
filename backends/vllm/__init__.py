"""vLLM as an engine of ours: an environment of its own, its command line, what it says, and a guard over its processes.

Nothing here imports vllm or torch: they live in another interpreter.
"""
