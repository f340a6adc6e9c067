from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tests.backends
from backends.hardware import Hardware, from_json
from config.schema import Settings
from gateway.plans import plans_of

MACHINES = Path(tests.backends.__file__).parent / "hardware"


@pytest.mark.parametrize(("machine", "rules"), [("1xL40S", ["vllm"]), ("2-cores", ["gguf"])])
def test_rules_go_by_the_gpu_of_the_machine(machine: str, rules: list[str]) -> None:
    when: list[dict[str, Any]] = [
        {"when": {"gpu": True}, "use": "vllm"},
        {"when": {"gpu": False}, "use": "gguf"},
    ]
    settings = Settings.model_validate({"routing": {"rules": when}})
    hardware = from_json((MACHINES / f"{machine}.json").read_text())
    assert [rule.use for rule in plans_of(settings, lambda: hardware)["demo"].rules] == rules


def test_the_machine_is_not_looked_at_unasked() -> None:
    def never() -> Hardware:
        raise AssertionError("asked")

    assert plans_of(Settings(), never)["demo"].policy == "graduate"
