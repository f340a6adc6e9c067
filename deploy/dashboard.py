"""Writes the Grafana dashboard, deploy/grafana/upshift.json: panels as data, JSON as Grafana wants it.

    python deploy/dashboard.py

A test holds the file against this and every query against a real Prometheus (tests/e2e/test_prometheus.py).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).resolve().parent / "grafana" / "upshift.json"

_COLUMNS = 24
_HEIGHT = 8


class Query(NamedTuple):
    """PromQL, and what its lines are called."""

    expression: str
    legend: str


class Panel(NamedTuple):
    """One diagram; `unit` is one of Grafana's."""

    title: str
    unit: str
    queries: Sequence[Query]
    about: str = ""


# Of everything that is shown by model.
_MODEL = 'model=~"$model"'
_FILTER = 'model=~"$model",backend=~"$backend"'
_QUANTILES = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))


def _quantiles(family: str, only: str = _FILTER) -> list[Query]:
    rate = f"sum by (le, model) (rate({family}_bucket{{{only}}}[$__rate_interval]))"
    return [Query(f"histogram_quantile({share}, {rate})", f"{name} {{{{model}}}}") for share, name in _QUANTILES]


def _sum(family: str, legend: str) -> Query:
    return Query(f"sum by (model, backend) ({family}{{{_FILTER}}})", legend)


def _cached_share() -> str:
    cached, prompt = (
        f'sum by (model) (rate(upshift_tokens_total{{kind="{kind}",{_FILTER}}}[$__rate_interval]))'
        for kind in ("cached", "prompt")
    )
    return f"{cached} / ({prompt} > 0)"


def _rate(family: str, by: str, legend: str, only: str = _FILTER) -> Query:
    return Query(f"sum by ({by}) (rate({family}{{{only}}}[$__rate_interval]))", legend)


ROWS: dict[str, Sequence[Panel]] = {
    "Traffic": (
        Panel("Requests", "reqps", [_rate("upshift_requests_total", "model, backend", "{{model}} on {{backend}}")]),
        Panel(
            "Answers by status",
            "reqps",
            [_rate("upshift_requests_total", "code", "{{code}}")],
            "499 is a client that left; an answer that broke off counts under the status of its error.",
        ),
        Panel(
            "In flight",
            "short",
            [Query(f"sum by (model, backend) (upshift_in_flight{{{_FILTER}}})", "{{model}} on {{backend}}")],
        ),
    ),
    "Latency": (
        Panel("Time to first token", "s", _quantiles("upshift_time_to_first_token_seconds")),
        Panel("Between tokens", "s", _quantiles("upshift_inter_token_latency_seconds")),
        Panel("Whole request", "s", _quantiles("upshift_request_duration_seconds")),
    ),
    "Tokens": (
        Panel("Tokens", "short", [_rate("upshift_tokens_total", "model, kind", "{{model}} {{kind}}/s")]),
        Panel(
            "Prompt tokens from the cache",
            "percentunit",
            [
                Query(_cached_share(), "{{model}}"),
            ],
        ),
        Panel(
            "The gateway's own share",
            "s",
            _quantiles("upshift_gateway_overhead_seconds"),
            "Of the time to the first byte, everything but waiting for the engine.",
        ),
    ),
    "Routing": (
        Panel(
            "Decisions",
            "reqps",
            [
                _rate(
                    "upshift_routing_decisions_total", "model, backend, reason", "{{model}} on {{backend}}: {{reason}}"
                )
            ],
        ),
        Panel("Waiting", "short", [Query(f"sum by (model) (upshift_queue_depth{{{_MODEL}}})", "{{model}}")]),
        Panel("Time spent waiting", "s", _quantiles("upshift_queue_wait_seconds", _MODEL)),
    ),
    "Engines": (
        Panel("Computing", "short", [_sum("upshift_engine_running", "{{model}} on {{backend}}")]),
        Panel("Waiting in the engine", "short", [_sum("upshift_engine_waiting", "{{model}} on {{backend}}")]),
        Panel(
            "KV cache in use",
            "percentunit",
            [
                Query(
                    f"max by (model, backend) (upshift_engine_kv_cache_usage_ratio{{{_FILTER}}})",
                    "{{model}} on {{backend}}",
                )
            ],
        ),
    ),
    "Edge": (
        Panel("Refused by a limit", "reqps", [_rate("upshift_rate_limited_total", "limit", "{{limit}}", "")]),
        Panel("Clients that left", "reqps", [_rate("upshift_cancelled_total", "stage", "while {{stage}}", "")]),
        Panel(
            "Backends up",
            "short",
            [Query(f"min by (model, backend) (upshift_backend_up{{{_FILTER}}})", "{{model}} on {{backend}}")],
        ),
    ),
    "Process": (
        Panel("Memory", "bytes", [Query('process_resident_memory_bytes{job="upshift"}', "{{instance}}")]),
        Panel(
            "CPU",
            "percentunit",
            [Query('rate(process_cpu_seconds_total{job="upshift"}[$__rate_interval])', "{{instance}}")],
        ),
        Panel("Open files", "short", [Query('process_open_fds{job="upshift"}', "{{instance}}")]),
    ),
}


def queries() -> Iterator[tuple[str, str]]:
    """(title of its panel, PromQL) of every query."""
    for panels in ROWS.values():
        for panel in panels:
            for query in panel.queries:
                yield panel.title, query.expression


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        panels.append({"type": "row", "title": title, "id": len(panels) + 1, "gridPos": _place(0, top, _COLUMNS, 1)})
        width = _COLUMNS // len(row)
        for number, panel in enumerate(row):
            panels.append(_panel(panel, len(panels) + 1, _place(number * width, top + 1, width, _HEIGHT)))
        top += 1 + _HEIGHT
    return {
        "title": "Upshift",
        "uid": "upshift",
        "tags": ["llm", "upshift"],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_source(), _variable("model"), _variable("backend")]},
        "panels": panels,
    }


def _place(left: int, top: int, width: int, height: int) -> dict[str, int]:
    return {"x": left, "y": top, "w": width, "h": height}


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${source}"}
    targets = [
        {"refId": chr(ord("A") + index), "datasource": source, "expr": query.expression, "legendFormat": query.legend}
        for index, query in enumerate(panel.queries)
    ]
    return {
        "type": "timeseries",
        "id": number,
        "title": panel.title,
        "description": panel.about,
        "datasource": source,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": targets,
    }


def _source() -> dict[str, Any]:
    return {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _variable(label: str) -> dict[str, Any]:
    query = f"label_values(upshift_backend_up, {label})"
    return {
        "name": label,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${source}"},
        "query": {"query": query, "refId": label},
        "definition": query,
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(dashboard(), indent=1) + "\n", encoding="utf-8")
    print(f"wrote {FILE}", file=sys.stderr)
