# make run    set up everything, serve the demo model, ask it a question; PROFILE=prod serves it by vLLM too
# make test   set up everything, then every check and every test
PYTHON ?= python3
PROMPT ?= What is continuous batching?
BIN := .venv/bin
TRAINER := $(HOME)/.cache/upshift/demo-trainer

.PHONY: setup run vllm llama-server test check format bench bench-hot bench-engine soak lock demo-model clean

setup:
	@$(PYTHON) deploy/setup_env.py

run: setup $(if $(filter prod,$(PROFILE)),vllm)
	@UPSHIFT_PROFILE=$(PROFILE) $(BIN)/python deploy/first_light.py "$(PROMPT)"

# An environment with vLLM in it, once per machine: the build for its GPU, or for CPUs.
vllm: setup
	@$(BIN)/upshift engine install vllm

# Those that start vLLM beside all others: two runs of pytest, two cores. ARGS go to both.
test: check
	@$(BIN)/python -m tests.lanes $(ARGS)

check: setup
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-cache --no-logo
	@$(BIN)/pytest tests/test_docs.py tests/test_architecture.py

format: setup
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# The gateway, LiteLLM, vllm-router, sglang-router, Portkey and nginx side by side; installs the peers once.
bench: setup
	@$(BIN)/python -m tests.benchmarks.bench_peers $(ARGS)

# The gateway's hot path against baselines in the same run.
bench-hot: setup
	@$(BIN)/python -m tests.benchmarks.bench_http_client $(ARGS)
	@$(BIN)/python -m tests.benchmarks.bench_gateway $(ARGS)
	@$(BIN)/python -m tests.benchmarks.bench_limits
	@$(BIN)/python -m tests.benchmarks.bench_hot_path

# Our engine, llama-server and llama_cpp.server side by side; builds llama-server once.
bench-engine: setup
	@$(BIN)/python -m tests.benchmarks.bench_engine $(ARGS)

# Builds llama-server once per machine, 5 to 15 minutes: the backend contract is then held to it as well.
llama-server: setup
	@$(BIN)/python -m tests.benchmarks.bench_engine_build

# 5,000 mixed requests, a fifth of them left by their client.
soak: setup
	@UPSHIFT_SOAK_REQUESTS=5000 $(BIN)/pytest tests/e2e/test_soak.py -s

# Trains the demo model anew, half an hour on two cores. PyTorch goes into an environment of its own.
demo-model: setup
	@test -x $(TRAINER)/bin/python || $(PYTHON) -m venv $(TRAINER)
	@$(TRAINER)/bin/pip install --quiet -r backends/gguf/demo/requirements.txt
	@$(TRAINER)/bin/python -m backends.gguf.demo.train

# Rewrites the locks. Needs uv (pip install uv).
lock:
	uv pip compile pyproject.toml --extra gguf --extra oidc --universal --generate-hashes --no-emit-package llama-cpp-python --no-header -q -o deploy/lock/runtime.txt
	uv pip compile --group dev --group build -c deploy/lock/runtime.txt --universal --generate-hashes --no-header -q -o deploy/lock/dev.txt
	echo "llama-cpp-python==$$(sed -n 's/.*llama-cpp-python==\([0-9.]*\).*/\1/p' pyproject.toml)" | uv pip compile - --no-deps --generate-hashes --universal --no-header --no-annotate -q -o deploy/lock/engine.txt
	echo "sslyze==6.3.1" | uv pip compile - --universal --python-version 3.11 --generate-hashes --no-header --no-annotate -q -o deploy/lock/tools/sslyze.txt
	echo "schemathesis==4.32.5" | uv pip compile - --universal --python-version 3.11 --generate-hashes --no-header --no-annotate -q -o deploy/lock/tools/schemathesis.txt

clean:
	rm -rf .venv .mypy_cache .ruff_cache .hypothesis dist
