"""Space and time: devices as rows, blocks in the colour of their stage, and memory below."""

from __future__ import annotations

import colorsys
import io
from typing import TYPE_CHECKING

from emulation import layout
from emulation.units import render
from engines.superscaler import memory as counting
from engines.superscaler.cluster import model_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from emulation.profile import Profile
    from engines.superscaler.memory import DeviceMemory
    from engines.superscaler.picture.spans import Span
    from engines.superscaler.plan import Block
    from engines.superscaler.program import Program

INK, MUTED, RULE = "#1b1c1d", "#6a6b6c", "#dadbdc"
AFTER = "#9a9b9c"
"""What comes after the last block: sums of gradients, and updates."""
TALK = "#1b1c1d"
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}
WIDTH, ROW, MEMORY = 10.0, 0.34, 1.7
"""Inches: of the picture, of a device's row, of the memory's axes."""
LEGIBLE = 0.011
"""Part of the width from which a block has room for its number."""
LIGHTNESS = {"F": 0.74, "B": 0.5, "W": 0.62}
STAGES_NAMED = 8
"""More are not listed in the legend."""


def svg(program: Program, spans: Sequence[Span], memory: Sequence[DeviceMemory], profile: Profile) -> str:
    """The picture; equal arguments give the same bytes.

    Args:
        program: what is done.
        spans: when (`picture.spans`); their devices are the rows.
        memory: over the step (`memory.over_step`).
        profile: the cluster, for the memory there is.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    devices = sorted({span.device for span in spans})
    with mpl.rc_context({**_STYLE, "svg.hashsalt": program.plan.name}):
        height = ROW * max(2, len(devices)) + MEMORY + 0.9
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        above, below = figure.subplots(
            2, 1, sharex=True, gridspec_kw={"height_ratios": [ROW * max(2, len(devices)), MEMORY]}
        )
        _space_time(above, program, spans, devices)
        _memory(below, program, spans, memory, profile)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return stream.getvalue()


def colour(block: Block | None, stages: int) -> str:
    """Of a block: a hue for the stage, lighter forward and darker backward."""
    if block is None:
        return AFTER
    red, green, blue = colorsys.hls_to_rgb((0.58 + block.stage / max(1, stages)) % 1.0, LIGHTNESS[block.what], 0.62)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def _space_time(axes: Axes, program: Program, spans: Sequence[Span], devices: Sequence[int]) -> None:
    from matplotlib.patches import Patch

    stages = len(program.plan.stages)
    end = max((span.end for span in spans), default=0.0)
    place = {device: row for row, device in enumerate(devices)}
    bars: dict[tuple[int, str, str], list[tuple[float, float]]] = {}
    for span in spans:
        key = (place[span.device], span.kind, colour(span.block, stages) if span.kind == "compute" else TALK)
        bars.setdefault(key, []).append((span.start, span.end - span.start))
    heights = {"compute": (-0.42, 0.7), "collective": (0.1, 0.18), "message": (0.32, 0.1)}
    for (row, kind, shade), pieces in sorted(bars.items()):
        low, tall = heights[kind]
        axes.broken_barh(pieces, (row + low, tall), facecolors=shade, linewidth=0, zorder=2 if kind == "compute" else 3)
    for (device, block), (start, stop) in sorted(_widest(spans).items(), key=str):
        if block is not None and stop - start > LEGIBLE * end:
            axes.text(
                (start + stop) / 2,
                place[device] - 0.1,
                str(block.micro_batch),
                ha="center",
                va="center",
                fontsize=7.5,
                color=INK if block.what == "F" else "white",
                zorder=4,
            )
    axes.set_yticks(range(len(devices)), [f"device {device}" for device in devices])
    axes.set_ylim(len(devices) - 0.5, -0.55)
    axes.set_xlim(0, end or 1.0)
    axes.tick_params(axis="y", length=0)
    passes = sorted({block.what for _, block in blocks(spans) if block}, key="FBW".index)
    named = range(stages if stages <= STAGES_NAMED else 0)
    first = program.plan.order[0] if program.plan.order else None
    handles = [
        Patch(
            facecolor=colour(first._replace(stage=stage, what="B"), stages),
            label=program.plan.stages[stage].name or f"stage {stage}",
        )
        for stage in (named if first is not None else ())
    ]
    words = {"F": "light: forward", "B": "dark: backward", "W": "between: weights"}
    handles += [Patch(facecolor="none", label=words[what]) for what in passes]
    handles += [Patch(facecolor=TALK, label="thin: communication"), Patch(facecolor=AFTER, label="sums and update")]
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=min(8, len(handles)),
        fontsize=8,
        handlelength=0.9,
        handletextpad=0.4,
        columnspacing=1.0,
        borderaxespad=0.2,
    )


def _memory(
    axes: Axes, program: Program, spans: Sequence[Span], memory: Sequence[DeviceMemory], profile: Profile
) -> None:
    from matplotlib.ticker import FuncFormatter, MultipleLocator

    end = max((span.end for span in spans), default=0.0)
    times = blocks(spans)
    shown = {device for device, _ in times}
    sections = list(program.sections)
    for one in memory:
        device = next((device for device in one.devices if device in shown), None)
        if device is None or not one.curve:
            continue
        xs, ys = [0.0], [float(one.lasting)]
        for number, during, after in one.curve:
            start, stop = times.get((device, sections[number].block), (xs[-1], xs[-1]))
            xs += [start, start, stop, stop]
            ys += [ys[-1], float(during), float(during), float(after)]
        xs.append(end)
        ys.append(ys[-1])
        stage = next(n for n, found in enumerate(program.plan.stages) if device in found.mesh.places)
        first = program.plan.order[0]._replace(stage=stage, what="B")
        axes.plot(xs, ys, color=colour(first, len(program.plan.stages)), linewidth=1.2)
    there = layout.devices(profile) or layout.processors(profile)
    room = counting.usable(profile, model_of(profile, there[0]))
    highest = max((one.peak.total for one in memory), default=0)
    if highest > room / 4:
        axes.axhline(room, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.annotate("usable", (0, room), xytext=(2, 2), textcoords="offset points", fontsize=7.5, color=MUTED)
    axes.set_ylim(0, None)
    axes.set_ylabel("memory")
    axes.grid(visible=True, axis="y")
    axes.yaxis.set_major_locator(MultipleLocator(_step(max(highest, 1))))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: render(value, "B") if value else "0"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: render(value, "s") if value else "0"))


def _step(highest: int) -> int:
    """Bytes between the lines of the memory's axes: a power of two, for about five of them."""
    return 2 ** max(0, (highest // 4).bit_length() - 1)


def _widest(spans: Sequence[Span]) -> Mapping[tuple[int, Block | None], tuple[float, float]]:
    """(device, block) -> its longest stretch of computing, where its number has most room."""
    found: dict[tuple[int, Block | None], tuple[float, float]] = {}
    for span in spans:
        start, stop = found.get((span.device, span.block), (0.0, 0.0))
        if span.kind == "compute" and span.end - span.start > stop - start:
            found[span.device, span.block] = (span.start, span.end)
    return found


def blocks(spans: Sequence[Span]) -> Mapping[tuple[int, Block | None], tuple[float, float]]:
    """(device, block) -> when its kernels and collectives begin and end."""
    found: dict[tuple[int, Block | None], tuple[float, float]] = {}
    for span in spans:
        if span.kind != "message":
            start, stop = found.get((span.device, span.block), (span.start, span.end))
            found[span.device, span.block] = (min(start, span.start), max(stop, span.end))
    return found
