"""The staircase of bench_crossover.py as an SVG: tokens/s and p95 time to first token of each policy, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP = 760, 210, 70, 110, 40
_INK, _FAINT, _PAPER = "#1f2328", "#d0d7de", "#ffffff"
_COLOURS = ("#8c959f", "#bf8700", "#0969da", "#1a7f37", "#8250df")


class Measured(Protocol):
    """One step of one policy."""

    @property
    def tokens_per_second(self) -> float: ...

    @property
    def ttft_p95(self) -> float: ...


def chart(clients: Sequence[int], steps: Mapping[str, Sequence[Measured]]) -> str:
    """Two panels under each other, one line per policy."""
    panels: list[tuple[str, Callable[[Measured], float]]] = [
        ("tokens per second", lambda step: step.tokens_per_second),
        ("p95 time to first token, ms", lambda step: step.ttft_p95 * 1000),
    ]
    parts: list[str] = []
    for index, (title, figure) in enumerate(panels):
        lines = {name: [figure(step) for step in each] for name, each in steps.items()}
        parts += _panel(title, clients, lines, index * (_HEIGHT + _TOP))
    height = len(panels) * (_HEIGHT + _TOP) + 30
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{_INK}">'
    )
    paper = f'<rect width="{_WIDTH}" height="{height}" rx="8" fill="{_PAPER}"/>'
    below = f'<text x="{_LEFT}" y="{height - 10}">clients at the same time, one step after the other</text>'
    return "\n".join([head, paper, *parts, below, "</svg>", ""])


def _panel(title: str, clients: Sequence[int], lines: Mapping[str, Sequence[float]], top: int) -> list[str]:
    most = max(max(line) for line in lines.values()) or 1.0
    bottom, room = top + _HEIGHT, _WIDTH - _LEFT - _RIGHT

    def at(index: int, value: float) -> str:
        x = _LEFT + room * index / max(len(clients) - 1, 1)
        return f"{x:.1f},{bottom - (_HEIGHT - _TOP) * value / most:.1f}"

    parts = [f'<text x="16" y="{top + 20}" font-weight="600">{title}</text>']
    for share in (0.0, 0.5, 1.0):
        y = bottom - (_HEIGHT - _TOP) * share
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" stroke="{_FAINT}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{most * share:,.0f}</text>')
    for index, count in enumerate(clients):
        x = at(index, 0).partition(",")[0]
        parts.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{count}</text>')
    for row, (name, line) in enumerate(lines.items()):
        colour = _COLOURS[row % len(_COLOURS)]
        points = " ".join(at(index, value) for index, value in enumerate(line))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        y = top + _TOP + 18 * row
        parts.append(f'<text x="{_WIDTH - _RIGHT + 12}" y="{y}" fill="{colour}">{name}</text>')
    return parts
