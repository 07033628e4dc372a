"""The documentation's drawings, from the records that are committed: `make figures` writes them under `docs/figures`.

They are the report's drawings (`harness.report.figures`), with the page's colours put in so that each file stands alone
and follows the reader's light or dark theme. A test holds the committed files to what this draws.
"""

from __future__ import annotations

import json
import re
import sys
from importlib import resources
from typing import TYPE_CHECKING, Any

from harness import project
from harness.report.figures import MARKERS, MUTED, PAPER, SERIES, WIDTH, Drawing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CLAIMED = 80
"""Per cent of the truths that a band claims to hold."""
POINTS_PER_INCH = 72


def files(root: Path) -> dict[str, str]:
    """Name and text of each drawing.

    Args:
        root: of the project, with `results/measured`.
    """
    measured = root / "results" / "measured"
    lines = json.loads((measured / "emulator-check.json").read_text("utf-8"))["lines"]
    whole = [line for line in lines if line["label"] == "all"]
    drawn = {"errors": _errors(whole), "coverage": _coverage(whole)}
    return {f"{name}.svg": standing_alone(svg) for name, svg in drawn.items()}


def standing_alone(svg: str) -> str:
    """A drawing of the report as a file of its own: with the page's colours, a ground, and a size."""
    page = resources.files("harness.report").joinpath("page.css").read_text("utf-8")
    colours = page[: page.index("* {")]
    box = re.search(r'viewBox="0 0 ([0-9.]+) ([0-9.]+)"', svg)
    assert box is not None
    width, height = (round(float(side) * 96 / POINTS_PER_INCH) for side in box.groups())
    ground = f"<style>{colours}svg {{ font-family: sans-serif; background: var(--paper); }}</style>"
    opening, rest = svg.split(">", 1)
    return f'{opening} width="{width}" height="{height}">{ground}{rest}\n'


def _errors(lines: Sequence[dict[str, Any]]) -> str:
    """Median, mean and 90 % quantile of the relative error, for each split."""
    with _rows("errors", lines) as drawing:
        axes = _named(drawing, lines)
        shown = {"median": "median", "mape": "mean", "p90": "90 % quantile"}
        for index, (key, label) in enumerate(shown.items()):
            values = [100 * line[key] for line in lines]
            axes.plot(values, range(len(lines)), MARKERS[index], color=SERIES[index], markersize=5, label=label)
        axes.set(xscale="log", xlabel="error of the emulated time, on published measurements that were not fitted to")
        axes.xaxis.set_major_formatter("{x:g} %")
        _key(axes)
        return drawing.svg()


def _coverage(lines: Sequence[dict[str, Any]]) -> str:
    """How many of the measurements lay in the claimed band, for each split."""
    with _rows("coverage", lines) as drawing:
        axes = _named(drawing, lines)
        values = [100 * line["coverage"] for line in lines]
        axes.axvline(CLAIMED, color=MUTED, linewidth=0.9, label="claimed")
        axes.plot(
            values, range(len(lines)), MARKERS[0], color=SERIES[0], markerfacecolor=PAPER, markersize=5, label="found"
        )
        axes.set(xlim=(0, 102), xlabel="published measurements (not fitted to) that lie in the emulated band")
        axes.xaxis.set_major_formatter("{x:g} %")
        _key(axes)
        return drawing.svg()


def _rows(name: str, lines: Sequence[dict[str, Any]]) -> Drawing:
    return Drawing(f"emulator check/{name}", 2 * WIDTH, 0.9 + 0.3 * len(lines))


def _named(drawing: Drawing, lines: Sequence[dict[str, Any]]) -> Any:
    """Axes with a row for each split, named by its data set."""
    axes = drawing.axes()
    axes.set_yticks(range(len(lines)), [f"{line['data']}: {line['split']}" for line in lines])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.grid(visible=True, axis="x")
    return axes


def _key(axes: Any) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=8)


def main() -> None:
    """Write every drawing, and delete those that are none any more."""
    folder = project.root() / "docs" / "figures"
    folder.mkdir(exist_ok=True)
    drawn = files(project.root())
    for old in {path.name for path in folder.glob("*.svg")} - set(drawn):
        (folder / old).unlink()
    for name, text in drawn.items():
        (folder / name).write_text(text, encoding="utf-8")
        sys.stdout.write(f"{folder / name}\n")


if __name__ == "__main__":
    main()
