"""Drawings as SVG files, readable on white and on black: mid-tone colours, no background, the reader's own font."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from dqlora.report.templates import MINUS

# each has a contrast of 3.7 to 1 or more both to white and to GitHub's dark page
INK, BLUE, ORANGE, GREEN, PURPLE = "#7b818b", "#2f7fd1", "#c96a1e", "#21966b", "#a06ad0"
FONT = "system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace"
LINE = 16  # user units between two lines of text

Point = tuple[float, float]  # user units, from the upper left corner


def attributes(**values: object) -> str:
    return "".join(f' {name.replace("_", "-")}="{_plain(value)}"' for name, value in values.items())


def _plain(value: object) -> str:
    return f"{round(value, 1):g}" if isinstance(value, float) else escape(str(value))


@dataclass
class Drawing:
    """A drawing of `width` by `height` user units; `title` says what it shows to who cannot see it."""

    width: int
    height: int
    title: str
    parts: list[str] = field(default_factory=list)

    def text(self, at: Point, text: str, anchor: str = "start", colour: str = INK, **more: object) -> None:
        place = attributes(x=float(at[0]), y=float(at[1]), text_anchor=anchor, fill=colour, **more)
        self.parts.append(f"<text{place}>{escape(text)}</text>")

    def line(self, points: Sequence[Point], colour: str = INK, width: float = 2, **more: object) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        given = attributes(points=path, fill="none", stroke=colour, stroke_width=width, **more)
        self.parts.append(f"<polyline{given}/>")

    def dot(self, at: Point, colour: str, radius: float = 5.0) -> None:
        self.parts.append(f"<circle{attributes(cx=float(at[0]), cy=float(at[1]), r=radius, fill=colour)}/>")

    def box(self, at: Point, width: float, height: float, **more: object) -> None:
        place = attributes(x=float(at[0]), y=float(at[1]), width=float(width), height=float(height), rx=5, **more)
        self.parts.append(f"<rect{place}/>")

    def arrow(self, points: Sequence[Point]) -> None:
        self.line(points, width=1.5, stroke_linejoin="round", marker_end="url(#arrow)")

    def labels(self, x: float, wanted: Sequence[tuple[float, str, str]]) -> None:
        """Labels (y, text, colour) in a column, moved down where they would overlap."""
        lowest = -math.inf
        for y, text, colour in sorted(wanted):
            lowest = max(y, lowest + LINE)
            self.text((x, lowest + 4), text, colour=colour)

    def svg(self) -> str:
        root = attributes(
            xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {self.width} {self.height}", width=self.width,
            height=self.height, role="img", aria_label=self.title, font_family=FONT, font_size=13,
        )  # fmt: skip
        head = f'<path d="M0 0L8 4L0 8Z" fill="{INK}"/>'
        box = attributes(id="arrow", viewBox="0 0 8 8", refX=7, refY=4, markerWidth=7, markerHeight=7, orient="auto")
        definitions = (
            f"<defs><marker{box}>{head}</marker></defs>" if any("#arrow" in part for part in self.parts) else ""
        )
        return "\n".join(
            [f"<svg{root}>", f"<title>{escape(self.title)}</title>{definitions}", *self.parts, "</svg>", ""]
        )


@dataclass(frozen=True)
class Scale:
    """Where a value lies along an axis: `low` at the user unit `start`, `high` at `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log(each) if self.log else each for each in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (at - low) / (high - low)


@dataclass(frozen=True)
class Panel:
    """One chart of a drawing."""

    drawing: Drawing
    x: Scale
    y: Scale

    def at(self, x: float, y: float) -> Point:
        return self.x(x), self.y(y)

    def heading(self, text: str) -> None:
        self.drawing.text((self.x.start, min(self.y.start, self.y.end) - 34), text, font_weight=600)

    def x_axis(self, ticks: dict[float, str], label: str, grid: bool = False) -> None:
        bottom, top = max(self.y.start, self.y.end), min(self.y.start, self.y.end)
        for value, text in ticks.items():
            if grid:
                self.drawing.line([(self.x(value), top), (self.x(value), bottom)], width=1, stroke_opacity=0.35)
            self.drawing.text((self.x(value), bottom + 18), text, "middle")
        self.drawing.text(((self.x.start + self.x.end) / 2, bottom + 38), label, "middle")

    def y_axis(self, ticks: Sequence[float], label: str) -> None:
        left, right = self.x.start, self.x.end
        for value in ticks:
            self.drawing.line([(left, self.y(value)), (right, self.y(value))], width=1, stroke_opacity=0.35)
            self.drawing.text((left - 7, self.y(value) + 4), f"{value:g}".replace("-", MINUS), "end")
        self.drawing.text((left, min(self.y.start, self.y.end) - 14), label)

    def curve(self, points: Sequence[Point], colour: str, **more: object) -> None:
        """A line through points in the axes' units, each marked."""
        places = [self.at(*point) for point in points]
        self.drawing.line(places, colour, **more)
        for place in places:
            self.drawing.dot(place, colour)
