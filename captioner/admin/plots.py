"""Drawings of numbers as SVG, made on the server.

Colours and letters come from the page's style sheet (static/admin/clipcap.css), so they follow light and dark; the
content security policy allows neither scripts nor styles inside a page anyway.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from django.utils.html import escape, format_html, format_html_join
from django.utils.safestring import SafeString

WIDTH, LEFT, TOP, BOTTOM = 720, 72, 12, 30  # LEFT is room for six digits in a phone's larger letters
COLOURS = 6  # of series in the style sheet

Point = tuple[float, float]


def bars(labels: Sequence[str], series: Mapping[str, Sequence[int]], title: str, height: int = 170) -> SafeString:
    """Columns, one for each label, in which the series stand on one another.

    Args:
        series: by its name, which is also its class in the style sheet.
    """
    totals = [sum(values) for values in zip(*series.values(), strict=True)]
    if not totals or not max(totals):
        return format_html('<p class="quiet">{}: nothing yet.</p>', title)
    ticks = [tick for tick in ticks_between(0, max(totals), 3) if tick == int(tick)]
    high = max(*totals, *ticks)
    room, span = (WIDTH - LEFT - 8) / len(labels), height - TOP - BOTTOM
    parts = [level(TOP + span * (1 - tick / high), WIDTH - 8, short(tick)) for tick in ticks]
    every = math.ceil(len(labels) / 12)
    for place, label in enumerate(labels):
        left, base = LEFT + place * room, float(TOP + span)
        columns = []
        for name, values in series.items():
            size = span * values[place] / high
            base -= size
            if size:
                columns.append((name, f"{left + room * 0.12:.1f}", f"{base:.1f}", f"{room * 0.76:.1f}", f"{size:.1f}"))
        drawn = format_html_join("", '<rect class="{}" x="{}" y="{}" width="{}" height="{}"/>', columns)
        counts = ", ".join(f"{values[place]:,} {name}" for name, values in series.items() if values[place])
        parts.append(format_html("<g><title>{}: {}</title>{}</g>", label, counts or "none", drawn))
        if place % every == 0:
            parts.append(text(left + room / 2, height - 10, label, "middle"))
    drawing = svg(height, parts, title)
    return drawing if len(series) == 1 else format_html("{}{}", drawing, legend_of([(n, n) for n in series]))


def score_bars(scores: Mapping[str, Mapping[str, float]], title: str, colours: Mapping[str, int]) -> SafeString:
    """Scores of a few versions, metric by metric, as horizontal bars: all on one scale, which begins at zero.

    Args:
        scores: by metric, then by version.
        colours: of the versions, see `captioner.admin.scores.colours_of`.
    """
    versions = list(dict.fromkeys(version for values in scores.values() for version in values))
    if not versions:
        return format_html('<p class="quiet">{}: nothing yet.</p>', title)
    ticks = ticks_between(0, max(value for values in scores.values() for value in values.values()))
    top, left, right = 8.0, 72, 480
    bottom = top + sum(15 * len(values) + 9 for values in scores.values())

    def x(value: float) -> float:
        return left + (right - left - 50) * max(0.0, value) / ticks[-1]

    parts = []
    for tick in ticks:
        parts.append(
            format_html('<line class="level" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>', f"{x(tick):.1f}", top, bottom)
        )
        parts.append(text(x(tick), bottom + 14, short(tick), "middle"))
    y = top
    for metric, values in scores.items():
        parts.append(text(left - 8, y + 8 * len(values) + 3, metric, "end"))
        for version, value in values.items():
            width = max(x(value) - left, 1)
            parts.append(
                format_html(
                    '<rect class="series-{}" x="{}" y="{}" width="{}" height="12"><title>{} of {}: {}</title></rect>',
                    *(colours[version], left, f"{y:.1f}", f"{width:.1f}", metric, version, f"{value:.4f}"),
                )
            )
            parts.append(text(left + width + 6, y + 10, f"{value:.3f}", "start"))
            y += 15
        y += 9
    legend = legend_of([(f"series-{colours[version]}", version) for version in versions])
    return format_html("{}{}", svg(int(bottom) + 20, parts, title, right), legend)


def lines(series: Mapping[str, Sequence[Point]], title: str) -> SafeString:
    """A line with dots for each series of (x, y), and its name at the end of it."""
    points = [point for row in series.values() for point in row]
    if not points:
        return format_html('<p class="quiet">{}: nothing yet.</p>', title)
    height, right = 300, 110
    across = ticks_between(min(p[0] for p in points), max(p[0] for p in points))
    upward = ticks_between(min(p[1] for p in points), max(p[1] for p in points))

    def at(point: Point) -> Point:
        return (
            LEFT + (WIDTH - LEFT - right) * (point[0] - across[0]) / (across[-1] - across[0]),
            TOP + (height - TOP - BOTTOM) * (1 - (point[1] - upward[0]) / (upward[-1] - upward[0])),
        )

    parts = [level(at((across[0], tick))[1], WIDTH - right, short(tick)) for tick in upward]
    parts += [text(at((tick, upward[0]))[0], height - 10, short(tick), "middle") for tick in across]
    for place, (name, row) in enumerate(series.items()):
        drawn = [at(point) for point in sorted(row)]
        kind = f"line-{place % COLOURS}"
        parts.append(polyline(drawn, kind))
        parts += [
            format_html('<circle class="{}" cx="{}" cy="{}" r="3.5"/>', kind, f"{x:.1f}", f"{y:.1f}") for x, y in drawn
        ]
        parts.append(text(drawn[-1][0] + 8, drawn[-1][1] + 4, name, "start"))
    return svg(height, parts, title)


def heat_map(values: Sequence[Sequence[float]], labels: Sequence[str], title: str) -> SafeString:
    """A square of numbers from 0 to 1 as a square of cells, the darker the higher, labelled at both sides."""
    size, left, top = 26, 30, 22
    parts = []
    for row, numbers in enumerate(values):
        y = top + row * size
        parts.append(text(left - 8, y + size / 2 + 4, labels[row], "end"))
        parts.append(text(left + (row + 0.5) * size, top - 7, labels[row], "middle"))
        for column, number in enumerate(numbers):
            parts.append(
                format_html(
                    '<rect class="series-0" x="{}" y="{}" width="{}" height="{}" fill-opacity="{}">'
                    "<title>{} and {}: {}</title></rect>",
                    *(left + column * size, y, size - 2, size - 2, f"{min(1.0, max(0.0, number)):.3f}"),
                    *(labels[row], labels[column], f"{number:.3f}"),
                )
            )
    side = len(values) * size
    return svg(top + side + 4, parts, title, max(left + side + 4, 300))  # few cells stay small


def as_file(drawing: SafeString) -> str:
    """A drawing as an SVG file of its own, which has no page's style sheet to rely on."""
    style = (
        "svg{background:#fff;font:12px system-ui,sans-serif}text{fill:#333}polyline{fill:none;stroke-width:2}"
        ".level{stroke:#ddd}.line-0{stroke:#1f6feb}circle.line-0{fill:#1f6feb}.line-1{stroke:#b3541e}"
        "circle.line-1{fill:#b3541e}"
    )
    named = drawing.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return named.replace(">", f"><style>{style}</style>", 1)


# What the drawings consist of, those of other apps too.


def svg(height: int, parts: Sequence[SafeString], title: str, width: int = WIDTH) -> SafeString:
    """The parts as one picture. What is wide becomes small on a phone: the style sheet has larger letters for it."""
    inside = format_html_join("", "{}", ((part,) for part in parts))
    kind = "plot wide" if width == WIDTH else "plot"
    return format_html(
        '<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>', kind, width, height, title, inside
    )


def polyline(points: Sequence[Point], kind: str) -> SafeString:
    """A line through the points, of a class in the style sheet."""
    return format_html('<polyline class="{}" points="{}"/>', kind, " ".join(f"{x:.1f},{y:.1f}" for x, y in points))


def level(y: float, right: float, label: str) -> SafeString:
    """A horizontal line from the axis to the right, labelled at its left end."""
    line = format_html('<line class="level" x1="{}" x2="{}" y1="{}" y2="{}"/>', LEFT, right, f"{y:.1f}", f"{y:.1f}")
    return format_html("{}{}", line, text(LEFT - 6, y + 4, label, "end"))


def text(x: float, y: float, text: str, anchor: str) -> SafeString:
    """Words at a place, which is their `start`, `middle` or `end`."""
    return format_html('<text x="{}" y="{}" text-anchor="{}">{}</text>', f"{x:.1f}", f"{y:.1f}", anchor, escape(text))


def legend_of(entries: Sequence[tuple[str, str]]) -> SafeString:
    """The legend: for each class in the style sheet what it stands for."""
    items = format_html_join("", '<li><span class="key {}"></span>{}</li>', entries)
    return format_html('<ul class="legend">{}</ul>', items)


def ticks_between(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers that cover low to high."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= count)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


def short(number: float) -> str:
    """A number for an axis."""
    return f"{number:,.0f}" if number == int(number) else f"{number:.4g}"
