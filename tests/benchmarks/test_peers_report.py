"""Medians, ratios, marks and the chart, from windows that nobody measured."""

from __future__ import annotations

import json
from dataclasses import replace
from xml.etree import ElementTree

from tests.benchmarks.peers_chart import chart
from tests.benchmarks.peers_report import DIRECT, Cell, Results, Start, as_json, medians, tables
from tests.benchmarks.peers_run import Window
from tests.benchmarks.peers_workload import WORKLOADS

WINDOW = Window(
    seconds=2.0,
    requests=400,
    events=0,
    held=0,
    p50_us=1000,
    p99_us=3000,
    gap_p50_us=0,
    gap_p99_us=0,
    cpu_seconds=0.4,
    generator_cpu_seconds=0.2,
    resident_bytes_before=10_000_000,
    resident_bytes=11_000_000,
)


def results(**requests: tuple[int, ...]) -> Results:
    """Rounds of the JSON workload: contestant -> requests in each."""
    cells = [
        Cell(name, "json", number, replace(WINDOW, requests=count))
        for name, counts in requests.items()
        for number, count in enumerate(counts)
    ]
    return Results(rounds=3, cells=cells)


def row(text: str, name: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {name} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_medians_over_the_rounds_and_ratios_within_them() -> None:
    found = results(direct=(4000, 4000, 4000), upshift=(800, 400, 600), nginx=(1600, 1600, 1200))
    text = tables(found, [WORKLOADS["json"]])
    assert row(text, "upshift")[1:3] == ["300", "666.7"]
    assert row(text, "nginx")[-2:] == ["0.50 (0.25–0.50)", "2.00 (2.00–4.00)"]
    assert "errors: none" in text


def test_added_latency_is_over_direct_in_the_same_round() -> None:
    cells = []
    for number, (direct, ours) in enumerate([(100, 400), (900, 1000), (100, 300)]):
        cells.append(Cell(DIRECT, "latency", number, replace(WINDOW, p50_us=direct)))
        cells.append(Cell("upshift", "latency", number, replace(WINDOW, p50_us=ours)))
    text = tables(Results(rounds=3, cells=cells), [WORKLOADS["latency"]])
    assert row(text, "upshift")[1] == "0.20"
    assert row(text, "direct")[1] == "–"


def test_errors_absence_and_saturation_are_told() -> None:
    found = results(direct=(4000,), upshift=(400,))
    found.cells.append(Cell("nginx", "json", 0, replace(WINDOW, errors={"status 502": 7})))
    found.cells.append(Cell("portkey", "json", 0, replace(WINDOW, requests=0)))
    found.cells.append(Cell(DIRECT, "latency", 0, WINDOW))
    found.cells.append(Cell("litellm", "latency", 0, replace(WINDOW, requests=100)))
    found.absent["vllm-router"] = "skipped: no wheel"
    text = tables(found, [WORKLOADS["json"], WORKLOADS["latency"]])
    assert row(text, "nginx (!)")
    assert row(text, "portkey (!)")
    assert "- (!) nginx, json, round 1: 7 × status 502; 400 good answers, 0 events in the window" in text
    assert "- (!) portkey, json, round 1: nothing came" in text
    assert "- litellm, latency, round 1: saturated, it did 50 of 200 requests/s" in text
    assert "- vllm-router skipped: no wheel" in text


def test_memory_per_stream_and_starts() -> None:
    found = Results(rounds=1, starts=[Start("upshift", 0.5, 50_000_000, 80_000_000)])
    for name in (DIRECT, "upshift"):
        found.cells.append(Cell(name, "hold", 0, replace(WINDOW, requests=0, events=500, held=100)))
    text = tables(found, [WORKLOADS["hold"]])
    assert row(text, "upshift")[3:5] == ["100", "10.0"]
    assert row(text.partition("### Start")[2], "upshift") == ["upshift", "0.50", "50", "80"]


def test_chart_is_xml_with_a_bar_for_everybody_but_the_mock() -> None:
    found = results(direct=(90000,), upshift=(9000,), nginx=(60000,), litellm=(70,))
    assert medians(found, "json") == {"direct": 45000, "upshift": 4500, "nginx": 30000, "litellm": 35}
    root = ElementTree.fromstring(chart(found))  # noqa: S314 - our own text
    labels = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert [label for label in labels if label in ("nginx", "upshift", "litellm", "direct")] == [
        "nginx",
        "upshift",
        "litellm",
    ]
    assert "4,500" in labels


def test_every_window_is_in_the_json() -> None:
    found = json.loads(as_json(results(direct=(1,), upshift=(2,))))
    assert [cell["window"]["requests"] for cell in found["cells"]] == [1, 2]
