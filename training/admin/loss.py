"""How the loss of a run went, drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from django.utils.html import format_html
from django.utils.safestring import SafeString

from captioner.admin.plots import BOTTOM, LEFT, TOP, WIDTH, legend_of, level, polyline, short, svg, text, ticks_between


def loss_curves(curve: Sequence[Sequence[float]], epochs: Sequence[Sequence[float]]) -> SafeString:
    """Training loss of single steps and of epochs, and validation loss; below, over the same steps, the learning rate.

    Args:
        curve: (step, training loss, learning rate).
        epochs: (step, mean training loss of the epoch, validation loss).
    """
    losses = [row[1] for row in curve] + [loss for row in epochs for loss in row[1:]]
    steps = [row[0] for row in curve] + [row[0] for row in epochs]
    if not losses:
        return format_html('<p class="quiet">{}</p>', "No training steps yet.")
    last, right = max(max(steps), 1), 16

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - right) * step / last

    def scale(values: Sequence[float], height: int, count: int) -> tuple[list[SafeString], Callable[[float], float]]:
        ticks = ticks_between(min(values), max(values), count)
        span = height - TOP - BOTTOM

        def y(value: float) -> float:
            return TOP + span * (1 - (value - ticks[0]) / (ticks[-1] - ticks[0]))

        levels = [level(y(tick), WIDTH - right, short(tick)) for tick in ticks]
        under = [text(x(tick), height - 10, short(tick), "middle") for tick in ticks_between(0, last) if tick <= last]
        return levels + under, y

    height = 280
    parts, y = scale(losses, height, 4)
    parts.append(polyline([(x(step), y(loss)) for step, loss, _ in curve], "training faint"))
    for name, column in (("training", 1), ("validation", 2)):
        points = [(x(row[0]), y(row[column])) for row in epochs]
        parts.append(polyline(points, name))
        parts += [
            format_html(
                '<circle class="{}" cx="{}" cy="{}" r="3.5"><title>step {}: {} loss {}</title></circle>',
                *(name, f"{px:.1f}", f"{py:.1f}", short(row[0]), name, f"{row[column]:.4f}"),
            )
            for row, (px, py) in zip(epochs, points, strict=True)
        ]
    legend = legend_of([("training", "training loss"), ("validation", "validation loss"), ("rate", "learning rate")])
    drawn = svg(height, parts, "Loss by step")
    rates = [row[2] for row in curve]
    if any(rates):
        parts, y = scale([0.0, *rates], 110, 2)
        parts.append(polyline([(x(step), y(rate)) for step, _, rate in curve], "rate"))
        drawn = format_html("{}{}", drawn, svg(110, parts, "Learning rate by step"))
    return format_html("{}{}", drawn, legend)
