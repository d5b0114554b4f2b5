"""Charts as SVG: bars and lines, below one another on one card, for a README, a bug report or a page.

They need no script and no font of their own, follow the reader's light or dark mode, and say in words what they show.
Plain text is written, as a library for it would bring more than the two kinds of charts that there are here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, log10
from xml.etree import ElementTree

WIDTH = 760
MARGIN = 20
LINE = 20
"""Pixels, as a browser takes them where it is not told to scale the picture."""

BAR = 16
BAR_STEP = 26
PLOT = 150
CHARACTER = 7.0
"""Mean width of a character of the font, 12 pixels high: no browser is here to ask."""

TICKS = 5
COLOURS = 4

_STYLE = """
svg { color-scheme: light dark; --card: #ffffff; --text: #1f2328; --quiet: #59636e; --grid: #d8dee4;
  --c0: #0969da; --c1: #8c959f; --c2: #bc4c00; --c3: #1a7f37; font: 12px system-ui, "Segoe UI", Helvetica, sans-serif; }
@media (prefers-color-scheme: dark) { svg { --card: #0d1117; --text: #f0f6fc; --quiet: #9198a1; --grid: #30363d;
  --c0: #4493f8; --c1: #6e7681; --c2: #db6d28; --c3: #3fb950; } }
.card { fill: var(--card); stroke: var(--grid); }
text { fill: var(--text); } .quiet { fill: var(--quiet); } .head { font-size: 15px; font-weight: 600; }
.name { font-weight: 600; } .grid { stroke: var(--grid); } .end { text-anchor: end; } .middle { text-anchor: middle; }
.line { fill: none; stroke-width: 2; }
.c0 { fill: var(--c0); } .c1 { fill: var(--c1); } .c2 { fill: var(--c2); } .c3 { fill: var(--c3); }
.s0 { stroke: var(--c0); } .s1 { stroke: var(--c1); } .s2 { stroke: var(--c2); } .s3 { stroke: var(--c3); }
.rest { opacity: 0.4; }
"""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar.

    Attributes:
        label: What it stands for.
        value: Its length.
        upto: Where its lighter rest ends, of two values: a median and a 99th percentile, say.
        colour: 0 for what the chart is about, 1 and more for what it is compared with.
    """

    label: str
    value: float
    upto: float | None = None
    colour: int = 1

    @property
    def longest(self) -> float:
        """Where it ends."""
        return self.value if self.upto is None else max(self.value, self.upto)

    def in_words(self, unit: str) -> str:
        """Its values, with their unit."""
        shown = number(self.value) if self.upto is None else f"{number(self.value)} and {number(self.upto)}"
        return f"{shown} {unit}"


@dataclass(frozen=True, slots=True)
class Bars:
    """Horizontal bars from 0 on, with one unit.

    Attributes:
        name: What they measure, and whether more or less is better.
        unit: Put behind each value.
        bars: From top to bottom.
    """

    name: str
    unit: str
    bars: Sequence[Bar]

    @property
    def height(self) -> int:
        """In pixels, its name included."""
        return LINE + BAR_STEP * len(self.bars)

    def in_words(self) -> str:
        """The same for those who see no picture."""
        return f"{self.name}: {'; '.join(f'{bar.label}: {bar.in_words(self.unit)}' for bar in self.bars)}."

    @property
    def longest_label(self) -> int:
        """In characters."""
        return max(len(bar.label) for bar in self.bars)

    def draw(self, parent: ElementTree.Element, top: float, labels: int) -> None:
        """Draw it from `top` on, behind labels of so many characters at most."""
        _text(parent, MARGIN, top + 13, self.name, "name")
        left = MARGIN + CHARACTER * labels + 10
        room = WIDTH - MARGIN - left - CHARACTER * max(len(bar.in_words(self.unit)) for bar in self.bars) - 8
        scale = room / (max(bar.longest for bar in self.bars) or 1)
        for position, bar in enumerate(self.bars):
            y = top + LINE + BAR_STEP * position + (BAR_STEP - BAR) / 2
            _text(parent, left - 10, y + 12, bar.label, "end")
            colour = f"c{bar.colour % COLOURS}"
            if bar.upto is not None:
                _rectangle(parent, left, y, scale * bar.longest, BAR, f"{colour} rest")
            _rectangle(parent, left, y, max(1.0, scale * bar.value), BAR, colour)
            _text(parent, left + scale * bar.longest + 8, y + 12, bar.in_words(self.unit), "")


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines over one axis, both from 0 on.

    Attributes:
        name: What they show.
        x: What the horizontal axis is, with its unit.
        y: What the vertical axis is, with its unit.
        lines: The points of each line by its name, from left to right. The first one is what the chart is about.
    """

    name: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float]]]

    @property
    def longest_label(self) -> int:
        """Beside it there are none but those of its axis."""
        return 0

    @property
    def height(self) -> int:
        """In pixels, its name, legend and axis included."""
        return 2 * LINE + PLOT + 2 * LINE

    def in_words(self) -> str:
        """The same for those who see no picture: where each line ends up."""
        ends = (
            f"{name}: at most {number(max(y for _, y in points))}, up to {number(max(x for x, _ in points))}"
            for name, points in self.lines.items()
            if points
        )
        return f"{self.name} ({self.y} over {self.x}): {'; '.join(ends)}."

    def draw(self, parent: ElementTree.Element, top: float, labels: int) -> None:  # noqa: ARG002 (as bars are drawn)
        """Draw it from `top` on."""
        _text(parent, MARGIN, top + 13, self.name, "name")
        self._draw_legend(parent, top + LINE)
        points = [point for line in self.lines.values() for point in line]
        x_ticks = ticks(max((x for x, _ in points), default=0.0))
        y_ticks = ticks(max((y for _, y in points), default=0.0))
        left = MARGIN + CHARACTER * max(len(number(tick)) for tick in y_ticks) + 8
        bottom = top + 2 * LINE + PLOT
        x_scale, y_scale = (WIDTH - MARGIN - left) / x_ticks[-1], PLOT / y_ticks[-1]
        for tick in y_ticks:
            y = bottom - y_scale * tick
            _line(parent, left, y, WIDTH - MARGIN, y)
            _text(parent, left - 6, y + 4, number(tick), "quiet end")
        for tick in x_ticks:
            anchor = "end" if tick == x_ticks[-1] else "middle"
            _text(parent, left + x_scale * tick, bottom + 16, number(tick), f"quiet {anchor}")
        _text(parent, WIDTH - MARGIN, bottom + 32, self.x, "quiet end")
        _text(parent, WIDTH - MARGIN, top + 13, self.y, "quiet end")
        for position, line in enumerate(self.lines.values()):
            path = " ".join(f"{left + x_scale * x:.1f},{bottom - y_scale * y:.1f}" for x, y in line)
            ElementTree.SubElement(parent, "polyline", {"class": f"line s{_line_colour(position)}", "points": path})

    def _draw_legend(self, parent: ElementTree.Element, top: float) -> None:
        x: float = MARGIN
        for position, name in enumerate(self.lines):
            _rectangle(parent, x, top + 4, 12, 4, f"c{_line_colour(position)}")
            _text(parent, x + 18, top + 11, name, "quiet")
            x += 18 + CHARACTER * len(name) + 18


def draw(title: str, panels: Sequence[Bars | Lines], *, note: str = "") -> str:
    """An SVG file with charts below one another; `note` says in small print where the figures come from."""
    notes = _wrapped(note)
    height = 2 * MARGIN + LINE + sum(panel.height + LINE for panel in panels) + LINE * len(notes) - LINE // 2
    svg = ElementTree.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {WIDTH} {height}",
            "width": f"{WIDTH}",
            "height": f"{height}",
            "role": "img",
            "aria-labelledby": "title words",
        },
    )
    ElementTree.SubElement(svg, "title", {"id": "title"}).text = title
    words = ElementTree.SubElement(svg, "desc", {"id": "words"})
    words.text = " ".join([*(panel.in_words() for panel in panels), *([note] if note else [])])
    ElementTree.SubElement(svg, "style").text = _STYLE
    card = {"class": "card", "x": "0.5", "y": "0.5", "width": f"{WIDTH - 1}", "height": f"{height - 1}", "rx": "8"}
    ElementTree.SubElement(svg, "rect", card)
    _text(svg, MARGIN, MARGIN + 13, title, "head")
    top = MARGIN + LINE + LINE // 2
    labels = max(panel.longest_label for panel in panels)
    for panel in panels:
        panel.draw(svg, top, labels)
        top += panel.height + LINE
    for position, line in enumerate(notes):
        _text(svg, MARGIN, top + LINE * position + 4, line, "quiet")
    return ElementTree.tostring(svg, encoding="unicode") + "\n"


def number(value: float) -> str:
    """With three digits that count, and without those that only look exact."""
    if value >= 100 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2g}"


def ticks(maximum: float) -> list[float]:
    """Round numbers from 0 to the first one that is not less than `maximum`: about `TICKS` steps."""
    if maximum <= 0:
        return [0.0, 1.0]
    magnitude = 10.0 ** floor(log10(maximum / TICKS))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude * TICKS >= maximum * 0.999)
    steps = 1
    while step * steps < maximum * 0.999:
        steps += 1
    return [step * position for position in range(steps + 1)]


# ---------------------------------------------------------------- parts


def _wrapped(note: str) -> list[str]:
    lines: list[str] = []
    for word in note.split():
        if lines and CHARACTER * (len(lines[-1]) + 1 + len(word)) <= WIDTH - 2 * MARGIN:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _line_colour(position: int) -> int:
    """Without the grey of what bars are compared with, which is too pale for a line."""
    return (0, 2, 3)[position % 3]


def _text(parent: ElementTree.Element, x: float, y: float, text: str, classes: str) -> None:
    attributes = {"x": f"{x:.1f}", "y": f"{y:.1f}"} | ({"class": classes} if classes else {})
    ElementTree.SubElement(parent, "text", attributes).text = text


def _rectangle(parent: ElementTree.Element, x: float, y: float, width: float, height: float, classes: str) -> None:
    attributes = {"x": x, "y": y, "width": width, "height": height}
    shown = {key: f"{value:.1f}" for key, value in attributes.items()}
    ElementTree.SubElement(parent, "rect", {"class": classes, "rx": "2", **shown})


def _line(parent: ElementTree.Element, x1: float, y1: float, x2: float, y2: float) -> None:
    shown = {key: f"{value:.1f}" for key, value in {"x1": x1, "y1": y1, "x2": x2, "y2": y2}.items()}
    ElementTree.SubElement(parent, "line", {"class": "grid", **shown})
