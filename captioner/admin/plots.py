"""Drawings of numbers as SVG, made on the server.

Colours and letters come from the page's style sheet (static/admin/clipcap.css), so they follow light and dark; the
content security policy allows neither scripts nor styles inside a page anyway.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from django.utils.html import escape, format_html, format_html_join
from django.utils.safestring import SafeString

WIDTH, LEFT, TOP, BOTTOM = 720, 48, 12, 30
COLOURS = 6  # of series in the style sheet

Point = tuple[float, float]


def loss_curves(curve: Sequence[Sequence[float]], checkpoints: Sequence[Sequence[float]]) -> SafeString:
    """Training loss of single steps and of epochs, and validation loss; below, over the same steps, the learning rate.

    Args:
        curve: (step, training loss, learning rate).
        checkpoints: (step, mean training loss of the epoch, validation loss).
    """
    losses = [row[1] for row in curve] + [loss for row in checkpoints for loss in row[1:]]
    steps = [row[0] for row in curve] + [row[0] for row in checkpoints]
    if not losses:
        return format_html('<p class="quiet">{}</p>', "No training steps yet.")
    last, right = max(max(steps), 1), 16

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - right) * step / last

    def scale(values: Sequence[float], height: int, count: int) -> tuple[list[SafeString], Callable[[float], float]]:
        ticks = _ticks(min(values), max(values), count)
        span = height - TOP - BOTTOM

        def y(value: float) -> float:
            return TOP + span * (1 - (value - ticks[0]) / (ticks[-1] - ticks[0]))

        levels = [_level(y(tick), WIDTH - right, _short(tick)) for tick in ticks]
        under = [_text(x(tick), height - 10, _short(tick), "middle") for tick in _ticks(0, last) if tick <= last]
        return levels + under, y

    height = 280
    parts, y = scale(losses, height, 4)
    parts.append(_line([(x(step), y(loss)) for step, loss, _ in curve], "training faint"))
    for name, column in (("training", 1), ("validation", 2)):
        points = [(x(row[0]), y(row[column])) for row in checkpoints]
        parts.append(_line(points, name))
        parts += [
            format_html(
                '<circle class="{}" cx="{}" cy="{}" r="3.5"><title>step {}: {} loss {}</title></circle>',
                *(name, f"{px:.1f}", f"{py:.1f}", _short(row[0]), name, f"{row[column]:.4f}"),
            )
            for row, (px, py) in zip(checkpoints, points, strict=True)
        ]
    legend = _legend([("training", "training loss"), ("validation", "validation loss"), ("rate", "learning rate")])
    drawn = _svg(height, parts, "Loss by step")
    rates = [row[2] for row in curve]
    if any(rates):
        parts, y = scale([0.0, *rates], 110, 2)
        parts.append(_line([(x(step), y(rate)) for step, _, rate in curve], "rate"))
        drawn = format_html("{}{}", drawn, _svg(110, parts, "Learning rate by step"))
    return format_html("{}{}", drawn, legend)


def bars(labels: Sequence[str], series: Mapping[str, Sequence[int]], title: str, height: int = 170) -> SafeString:
    """Columns, one for each label, in which the series stand on one another.

    Args:
        series: by its name, which is also its class in the style sheet.
    """
    totals = [sum(values) for values in zip(*series.values(), strict=True)]
    if not totals or not max(totals):
        return format_html('<p class="quiet">{}: nothing yet.</p>', title)
    ticks = [tick for tick in _ticks(0, max(totals), 3) if tick == int(tick)]
    high = max(*totals, *ticks)
    room, span = (WIDTH - LEFT - 8) / len(labels), height - TOP - BOTTOM
    parts = [_level(TOP + span * (1 - tick / high), WIDTH - 8, _short(tick)) for tick in ticks]
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
            parts.append(_text(left + room / 2, height - 10, label, "middle"))
    drawing = _svg(height, parts, title)
    return drawing if len(series) == 1 else format_html("{}{}", drawing, _legend([(n, n) for n in series]))


def score_bars(scores: Mapping[str, Mapping[str, float]], title: str, colours: Mapping[str, int]) -> SafeString:
    """Scores of a few versions, metric by metric, as horizontal bars: all on one scale, which begins at zero.

    Args:
        scores: by metric, then by version.
        colours: of the versions, see `captioner.admin.scores.colours_of`.
    """
    versions = list(dict.fromkeys(version for values in scores.values() for version in values))
    if not versions:
        return format_html('<p class="quiet">{}: nothing yet.</p>', title)
    ticks = _ticks(0, max(value for values in scores.values() for value in values.values()))
    top, left, right = 8.0, 72, 480
    bottom = top + sum(15 * len(values) + 9 for values in scores.values())

    def x(value: float) -> float:
        return left + (right - left - 50) * max(0.0, value) / ticks[-1]

    parts = []
    for tick in ticks:
        parts.append(
            format_html('<line class="level" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>', f"{x(tick):.1f}", top, bottom)
        )
        parts.append(_text(x(tick), bottom + 14, _short(tick), "middle"))
    y = top
    for metric, values in scores.items():
        parts.append(_text(left - 8, y + 8 * len(values) + 3, metric, "end"))
        for version, value in values.items():
            width = max(x(value) - left, 1)
            parts.append(
                format_html(
                    '<rect class="series-{}" x="{}" y="{}" width="{}" height="12"><title>{} of {}: {}</title></rect>',
                    *(colours[version], left, f"{y:.1f}", f"{width:.1f}", metric, version, f"{value:.4f}"),
                )
            )
            parts.append(_text(left + width + 6, y + 10, f"{value:.3f}", "start"))
            y += 15
        y += 9
    legend = _legend([(f"series-{colours[version]}", version) for version in versions])
    return format_html("{}{}", _svg(int(bottom) + 20, parts, title, right), legend)


def lines(series: Mapping[str, Sequence[Point]], title: str) -> SafeString:
    """A line with dots for each series of (x, y), and its name at the end of it."""
    points = [point for row in series.values() for point in row]
    if not points:
        return format_html('<p class="quiet">{}: nothing yet.</p>', title)
    height, right = 300, 110
    across = _ticks(min(p[0] for p in points), max(p[0] for p in points))
    upward = _ticks(min(p[1] for p in points), max(p[1] for p in points))

    def at(point: Point) -> Point:
        return (
            LEFT + (WIDTH - LEFT - right) * (point[0] - across[0]) / (across[-1] - across[0]),
            TOP + (height - TOP - BOTTOM) * (1 - (point[1] - upward[0]) / (upward[-1] - upward[0])),
        )

    parts = [_level(at((across[0], tick))[1], WIDTH - right, _short(tick)) for tick in upward]
    parts += [_text(at((tick, upward[0]))[0], height - 10, _short(tick), "middle") for tick in across]
    for place, (name, row) in enumerate(series.items()):
        drawn = [at(point) for point in sorted(row)]
        kind = f"line-{place % COLOURS}"
        parts.append(_line(drawn, kind))
        parts += [
            format_html('<circle class="{}" cx="{}" cy="{}" r="3.5"/>', kind, f"{x:.1f}", f"{y:.1f}") for x, y in drawn
        ]
        parts.append(_text(drawn[-1][0] + 8, drawn[-1][1] + 4, name, "start"))
    return _svg(height, parts, title)


def heat_map(values: Sequence[Sequence[float]], labels: Sequence[str], title: str) -> SafeString:
    """A square of numbers from 0 to 1 as a square of cells, the darker the higher, labelled at both sides."""
    size, left, top = 26, 30, 22
    parts = []
    for row, numbers in enumerate(values):
        y = top + row * size
        parts.append(_text(left - 8, y + size / 2 + 4, labels[row], "end"))
        parts.append(_text(left + (row + 0.5) * size, top - 7, labels[row], "middle"))
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
    return _svg(top + side + 4, parts, title, max(left + side + 4, 300))  # few cells stay small


def as_file(drawing: SafeString) -> str:
    """A drawing as an SVG file of its own, which has no page's style sheet to rely on."""
    style = (
        "svg{background:#fff;font:12px system-ui,sans-serif}text{fill:#333}polyline{fill:none;stroke-width:2}"
        ".level{stroke:#ddd}.line-0{stroke:#1f6feb}circle.line-0{fill:#1f6feb}.line-1{stroke:#b3541e}"
        "circle.line-1{fill:#b3541e}"
    )
    named = drawing.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return named.replace(">", f"><style>{style}</style>", 1)


def _svg(height: int, parts: Sequence[SafeString], title: str, width: int = WIDTH) -> SafeString:
    inside = format_html_join("", "{}", ((part,) for part in parts))
    return format_html(
        '<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>', width, height, title, inside
    )


def _line(points: Sequence[Point], kind: str) -> SafeString:
    return format_html('<polyline class="{}" points="{}"/>', kind, " ".join(f"{x:.1f},{y:.1f}" for x, y in points))


def _level(y: float, right: float, label: str) -> SafeString:
    line = format_html('<line class="level" x1="{}" x2="{}" y1="{}" y2="{}"/>', LEFT, right, f"{y:.1f}", f"{y:.1f}")
    return format_html("{}{}", line, _text(LEFT - 6, y + 4, label, "end"))


def _text(x: float, y: float, text: str, anchor: str) -> SafeString:
    return format_html('<text x="{}" y="{}" text-anchor="{}">{}</text>', f"{x:.1f}", f"{y:.1f}", anchor, escape(text))


def _legend(entries: Sequence[tuple[str, str]]) -> SafeString:
    items = format_html_join("", '<li><span class="key {}"></span>{}</li>', entries)
    return format_html('<ul class="legend">{}</ul>', items)


def _ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers that cover low to high."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= count)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


def _short(number: float) -> str:
    return f"{number:,.0f}" if number == int(number) else f"{number:.4g}"
