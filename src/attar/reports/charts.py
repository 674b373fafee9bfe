"""Line charts as a page draws them: polylines in a fixed frame, between the round numbers around them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

_WIDTH, _HEIGHT = 560, 200  # of the drawing, which the page stretches
_MOST_POINTS = 400  # of a line: more than a screen has room for

Points = Sequence[tuple[int, float]]
"""(step, value), in order."""


def chart(
    title: str,
    series: Mapping[str, Points],
    levels: Mapping[Any, float] | None = None,
    *,
    styles: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Lines over steps and level lines, between the round numbers around them.

    Args:
        title: What is drawn.
        series: Points by the name of their line.
        levels: Values by the name of their level line.
        styles: Class in `style.css` of a line; by default its name, which must then be one of attar's own.
    """
    levels, styles = levels or {}, styles or {}
    series = {name: thinned(points) for name, points in series.items()}
    ticks = ticks_around([value for points in series.values() for _, value in points] + [*levels.values()])
    last = max(step for points in series.values() for step, _ in points)

    def x(step: int) -> float:
        return round(_WIDTH * step / max(last, 1), 1)

    def y(value: float) -> float:
        return round(_HEIGHT * (ticks[-1] - value) / (ticks[-1] - ticks[0]), 1)

    decimals = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    return {
        "title": title,
        "width": _WIDTH,
        "height": _HEIGHT,
        "last": f"{last:,}",
        "ticks": [{"y": y(tick), "value": f"{tick:,.{decimals}f}"} for tick in reversed(ticks)],
        "lines": [
            {
                "name": name,
                "style": styles.get(name, name),
                "value": f"{points[-1][1]:,.{decimals + 1}f}",
                "points": " ".join(f"{x(step)},{y(value)}" for step, value in points),
                "end": (x(points[-1][0]), y(points[-1][1])),
            }
            for name, points in series.items()
        ],
        "levels": [
            {"name": name, "style": name, "value": f"{value:,.{decimals + 1}f}", "y": y(value)}
            for name, value in levels.items()
        ],
    }


def thinned(points: Points) -> list[tuple[int, float]]:
    """At most `_MOST_POINTS` of them at equal distances, the first and the last among them."""
    if len(points) <= _MOST_POINTS:
        return list(points)
    return [points[round(number * (len(points) - 1) / (_MOST_POINTS - 1))] for number in range(_MOST_POINTS)]


def ticks_around(values: Sequence[float]) -> list[float]:
    """Round numbers at equal distances, two to seven of them, the outer ones around all values."""
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 5))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= span / 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    if first == last:  # down where there is room: no share lies above 100 %
        first, last = (first - 1, last) if first > 0 else (first, last + 1)
    return [number * step for number in range(first, last + 1)]
