"""A real Prometheus for tests: Debian's, with our rules, scraping every half second."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.debian import program
from tests.engine import wait_for

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
RULES = [DEPLOY / "prometheus" / name for name in ("rules.yml", "alerts.yml")]

# The rules' windows and delays in a time that a test has. Each longer one stays longer.
_SHORT = {"5m": "4s", "30m": "5s", "1h": "6s", "6h": "8s", "15m": "6s"}


class Prometheus:
    """A running one."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=30, trust_env=False)
        self.close = self._http.close

    def ready(self) -> bool:
        try:
            return self._http.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def values(self, expression: str) -> list[float]:
        """What a query gives now."""
        answer = self._http.get("/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", (expression, answer)
        return [float(sample["value"][1]) for sample in answer["data"]["result"]]

    def firing(self) -> set[str]:
        """Names of the alerts that fire now."""
        alerts = self._http.get("/api/v1/alerts").json()["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def exemplars(self, expression: str) -> list[dict[str, Any]]:
        """Exemplars kept for a query."""
        params = {"query": expression, "start": "0", "end": "99999999999"}
        found = self._http.get("/api/v1/query_exemplars", params=params).json()["data"]
        return [exemplar for series in found for exemplar in series["exemplars"]]


def promtool(*arguments: str | Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs it and returns what it said."""
    command = [program("prometheus", "usr/bin/promtool"), *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=120, check=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def scraping(folder: Path, target_port: int) -> Iterator[Prometheus]:
    """Scrapes the gateway's operators' listener at `target_port` as job "upshift", with our rules made quick."""
    for rules in RULES:
        (folder / rules.name).write_text(quickened(rules.read_text()))
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
        "rule_files": [rules.name for rules in RULES],
        "scrape_configs": [{"job_name": "upshift", "static_configs": [{"targets": [f"127.0.0.1:{target_port}"]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    options = [f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}"]
    options += ["--enable-feature=exemplar-storage", f"--config.file={folder}/prometheus.yml"]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen([program("prometheus", "usr/bin/prometheus"), *options], stderr=log, stdout=log)
    prometheus = Prometheus(f"http://127.0.0.1:{port}")
    try:
        wait_for(prometheus.ready)
        yield prometheus
    finally:
        prometheus.close()
        process.terminate()
        process.wait(timeout=60)


def quickened(rules: str) -> str:
    """The same rules with seconds in place of minutes and hours."""
    rules = re.sub(r"\[(\d+[mh])\]", lambda match: f"[{_SHORT[match[1]]}]", rules)
    return re.sub(r"(for|interval): \w+", r"\1: 1s", rules)
