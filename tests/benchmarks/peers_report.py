"""Medians, added latency and ratios over the rounds, as Markdown tables and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median

from tests.benchmarks.peers import PEERS, UPSHIFT
from tests.benchmarks.peers_run import Window
from tests.benchmarks.peers_workload import RATE, Workload

DIRECT = "direct"
_SATURATED_BELOW = 0.95


@dataclass(frozen=True, slots=True)
class Cell:
    """One window of one contestant; the contestant "direct" is the mock without a gateway."""

    contestant: str
    workload: str
    round_number: int
    window: Window


@dataclass(frozen=True, slots=True)
class Start:
    """What one start cost: until the first answered chat; memory then, and the most after a window of load."""

    contestant: str
    start_seconds: float
    idle_bytes: int
    loaded_bytes: int


@dataclass(slots=True)
class Results:
    """Everything a run found. `absent`: who could not take part, and why."""

    rounds: int
    cells: list[Cell] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)

    def windows(self, contestant: str, workload: str) -> dict[int, Window]:
        """By round."""
        return {
            cell.round_number: cell.window
            for cell in self.cells
            if (cell.contestant, cell.workload) == (contestant, workload)
        }

    def contestants(self) -> list[str]:
        """Those that were measured, in a fixed order."""
        measured = {cell.contestant for cell in self.cells}
        return [name for name in (DIRECT, *PEERS) if name in measured]


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of a window; `value` gets the window and that of "direct" in the same round. None: not applicable.
    `ratio`: it is also compared."""

    title: str
    value: Callable[[Window, Window], float | None]
    form: str = "{:,.0f}"
    ratio: bool = False


def _per(count: float, total: float) -> float | None:
    return total / count if count else None


def _added(field_name: str) -> Callable[[Window, Window], float | None]:
    def value(window: Window, direct: Window) -> float | None:
        if window is direct or not window.requests:
            return None
        return float(getattr(window, field_name) - getattr(direct, field_name)) / 1000

    return value


_REQUESTS = Column("requests/s", lambda w, _: w.requests / w.seconds)
_CHUNKS = Column("chunks/s", lambda w, _: w.events / w.seconds)
_P50 = Column("p50, ms", lambda w, _: w.p50_us / 1000 if w.requests else None, "{:.2f}")
_P99 = Column("p99, ms", lambda w, _: w.p99_us / 1000 if w.requests else None, "{:.2f}")
_ADDED_P50 = Column("added p50, ms", _added("p50_us"), "{:.2f}", ratio=True)
_CORE = Column("its core", lambda w, _: w.cpu_seconds / w.seconds, "{:.0%}")
_GENERATOR = Column("load's core", lambda w, _: w.generator_cpu_seconds / w.seconds, "{:.0%}")

# The first column is the one that a chart shows.
_COLUMNS: dict[str, tuple[Column, ...]] = {
    "latency": (
        _ADDED_P50,
        Column("added p99, ms", _added("p99_us"), "{:.2f}", ratio=True),
        _P50,
        _P99,
        _REQUESTS,
        _CORE,
    ),
    "solo": (_ADDED_P50, _P50, _P99, _REQUESTS, _CORE, _GENERATOR),
    "hold": (
        Column("p99 off pace, ms", lambda w, _: w.gap_p99_us / 1000, "{:.1f}", ratio=True),
        Column("p50 off pace, ms", lambda w, _: w.gap_p50_us / 1000, "{:.2f}"),
        Column("streams held", lambda w, _: w.held),
        Column(
            "KB/stream",
            lambda w, direct: (
                None if w is direct else _per(w.held, (w.resident_bytes - w.resident_bytes_before) / 1000)
            ),
            "{:.1f}",
            ratio=True,
        ),
        _CHUNKS,
        _CORE,
        _GENERATOR,
    ),
    "json": (
        replace(_REQUESTS, ratio=True),
        Column("CPU µs/request", lambda w, _: _per(w.requests, w.cpu_seconds * 1e6), "{:,.1f}", ratio=True),
        _P50,
        _P99,
        _CORE,
        _GENERATOR,
    ),
    "burst": (
        replace(_CHUNKS, ratio=True),
        Column("CPU µs/chunk", lambda w, _: _per(w.events, w.cpu_seconds * 1e6), "{:,.2f}", ratio=True),
        Column("whole stream p50, ms", lambda w, _: w.p50_us / 1000 if w.requests else None, "{:.1f}"),
        _CORE,
        _GENERATOR,
    ),
}


def tables(results: Results, workloads: Sequence[Workload]) -> str:
    """One Markdown table per workload, one of the starts, and what went wrong."""
    blocks = [_table(results, workload) for workload in workloads]
    if results.starts:
        blocks.append(_starts(results))
    return "\n\n".join([*blocks, _notes(results)])


def medians(results: Results, workload: str, column: int = 0) -> dict[str, float]:
    """Contestant -> median of the workload's column; those without one are left out."""
    found = {}
    for name in results.contestants():
        values = list(_values(results, name, workload, _COLUMNS[workload][column]).values())
        if values:
            found[name] = median(values)
    return found


def _table(results: Results, workload: Workload) -> str:
    columns = _COLUMNS[workload.name]
    compared = [column for column in columns if column.ratio]
    ratio_titles = [f"{UPSHIFT} / it, {column.title.partition(',')[0]}" for column in compared]
    rows = [["", *(column.title for column in columns), *ratio_titles]]
    ours = {column.title: _values(results, UPSHIFT, workload.name, column) for column in compared}
    for name in results.contestants():
        theirs = {column.title: _values(results, name, workload.name, column) for column in columns}
        figures = [c.form.format(median(theirs[c.title].values())) if theirs[c.title] else "–" for c in columns]
        ratios = ["" if name == UPSHIFT else _ratio(ours[c.title], theirs[c.title]) for c in compared]
        rows.append([_marked(results, name, workload.name), *figures, *ratios])
    return f"### {workload.title}\n\n{_markdown(rows)}"


def _values(results: Results, name: str, workload: str, column: Column) -> dict[int, float]:
    direct = results.windows(DIRECT, workload)
    found = {number: column.value(w, direct[number]) for number, w in results.windows(name, workload).items()}
    return {number: value for number, value in found.items() if value is not None}


def _ratio(ours: dict[int, float], theirs: dict[int, float]) -> str:
    """Ours over theirs, round by round: neighbours in time share the machine's mood."""
    ratios = [ours[number] / theirs[number] for number in ours if theirs.get(number, 0) > 0]
    if not ratios:
        return ""
    middle_ratio = median(ratios)
    digits = 0 if middle_ratio >= 10 else 2 if middle_ratio >= 0.1 else 4
    low, middle, high = (f"{value:,.{digits}f}" for value in (min(ratios), middle_ratio, max(ratios)))
    return f"{middle} ({low}–{high})" if len(ratios) > 1 else middle


def _marked(results: Results, name: str, workload: str) -> str:
    return f"{name} (!)" if any(map(_failed, results.windows(name, workload).values())) else name


def _failed(window: Window) -> bool:
    return bool(window.errors) or not (window.requests or window.events)


def _starts(results: Results) -> str:
    rows = [["", "start-up, s", "idle, MB", "most under load, MB"]]
    for name in results.contestants():
        some = [start for start in results.starts if start.contestant == name]
        if some:
            sizes = (median(s.idle_bytes for s in some) / 1e6, max(s.loaded_bytes for s in some) / 1e6)
            rows.append([name, f"{median(s.start_seconds for s in some):.2f}", *(f"{size:.0f}" for size in sizes)])
    return f"### Start and memory\n\n{_markdown(rows)}"


def _notes(results: Results) -> str:
    lines = [f"{name} {reason}" for name, reason in results.absent.items()]
    for cell in results.cells:
        window, where = cell.window, f"{cell.contestant}, {cell.workload}, round {cell.round_number + 1}"
        if _failed(window):
            listed = ", ".join(f"{count} × {kind}" for kind, count in window.errors.items())
            good = f"{window.requests} good answers, {window.events} events"
            lines.append(f"(!) {where}: {listed or 'nothing came'}; {good} in the window")
        if cell.workload == "latency" and window.requests / window.seconds < RATE * _SATURATED_BELOW:
            lines.append(f"{where}: saturated, it did {window.requests / window.seconds:.0f} of {RATE} requests/s")
    return "\n".join(f"- {line}" for line in lines or ["errors: none, every answer was checked and complete"])


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        " | ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    rule = "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])])
    return "\n".join(["| " + lines[0] + " |", "|" + rule + "|", *(f"| {line} |" for line in lines[1:])])


def as_json(results: Results) -> str:
    """Every window of every round."""
    return json.dumps(asdict(results), indent=1)
