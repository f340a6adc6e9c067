"""Metrics, dashboard and alerts against a real Prometheus that scrapes a real gateway with real traffic."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
import yaml

from deploy import dashboard
from tests.canary import PROMPT
from tests.e2e.gateway import GatewayUnderTest, running_gateway
from tests.e2e.prometheus import RULES, Prometheus, free_port, promtool, scraping
from tests.engine import wait_for

DOCS = Path(__file__).resolve().parents[2] / "docs" / "observability.md"
CHAT = "/v1/chat/completions"
# Longer runs: `UPSHIFT_PROMETHEUS_SECONDS=120 pytest -s tests/e2e/test_prometheus.py`.
SECONDS = float(os.environ.get("UPSHIFT_PROMETHEUS_SECONDS", "0"))
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_rules_are_valid_and_every_alert_fires_and_clears_in_its_time() -> None:
    checked = promtool("check", "rules", *RULES)
    assert checked.returncode == 0, checked.stderr
    tested = promtool("test", "rules", Path(__file__).with_name("alerts.yml"))
    assert tested.returncode == 0, tested.stdout + tested.stderr
    alerts = yaml.safe_load(RULES[1].read_text())["groups"][0]["rules"]
    cases = yaml.safe_load(Path(__file__).with_name("alerts.yml").read_text())["tests"]
    fired = {test["alertname"] for case in cases for test in case["alert_rule_test"] if test["exp_alerts"]}
    assert fired == {alert["alert"] for alert in alerts}


def test_the_dashboard_file_is_what_the_script_writes() -> None:
    assert json.loads(dashboard.FILE.read_text()) == dashboard.dashboard(), "run python deploy/dashboard.py"


@contextmanager
def traffic(url: str) -> Iterator[None]:
    """Streams, whole answers, refusals and clients that leave, until the block ends; failures are part of it."""
    over = threading.Event()

    def ask(number: int) -> None:
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
            while not over.wait(0.02):
                try:
                    _one_of_each(client, number)
                except httpx.TransportError:
                    continue

    with ThreadPoolExecutor(2) as pool:
        for number in range(2):
            pool.submit(ask, number)
        try:
            yield
        finally:
            over.set()


def _one_of_each(client: httpx.Client, number: int) -> None:
    question = {"model": "m", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 8}
    headers = {"traceparent": TRACEPARENT}
    client.post(CHAT, json=question, headers=headers)
    streamed = {**question, "stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
    with client.stream("POST", CHAT, json=streamed, headers=headers) as answer:
        answer.read()
    if number:
        client.post(CHAT, json={**question, "model": "unknown"})
        with client.stream("POST", CHAT, json={**streamed, "max_tokens": 900}) as answer:
            next(answer.iter_bytes(), None)


@pytest.fixture
def observed(tmp_path: Path, tiny_model: Path) -> Iterator[tuple[GatewayUnderTest, Prometheus]]:
    """A gateway with two workers under traffic, and the Prometheus that scrapes it."""
    port = free_port()
    config = f"models: [{{name: m, context_tokens: 2048, gguf: {{source: {tiny_model}, threads: 1}}}}]\n"
    # Two ask at once: now and then one of them is refused, and never both for long.
    config += f"server: {{workers: 2}}\nadmin: {{port: {port}}}\nlimits: {{default: {{concurrent: 1}}}}\n"
    with running_gateway(tmp_path, config) as gateway, scraping(tmp_path, port) as prometheus:
        wait_for(gateway.ready)
        with traffic(gateway.url):
            yield gateway, prometheus


def test_every_panel_has_data_and_an_outage_is_told_of_until_it_is_over(
    observed: tuple[GatewayUnderTest, Prometheus],
) -> None:
    gateway, prometheus = observed
    found = re.search(r"metrics and /admin are on (http://[0-9.:]+)", gateway.log.read_text())
    assert found
    exposed = httpx.get(found[1] + "/metrics", timeout=30)
    checked = promtool("check", "metrics", text=exposed.text)
    assert checked.returncode == 0, checked.stdout + checked.stderr

    documented = DOCS.read_text()
    for name in re.findall(r"^# TYPE (upshift_\w+) ", exposed.text, re.MULTILINE):
        assert f"`{name}`" in documented, name
    for _, query in dashboard.queries():
        wait_for(partial(_has_data, prometheus, query), seconds=90)
    _check_for(SECONDS, prometheus)
    wait_for(lambda: bool(prometheus.exemplars("upshift_request_duration_seconds_bucket")), seconds=60)
    trace = prometheus.exemplars("upshift_request_duration_seconds_bucket")[0]["labels"]["trace_id"]
    assert trace in TRACEPARENT
    wait_for(lambda: not prometheus.firing(), seconds=60)

    expected = {"UpshiftModelDown", "UpshiftBackendDown", "UpshiftErrorsBurnFast", "UpshiftErrorsBurnSlowly"}
    fired: set[str] = set()

    def outage() -> bool:
        engine = gateway.engine_pid()
        if engine is not None:
            os.kill(engine, signal.SIGKILL)
        fired.update(prometheus.firing())
        return expected <= fired

    wait_for(outage, seconds=120)
    wait_for(lambda: not prometheus.firing() & expected, seconds=120)


def _check_for(seconds: float, prometheus: Prometheus) -> None:
    """Every query of the dashboard, again and again while the traffic goes on. A scrape that a busy machine does not
    bring about in its half second leaves a gap, until the next one."""
    until, rounds = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        rounds += 1
        for _, query in dashboard.queries():
            wait_for(partial(_has_data, prometheus, query), seconds=15)
    if rounds:
        window = f"[{int(seconds)}s]"
        (scrapes,), (good,) = (prometheus.values(f"{what}_over_time(up{window})") for what in ("count", "sum"))
        (requests,) = prometheus.values("sum(max_over_time(upshift_requests_total[1m]))")
        queries = len(list(dashboard.queries()))
        print(f"{good:.0f} of {scrapes:.0f} scrapes, {requests:.0f} requests, {rounds} times {queries} queries")


def _has_data(prometheus: Prometheus, query: str) -> bool:
    query = query.replace("$__rate_interval", "10s").replace("$model", ".*").replace("$backend", ".*")
    values = prometheus.values(query)
    return bool(values) and any(math.isfinite(value) for value in values)


def test_gateway_that_does_not_answer_is_told_of(tmp_path: Path) -> None:
    with scraping(tmp_path, free_port()) as prometheus:
        wait_for(lambda: "UpshiftDown" in prometheus.firing(), seconds=60)
