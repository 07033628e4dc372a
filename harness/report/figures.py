"""The report's drawings, as SVG that follows the page's theme.

Matplotlib lays the drawing out; afterwards its colours, which stand for roles ("ink", "second series"), are exchanged
for the page's CSS variables, so that one drawing is readable on a light and on a dark page and text stays text. The
same data give the same bytes: ids are salted with the drawing's name, and no date is written.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from emulation.units import BYTES, parse, render
from harness.records import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from harness.judging.predictions import Family
    from harness.judging.tables import CellView, Section, TableView
    from harness.report.timelines import Timeline

INK, MUTED, RULE, PAPER = "#0a0b0c", "#6a6b6c", "#dadbdc", "#fafbfc"
SERIES = ("#1a0001", "#1a0002", "#1a0003", "#1a0004", "#1a0005", "#1a0006")
MARKERS = ("o", "s", "^", "D", "v", "P")
_ROLES = {INK: "ink", MUTED: "muted", RULE: "rule", PAPER: "paper"} | {
    colour: f"series-{index + 1}" for index, colour in enumerate(SERIES)
}
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
}
WIDTH = 4.3
"""Inches of one panel: narrow enough to be read on a phone, two beside each other on a desk."""
LONGEST_NAME = 28
"""Names longer than this are cut in legends and on axes, so that the drawing keeps its room."""
WIDE_SPAN = 20
"""Values spread wider than this are drawn on a logarithmic axis."""


@dataclass(frozen=True)
class Panel:
    """One drawing."""

    title: str
    svg: str
    kind: str = ""
    """`measured` or `emulated` where all of its values are."""


def chart(table: TableView, section: Section) -> list[Panel]:
    """The section's values, one panel for each target, all on one scale."""
    places = list(dict.fromkeys((line.kind, line.place) for line in section.lines if line.kind != "published"))
    shown = [c.figure for line in section.lines for c in line.cells if c.figure and c.figure.value > 0]
    if len(shown) < 2:
        return []
    values = [x for figure in shown for x in (figure.low, figure.value, figure.high) if x > 0]
    panels = []
    for kind, place in places:
        series = {line.row: line.cells for line in section.lines if (line.kind, line.place) == (kind, place)}
        name = f"{table.title}/{section.metric}/{kind}/{place}"
        panels.append(Panel(f"{kind}, {place}", _draw(name, table, section, series, values), kind))
    return panels


def scatter(family: Family) -> Panel:
    """Predicted against measured values on logarithmic axes, with y = x and the claimed bands."""
    name = f"scatter/{family.engine}/{family.metric}/{family.hardware}/{family.model_version}"
    with Drawing(name, WIDTH, 4.4) as drawing:
        axes = drawing.axes()
        pairs = [p for p in family.pairs if p.measured > 0 and p.prediction.value > 0]
        if not pairs:
            axes.text(0.5, 0.5, "no positive values to draw", ha="center", transform=axes.transAxes)
            return Panel(f"{family.engine}: {family.metric}, {family.hardware}", drawing.svg())
        everything = [x for p in pairs for x in (p.measured, p.prediction.value, *(p.prediction.band or ())) if x > 0]
        # At least a decade and a bit, so that each axis has a labelled power of ten.
        widen = max(1.4, (12 * min(everything) / max(everything)) ** 0.5)
        low, high = min(everything) / widen, max(everything) * widen
        axes.plot([low, high], [low, high], color=MUTED, linewidth=0.9, label="predicted = measured")
        axes.fill_between(
            [low, high],
            [low / 1.2, high / 1.2],
            [low * 1.2, high * 1.2],
            color=RULE,
            alpha=0.5,
            linewidth=0,
            label="within a factor of 1.2",
        )
        _points(axes, pairs, family.hardware)
        axes.set(
            xscale="log",
            yscale="log",
            xlim=(low, high),
            ylim=(low, high),
            xlabel="measured",
            ylabel="predicted (emulated)",
        )
        axes.set_aspect("equal")
        axes.grid(visible=True)
        unit = pairs[0].prediction.unit
        quantities(axes.xaxis, unit)
        quantities(axes.yaxis, unit)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), fontsize=8)
        return Panel(f"{family.engine}: {family.metric}, {family.hardware}", drawing.svg())


def gantt(timeline: Timeline) -> Panel:
    """The drawn stretch of a timeline, a bar for each slice, coloured by what is done."""
    groups = _activities(timeline)
    labels = list(dict.fromkeys(groups.values()))
    height = 0.8 + 0.26 * len(timeline.tracks) + 0.2 * ((len(labels) + 2) // 3)
    with Drawing(f"gantt/{timeline.title}/{timeline.target}", 2 * WIDTH, height) as drawing:
        axes = drawing.axes()
        for row, track in enumerate(timeline.tracks):
            for index, label in enumerate(labels):
                spans = [(s.start, s.duration) for s in track.slices if groups[s.name] == label]
                # A bar's edge in the page's colour would swallow the shortest slices.
                axes.broken_barh(spans, (row - 0.36, 0.72), facecolor=SERIES[index], linewidth=0)
        for index, label in enumerate(labels):
            axes.broken_barh([], (0, 0), facecolor=SERIES[index], label=label)
        axes.set_yticks(range(len(timeline.tracks)), [_brief(track.name) for track in timeline.tracks])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.grid(visible=True, axis="x")
        quantities(axes.xaxis, "s")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=8, handlelength=1.2)
        return Panel(timeline.title, drawing.svg(), str(timeline.target.kind))


def _activities(timeline: Timeline) -> dict[str, str]:
    """Slice name to legend entry: the name itself, or its first word where there are more names than colours."""
    names = list(dict.fromkeys(s.name for track in timeline.tracks for s in track.slices))
    few = len(names) <= len(SERIES)
    entries = {name: _brief(name if few else (name.split() or [""])[0]) for name in names}
    kept = list(dict.fromkeys(entries.values()))[: len(SERIES)]
    spill = kept[-1] if len(set(entries.values())) == len(kept) else "other"
    return {name: entry if entry in kept[:-1] else spill for name, entry in entries.items()}


def _brief(text: str) -> str:
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}\u2026"


def _points(axes: Axes, pairs: Sequence[Any], place: str) -> None:
    x = [p.measured for p in pairs]
    y = [p.prediction.value for p in pairs]
    bands = [p.prediction.band or (p.prediction.value, p.prediction.value) for p in pairs]
    below = [max(0.0, value - band[0]) for value, band in zip(y, bands, strict=True)]
    above = [max(0.0, band[1] - value) for value, band in zip(y, bands, strict=True)]
    axes.errorbar(
        x,
        y,
        yerr=[below, above],
        fmt=MARKERS[0],
        color=SERIES[0],
        markersize=4.5,
        elinewidth=0.8,
        label=f"{place} (bars: claimed 80 % band)",
    )


def _draw(
    name: str, table: TableView, section: Section, series: dict[str, tuple[CellView, ...]], values: Sequence[float]
) -> str:
    columns = [column or section.metric for column in table.columns]
    if len(columns) == 1:
        # With a single column the rows are what is compared: one line each, named on the axis.
        columns, series = list(series), {columns[0]: tuple(cells[0] for cells in series.values())}
    sizes = _ordered(columns)
    if sizes:
        return _lines(name, table, section, series, values, sizes)
    return _dots(name, section, series, values, columns)


def _dots(
    name: str,
    section: Section,
    series: dict[str, tuple[CellView, ...]],
    values: Sequence[float],
    columns: Sequence[str],
) -> str:
    """A dot with its interval for each value: honest on a logarithmic axis, where a bar has no foot to stand on."""
    height = 0.95 + 0.16 * len(columns) * (len(series) + 0.9)
    with Drawing(name, WIDTH, max(height, 1.9)) as drawing:
        axes = drawing.axes()
        step = 0.7 / max(len(series), 2)
        for index, (row, cells) in enumerate(series.items()):
            places = [at + step * (index - (len(series) - 1) / 2) for at in range(len(columns))]
            drawn = [(at, c.figure) for at, c in zip(places, cells, strict=True) if c.figure and c.figure.value > 0]
            x, errors = _spread([figure for _, figure in drawn])
            axes.errorbar(
                x, [at for at, _ in drawn], xerr=errors, label=_brief(row), **_mark(index, drawn and drawn[0][1].kind)
            )
        for at in range(len(columns) - 1):
            axes.axhline(at + 0.5, color=RULE, linewidth=0.5)
        axes.set_yticks(range(len(columns)), [_brief(column) for column in columns])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(columns) - 0.5, -0.5)
        _scale(axes, "x", values)
        quantities(axes.xaxis, section.unit)
        axes.grid(visible=True, axis="x")
        axes.set_xlabel(_axis_title(section))
        _legend(axes, len(series))
        return drawing.svg()


def _lines(
    name: str,
    table: TableView,
    section: Section,
    series: dict[str, tuple[CellView, ...]],
    values: Sequence[float],
    sizes: Sequence[float],
) -> str:
    """Lines over columns that are sizes or counts."""
    with Drawing(name, WIDTH, 3.0) as drawing:
        axes = drawing.axes()
        for index, (row, cells) in enumerate(series.items()):
            drawn = [(at, c.figure) for at, c in zip(sizes, cells, strict=True) if c.figure and c.figure.value > 0]
            y, errors = _spread([figure for _, figure in drawn])
            style = _mark(index, drawn and drawn[0][1].kind) | {"linestyle": "-", "linewidth": 1.1}
            axes.errorbar([at for at, _ in drawn], y, yerr=errors, label=_brief(row), **style)
        _scale(axes, "x", sizes)
        _scale(axes, "y", values)
        axes.set_xticks(*_thinned(sizes, table.columns))
        axes.minorticks_off()
        quantities(axes.yaxis, section.unit)
        axes.grid(visible=True)
        axes.set(xlabel=table.column_name, ylabel=_axis_title(section))
        _legend(axes, len(series))
        return drawing.svg()


def _ordered(columns: Sequence[str]) -> list[float]:
    """The columns as growing numbers or sizes, or nothing if they are not three or more such."""
    numbers = []
    for column in columns:
        try:
            numbers.append(float(column) if column.replace(".", "", 1).isdigit() else parse(column, BYTES))
        except ValueError:
            return []
    growing = all(a < b for a, b in pairwise(numbers))
    return numbers if len(numbers) > 2 and growing and numbers[0] > 0 else []


def _thinned(sizes: Sequence[float], names: Sequence[str]) -> tuple[list[float], list[str]]:
    step = -(-len(sizes) // 6)
    return list(sizes[::step]), list(names[::step])


def _spread(figures: Sequence[Any]) -> tuple[list[float], list[list[float]]]:
    """Values, and how far their intervals reach below and above."""
    below = [max(0.0, f.value - f.low) for f in figures]
    above = [max(0.0, f.high - f.value) for f in figures]
    return [f.value for f in figures], [below, above]


def _mark(index: int, kind: Any) -> dict[str, Any]:
    """Colour and shape of a series; emulated values are hollow."""
    colour = SERIES[index % len(SERIES)]
    face = PAPER if kind is Kind.EMULATED else colour
    shape = {"marker": MARKERS[index % len(MARKERS)], "markersize": 5, "markerfacecolor": face, "markeredgewidth": 1.1}
    return {**shape, "color": colour, "linestyle": "none", "elinewidth": 1.0, "capsize": 2}


def _scale(axes: Axes, axis: str, values: Sequence[float]) -> None:
    low, high = min(values), max(values)
    if high / low > WIDE_SPAN:
        axes.set(**{f"{axis}scale": "log", f"{axis}lim": (low / 1.5, high * 1.5)})
    else:
        axes.set(**{f"{axis}lim": (0, high * 1.12)})


def _axis_title(section: Section) -> str:
    return section.metric if section.better == "target" else f"{section.metric} ({section.better} is better)"


def _legend(axes: Axes, count: int) -> None:
    if count > 1:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=min(4, count),
            fontsize=8,
            handletextpad=0.3,
            columnspacing=1.2,
        )


def quantities(axis: Any, unit: str) -> None:
    """Tick labels with units: `10 ms`, `1 GB/s`."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: render(value, unit) if value else "0"))
    axis.set_minor_formatter(NullFormatter())


class Drawing:
    """A figure of a given size in the report's style, closed afterwards whatever happens."""

    def __init__(self, name: str, width: float, height: float) -> None:
        self._name, self._size = name, (width, height)

    def __enter__(self) -> Drawing:
        import matplotlib as mpl
        from matplotlib.figure import Figure

        self._context = mpl.rc_context({**_STYLE, "svg.hashsalt": self._name})
        self._context.__enter__()
        self._figure: Figure = Figure(figsize=self._size, layout="constrained")
        self._figure.patch.set_alpha(0.0)
        return self

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(None, None, None)

    def axes(self) -> Axes:
        """Axes of their own in the figure."""
        axes = self._figure.add_subplot()
        axes.patch.set_alpha(0.0)
        return axes

    def svg(self) -> str:
        """What was drawn."""
        stream = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        self._figure.savefig(stream, format="svg", metadata=nothing)
        return themed(stream.getvalue(), self._name)


def themed(svg: str, name: str) -> str:
    """A bare `<svg>` element with theme variables for colours and ids that no other drawing of the page has."""
    import hashlib

    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    root = ET.fromstring(svg)
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    for definitions in root.findall(f"{{{_SVG}}}defs"):
        for style in definitions.findall(f"{{{_SVG}}}style"):
            definitions.remove(style)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.set("role", "img")
    root.set("aria-label", name.replace("/", ", "))
    text = ET.tostring(root, encoding="unicode")
    for colour, role in _ROLES.items():
        text = text.replace(colour, f"var(--{role})")
    prefix = f"d{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", text)
