"""How each model of a configuration is routed on this machine.

Neighbours: gateway.py and cli/replay.py (the callers), routing/policy.py (what a plan is).
"""

from __future__ import annotations

from collections.abc import Callable

from backends.hardware import Hardware, detect
from config.schema import Settings
from routing.policy import Plan, plan_for


def plans_of(settings: Settings, machine: Callable[[], Hardware] = detect) -> dict[str, Plan]:
    """By model. The `machine` is looked at only where a rule asks for a GPU."""
    asked = any(rule.when.gpu is not None for rule in settings.routing.rules)
    has_gpu = asked and bool(machine().gpus.devices)
    return {
        model.name: plan_for(model.name, settings.routing, model.routing, settings.profile, has_gpu=has_gpu)
        for model in settings.models
    }
