"""Figures as inline SVG, without a library: they take their colours from the page, so that dark mode and print work,
and can be read without any, because curves differ by dash and marker and bear their own labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from fedkd.report.document import Bar, Figure, Lines, Series, shortened, used_of

WIDTH, HEIGHT = 720, 330
LEFT, RIGHT, TOP, BOTTOM = 66, 204, 22, 48
BAR, BAR_LEFT, BAR_RIGHT = 30, 200, 230
LABEL = 14
"""Height of a line of text; labels are kept this far apart."""

STYLES = 8
"""Curves that can be told apart; a figure has no more."""

NAME = 24
"""Characters of a label that there is room for."""

MARKED = 12
"""Points of a curve that bear a marker, at the most."""


def svg(figure: Figure, number: int) -> str:
    """An ``<svg>`` element; ``number`` is unique in the page."""
    if isinstance(figure, Lines):
        return _wrap(figure, number, HEIGHT, _lines(figure))
    return _wrap(figure, number, len(figure.bars) * BAR + 8, _bars(figure.bars))


def _wrap(figure: Figure, number: int, height: int, body: Iterable[str]) -> str:
    title, summary = f"figure-{number}-title", f"figure-{number}-summary"
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="{title} {summary}">'
        f'<title id="{title}">{escape(figure.title)}</title><desc id="{summary}">{escape(figure.summary)}</desc>'
        f"{''.join(body)}</svg>"
    )


# -- curves ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """Values low..high on pixels start..end; infinity has a place of its own beyond the end of a linear axis."""

    ticks: tuple[float, ...]
    start: float
    end: float
    log: bool = False
    beyond: float = 0.0

    def at(self, value: float) -> float:
        """The pixel of a value."""
        if math.isinf(value):
            return self.beyond
        low, high, value = (math.log10(v) if self.log else v for v in (self.ticks[0], self.ticks[-1], value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def _lines(figure: Lines) -> Iterator[str]:
    points = [point for series in figure.series for point in series.points]
    unbounded = any(math.isinf(y) for _, y in points)
    scale = _decades if figure.log_x else _ticks
    x = Axis(scale([x for x, _ in points]), LEFT, WIDTH - RIGHT, figure.log_x)
    top = TOP + (24 if unbounded else 0)
    y = Axis(_from_zero([y for _, y in points if math.isfinite(y)]), HEIGHT - BOTTOM, top, beyond=TOP)
    yield from _grid(figure, x, y, unbounded)
    for index, series in enumerate(figure.series[:STYLES]):
        yield from _curve(series, index, x, y, figure.steps)
    yield from _labels(figure.series[:STYLES], x, y)


def _ticks(values: Sequence[float]) -> tuple[float, ...]:
    from matplotlib.ticker import MaxNLocator

    low, high = min(values), max(values)
    if low == high:
        low, high = low - 1, high + 1
    whole = all(value == round(value) for value in values)
    locator = MaxNLocator(6, steps=[1, 2, 5, 10] if whole else [1, 2, 2.5, 5, 10], integer=whole)
    return tuple(float(tick) for tick in locator.tick_values(low, high))


def _from_zero(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(tick for tick in _ticks([0.0, max([*values, 1e-9])]) if tick >= 0)


def _decades(values: Sequence[float]) -> tuple[float, ...]:
    low, high = (math.log10(extreme) for extreme in (min(values), max(values)))
    return tuple(10.0**power for power in range(math.floor(low), max(math.ceil(high), math.floor(low) + 1) + 1))


def _grid(figure: Lines, x: Axis, y: Axis, unbounded: bool) -> Iterator[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for tick in x.ticks:
        yield _line(x.at(tick), bottom, x.at(tick), bottom + 5, "axis")
        yield _text(x.at(tick), bottom + 18, _number(tick), "middle")
    for tick in [*y.ticks, *([math.inf] if unbounded else [])]:
        yield _line(LEFT, y.at(tick), right, y.at(tick), "grid")
        yield _text(LEFT - 8, y.at(tick) + 4, _number(tick), "end")
    yield _line(LEFT, bottom, right, bottom, "axis")
    yield _text((LEFT + right) / 2, HEIGHT - 8, figure.x, "middle")
    turned = f'transform="rotate(-90 14 {(TOP + bottom) / 2:g})"'
    yield _text(14, (TOP + bottom) / 2, figure.y, "middle", turned)


def _curve(series: Series, index: int, x: Axis, y: Axis, steps: bool) -> Iterator[str]:
    places = [(x.at(px), y.at(py)) for px, py in series.points]
    path = f"M{places[0][0]:.1f} {places[0][1]:.1f}"
    for across, down in places[1:]:
        path += f"H{across:.1f}V{down:.1f}" if steps else f"L{across:.1f} {down:.1f}"
    yield f'<path class="curve s{index}" d="{path}"/>'
    stride = math.ceil(len(places) / MARKED)
    # the last point always has a marker, the others count back from it
    for across, down in places[::-1][::stride]:
        yield f'<path class="mark s{index}" d="{MARKERS[index % len(MARKERS)](across, down)}"/>'


def _labels(series: Sequence[Series], x: Axis, y: Axis) -> Iterator[str]:
    """Each at the end of its curve, pushed down where two would touch, and joined to it by a thin line."""
    ends = sorted(enumerate(series), key=lambda item: y.at(item[1].points[-1][1]))
    down = -math.inf
    for left, (index, one) in zip(range(len(ends), 0, -1), ends, strict=True):
        end = y.at(one.points[-1][1])
        down = min(max(down + LABEL, end), HEIGHT - BOTTOM - (left - 1) * LABEL)
        at = x.at(one.points[-1][0])
        yield _line(at + 5, end, WIDTH - RIGHT + 14, down, "leader")
        label = escape(shortened(one.label, NAME))
        yield (
            f'<text x="{WIDTH - RIGHT + 18}" y="{down + 4:.1f}" class="label s{index}">'
            f"<title>{escape(one.label)}</title>{label}</text>"
        )


def _circle(x: float, y: float) -> str:
    return f"M{x - 4:.1f} {y:.1f}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z"


def _polygon(*corners: tuple[float, float]) -> Callable[[float, float], str]:
    def draw(x: float, y: float) -> str:
        return "M" + "L".join(f"{x + dx:.1f} {y + dy:.1f}" for dx, dy in corners) + "Z"

    return draw


MARKERS: tuple[Callable[[float, float], str], ...] = (
    _circle,
    _polygon((-4, -4), (4, -4), (4, 4), (-4, 4)),
    _polygon((0, -5), (5, 4), (-5, 4)),
    _polygon((0, -6), (5, 0), (0, 6), (-5, 0)),
    _polygon((0, 5), (5, -4), (-5, -4)),
    _polygon((-5, -2), (5, -2), (5, 2), (-5, 2)),
    _polygon((-2, -5), (2, -5), (2, 5), (-2, 5)),
    _polygon((-5, -5), (5, 5), (5, -5), (-5, 5)),
)


# -- bars --------------------------------------------------------------------------------------------------------------


def _bars(bars: Sequence[Bar]) -> Iterator[str]:
    width = WIDTH - BAR_LEFT - BAR_RIGHT
    for index, bar in enumerate(bars):
        top = 6 + index * BAR
        label = escape(shortened(bar.label, NAME))
        title = f"<title>{escape(bar.label)}</title>"
        yield f'<text x="{BAR_LEFT - 8}" y="{top + 14}" text-anchor="end">{title}{label}</text>'
        yield f'<rect class="limit" x="{BAR_LEFT}" y="{top}" width="{width}" height="18"/>'
        yield f'<rect class="used" x="{BAR_LEFT}" y="{top}" width="{width * used_of(bar):.1f}" height="18"/>'
        yield _text(WIDTH - BAR_RIGHT + 10, top + 14, left(bar))


def left(bar: Bar) -> str:
    """In words, what a bar shows."""
    if math.isinf(bar.used):
        return "∞ spent, nothing left"
    if math.isinf(bar.limit):
        return f"{bar.used:.4g} spent, no limit"
    rest = "over the limit" if bar.used > bar.limit else f"{bar.limit - bar.used:.4g} left"
    return f"{bar.used:.4g} of {bar.limit:.4g}, {rest}"


# -- strokes -----------------------------------------------------------------------------------------------------------


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(text)}</text>'


def _number(value: float) -> str:
    return "∞" if math.isinf(value) else f"{value:g}"
