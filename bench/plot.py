"""Bars as SVG, written by hand: no plotting library for two pictures."""

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from bench.results import Figure, Report

WIDTH, BAR, GAP, LEFT, RIGHT, TOP = 760, 22, 10, 250, 120, 46
OURS, OTHERS, TEXT = "#2a78d6", "#9aa4b2", "#57606a"
FONT = "font-family='system-ui, sans-serif'"


def draw(report: Report, directory: Path) -> None:
    """Write one picture for each benchmark that has figures in requests a second."""
    directory.mkdir(parents=True, exist_ok=True)
    for result in report.results:
        bars = [one for one in result.figures if one.unit == "requests/s"]
        if bars:
            title = f"{result.bench}: requests a second, median of interleaved rounds"
            path = directory / f"{result.bench}.svg"
            path.write_text(_bars(title, bars, report.machine), encoding="utf-8")


def _bars(title: str, figures: Sequence[Figure], below: str) -> str:
    ordered = sorted(figures, key=lambda one: -one.value)
    scale = (WIDTH - LEFT - RIGHT) / ordered[0].value
    height = TOP + len(ordered) * (BAR + GAP) + 30
    size = f"width='{WIDTH}' height='{height}' viewBox='0 0 {WIDTH} {height}'"
    lines = [
        f"<svg xmlns='http://www.w3.org/2000/svg' {size} role='img'>",
        f"<title>{escape(title)}</title>",
        _text(12, 26, title, size=15, weight=600),
    ]
    for place, one in enumerate(ordered):
        y = TOP + place * (BAR + GAP)
        width = max(one.value * scale, 1)
        colour = OURS if "enginegate" in one.name else OTHERS
        lines += [
            _text(LEFT - 10, y + 15, one.name, anchor="end"),
            f"<rect x='{LEFT}' y='{y}' width='{width:.1f}' height='{BAR}' rx='3' fill='{colour}'/>",
            _text(LEFT + width + 8, y + 15, f"{one.value:,.0f}"),
        ]
    lines += [_text(12, height - 10, below, size=11), "</svg>", ""]
    return "\n".join(lines)


def _text(
    x: float, y: float, text: str, *, size: int = 13, anchor: str = "start", weight: int = 400
) -> str:
    return (
        f"<text x='{x:.1f}' y='{y}' {FONT} font-size='{size}' font-weight='{weight}' "
        f"text-anchor='{anchor}' fill='{TEXT}'>{escape(text)}</text>"
    )
