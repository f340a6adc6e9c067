"""What engines claim of which memory, on recorded machines."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest

from backends.claim import free_memory, gguf_claim, loaded_claim, vllm_claim
from backends.factory import create_backends
from backends.fit import GIB, MEMORY, MIB, NOTHING, Claim, gguf_fit
from backends.gguf.demo import DEMO_MODEL_PATH
from backends.gguf.shape import read_shape
from backends.launch import EnginePlan
from config.schema import ModelSettings
from tests.backends.machines import MACHINES
from tests.fakes import FakeBackend

SMALL, L40S, A100 = MACHINES["2-cores"], MACHINES["1xL40S"], MACHINES["2xA100"]


def model(**engines: dict[str, Any]) -> ModelSettings:
    return ModelSettings.model_validate({"name": "m", "context_tokens": 512, **engines})


def test_a_gguf_engine_claims_what_it_needs_and_its_weights_go_unseen() -> None:
    claim = gguf_claim(model(gguf={"source": "demo", "parallel": 4}), SMALL)
    shape = read_shape(DEMO_MODEL_PATH)
    needs = gguf_fit(shape, SMALL.available_ram_bytes, 512, 4).needs
    assert (claim.sizes, claim.unseen) == ({MEMORY: needs.total_bytes}, shape.weight_bytes)


def test_without_a_gpu_vllm_claims_of_the_machines_memory() -> None:
    claim = vllm_claim(model(vllm={"source": "demo", "kv_cache_bytes": 64 * MIB}), SMALL)
    assert set(claim.sizes) == {MEMORY}
    assert 2 * GIB < claim.sizes[MEMORY] < 3 * GIB


@pytest.mark.parametrize(
    ("settings", "share"),
    [({}, 0.92), ({"memory_share": 0.4}, 0.4), ({"environment": {"CUDA_VISIBLE_DEVICES": "0"}}, 0.92)],
)
def test_on_a_gpu_vllm_claims_its_whole_share(settings: dict[str, Any], share: float) -> None:
    claim = vllm_claim(model(vllm={"source": "demo", **settings}), L40S)
    (gpu,) = L40S.gpus.devices
    assert claim.sizes == {gpu.uuid: int(share * gpu.total_bytes)}
    assert free_memory(L40S) == {gpu.uuid: gpu.free_bytes, MEMORY: L40S.available_ram_bytes}


def test_with_an_exact_cache_it_claims_what_it_needs() -> None:
    (size,) = vllm_claim(model(vllm={"source": "demo", "kv_cache_bytes": GIB}), L40S).sizes.values()
    assert GIB < size < 4 * GIB


def test_it_claims_each_gpu_that_it_is_spread_over_even_where_its_size_is_unknown() -> None:
    claim = vllm_claim(model(vllm={"source": "nobody/has-this", "tensor_parallel": 2}), A100)
    assert claim.sizes == {gpu.uuid: int(0.92 * gpu.total_bytes) for gpu in A100.gpus.devices}


def test_a_gpu_without_memory_of_its_own_shares_the_machines() -> None:
    shared = replace(L40S.gpus.devices[0], total_bytes=0, free_bytes=0)
    machine = replace(L40S, gpus=replace(L40S.gpus, devices=(shared,)))
    assert set(vllm_claim(model(vllm={"source": "demo"}), machine).sizes) == {MEMORY}


def test_nobody_knows_what_a_missing_file_needs() -> None:
    assert gguf_claim(model(gguf={"source": "/nowhere.gguf"}), SMALL) == NOTHING
    assert vllm_claim(model(vllm={"source": "nobody/has-this"}), SMALL) == NOTHING


def test_plans_claim_for_their_engine() -> None:
    plans: list[EnginePlan] = []

    def engine(plan: EnginePlan) -> FakeBackend:
        plans.append(plan)
        return FakeBackend()

    both = model(gguf={"source": "demo", "idle_stop_seconds": 60}, vllm={"source": "demo", "idle_stop_seconds": 600})
    create_backends(both, engine)
    assert [plan.idle_stop_seconds for plan in plans] == [60, 600]
    assert [plan.claim(SMALL) for plan in plans] == [gguf_claim(both, SMALL), vllm_claim(both, SMALL)]


def test_what_a_process_has_of_its_own_is_seen() -> None:
    held = bytearray(b"x") * (64 * MIB)
    claim = Claim({MEMORY: len(held) + GIB}, GIB)
    unseen = loaded_claim(claim, os.getpid()).unseen
    assert unseen < GIB, "this process has more than that of its own"
    assert loaded_claim(Claim({MEMORY: 64 * GIB}, GIB), os.getpid()).unseen == GIB
    for nobody in (None, 2**22 + 1):
        assert loaded_claim(claim, nobody) == claim
