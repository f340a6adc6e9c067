"""The medians of a run as an SVG for the README: two panels of bars, written by hand, readable on light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping
from xml.sax.saxutils import escape

from tests.benchmarks.peers import UPSHIFT
from tests.benchmarks.peers_report import DIRECT, Results, medians

_WIDTH, _LABEL, _VALUE, _ROW, _BAR = 760, 130, 90, 26, 16
_INK, _FAINT, _OURS, _THEIRS, _PAPER = "#1f2328", "#d0d7de", "#0969da", "#8c959f", "#ffffff"
_PANELS = (("json", "JSON answers: requests/s on one core"), ("burst", "Streams: chunks/s on one core"))


def chart(results: Results) -> str:
    """One panel per workload measured, contestants in order of their figure, logarithmic axes."""
    parts: list[str] = []
    top = 16
    for workload, title in _PANELS:
        figures = {n: v for n, v in medians(results, workload).items() if n != DIRECT and v > 0}
        if figures:
            parts += _panel(figures, title, top)
            top += 62 + _ROW * len(figures)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" width="{_WIDTH}" height="{top}" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="{_INK}">'
    )
    paper = f'<rect width="{_WIDTH}" height="{top}" rx="8" fill="{_PAPER}"/>'
    return "\n".join([head, paper, *parts, "</svg>", ""])


def _panel(figures: Mapping[str, float], title: str, top: int) -> list[str]:
    low = math.floor(math.log10(min(figures.values())))
    high = math.ceil(math.log10(max(figures.values())))
    low = min(low, high - 1)
    first_row, room = top + 34, _WIDTH - _LABEL - _VALUE
    bottom = first_row + _ROW * len(figures)

    def x(value: float) -> float:
        return round(_LABEL + room * (math.log10(value) - low) / (high - low), 1)

    parts = [f'<text x="16" y="{top + 16}" font-weight="600">{escape(title)} (logarithmic)</text>']
    for power in range(low, high + 1):
        at = x(10**power)
        parts.append(f'<line x1="{at}" y1="{first_row - 4}" x2="{at}" y2="{bottom}" stroke="{_FAINT}"/>')
        parts.append(f'<text x="{at}" y="{bottom + 14}" text-anchor="middle" font-size="11">{10**power:,}</text>')
    ordered = sorted(figures.items(), key=lambda item: -item[1])
    for row, (name, value) in enumerate(ordered):
        y = first_row + _ROW * row
        ours = name == UPSHIFT
        weight = ' font-weight="600"' if ours else ""
        width = max(round(x(value) - _LABEL, 1), 1)
        parts += [
            f'<text x="{_LABEL - 8}" y="{y + 13}" text-anchor="end"{weight}>{escape(name)}</text>',
            f'<rect x="{_LABEL}" y="{y}" width="{width}" height="{_BAR}" fill="{_OURS if ours else _THEIRS}"/>',
            f'<text x="{_LABEL + width + 6}" y="{y + 13}"{weight}>{value:,.0f}</text>',
        ]
    return parts
