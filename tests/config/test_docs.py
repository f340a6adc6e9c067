"""docs/config.md names every key with its default."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pydantic import BaseModel

import config
from config.auth import AuthSettings, JwtSettings
from config.edge import AdminSettings, LogSettings, TlsSettings, TracingSettings
from config.limits import LimitSettings, LimitsSettings
from config.redis import RedisSettings
from config.remote import ClientTlsSettings
from config.routing import (
    BreakerSettings,
    GraduateSettings,
    ModelRoutingSettings,
    QueueSettings,
    RetrySettings,
    RoutingSettings,
    RuleSettings,
    TraceSettings,
    WhenSettings,
)
from config.schema import GgufSettings, ModelSettings, ServerSettings, Settings
from config.vllm import VllmSettings

PAGE = Path(config.__file__).parent.parent / "docs" / "config.md"


def expected(prefix: str, tree: type[BaseModel]) -> dict[str, str]:
    found = {}
    for name, field in tree.model_fields.items():
        if (
            name not in {"gguf", "vllm"}
            and not (name == "tls" and prefix.startswith("models"))
            and not isinstance(field.get_default(), BaseModel)
        ):
            found[prefix + name] = "required" if field.is_required() else _shown(field.get_default())
    return found


def _shown(default: object) -> str:
    if default is None:
        return "unset"
    return default if isinstance(default, str) and default else json.dumps(default)


def test_page_has_every_key_with_its_default() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| `?([^|`]*)`? \|", PAGE.read_text(), re.MULTILINE)
    keys = expected("server.", ServerSettings) | expected("models[].", ModelSettings)
    keys |= expected("models[].gguf.", GgufSettings) | expected("models[].vllm.", VllmSettings)
    keys |= expected("models[].gguf.tls.", ClientTlsSettings) | expected("models[].vllm.tls.", ClientTlsSettings)
    keys |= expected("auth.", AuthSettings) | expected("auth.jwt.", JwtSettings)
    keys |= expected("tls.", TlsSettings) | expected("admin.", AdminSettings)
    keys |= expected("log.", LogSettings) | expected("tracing.", TracingSettings)
    keys |= expected("limits.default.", LimitSettings) | expected("limits.tiers.NAME.", LimitSettings)
    keys["profile"] = _shown(Settings.model_fields["profile"].get_default())
    keys |= expected("redis.", RedisSettings)
    keys["limits.on_redis_error"] = _shown(LimitsSettings().on_redis_error)
    keys |= expected("limits.models.NAME.", LimitSettings) | expected("limits.total.", LimitSettings)
    keys |= expected("routing.", RoutingSettings) | expected("models[].routing.", ModelRoutingSettings)
    keys |= expected("routing.graduate.", GraduateSettings) | expected("routing.rules[].", RuleSettings)
    keys |= expected("routing.rules[].when.", WhenSettings)
    keys |= expected("routing.queue.", QueueSettings) | expected("routing.retry.", RetrySettings)
    keys |= expected("routing.breaker.", BreakerSettings) | expected("routing.trace.", TraceSettings)
    assert dict(rows) == keys
