"""The report on a terminal: the tables, the verdicts, and what has no result.

Colour only supports what the words say, and goes off with `NO_COLOR` or where the output is not a terminal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.judging.comparison import shown
from harness.report.content import Content, gather, outcome

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from harness.checks import Verdict
    from harness.judging.tables import CellView, Line, Section, TableView
    from harness.records import Record
    from harness.references import References
    from harness.spec import Experiment

_KINDS = {"measured": "green", "emulated": "cyan", "published": "magenta"}
_OUTCOMES = {"kept": "green", "missed": "bold red", "missed (not required)": "yellow", "not judged": "dim"}
_LEAST_WIDTH = 40
_DISTINCT_AT = 8
"""More verdicts than this and the kept ones are counted instead of listed."""


def show(
    experiment: Experiment,
    records: Sequence[Record],
    *,
    references: References | None = None,
    written: Mapping[str, Path] | None = None,
    console: Console | None = None,
) -> None:
    """Print the report of one experiment to standard output (or to another console)."""
    show_content(gather(experiment, records, references=references), written=written, console=console)


def show_content(
    content: Content, *, written: Mapping[str, Path] | None = None, console: Console | None = None
) -> None:
    """The same for what has been gathered already, so that nothing is judged or laid out twice."""
    from rich.console import Console

    console = console or Console(highlight=False)
    # Some environments say 0 columns when they mean that they do not know.
    console.width = max(console.width, _LEAST_WIDTH)
    for table in content.tables:
        for section in table.sections:
            console.print(_section(table, section, title=table.title))
            for absent in section.absent:
                text = f"  {absent.kind}, {absent.place}: no {section.metric} ({absent.reason})"
                console.print(text, style="dim", markup=False)
        _notes(console, table)
    _verdicts(console, content.verdicts)
    _missing(console, content)
    for name, path in (written or {}).items():
        console.print(f"{name:>4}  {path}", markup=False, soft_wrap=True)


def _section(table: TableView, section: Section, *, title: str) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    better = "" if section.better == "target" else f", {section.better} is better"
    drawn = Table(title=Text(f"{title}\n{section.metric}{better}"), box=box.SIMPLE_HEAD, title_justify="left")
    drawn.add_column(Text(table.row_name))
    drawn.add_column("where", overflow="fold")
    for column in table.columns:
        drawn.add_column(Text(column or section.metric), justify="right", overflow="fold")
    previous = None
    for line in section.lines:
        if previous is not None and line.row != previous:
            drawn.add_section()
        drawn.add_row(*_line(line, repeated=line.row == previous))
        previous = line.row
    return drawn


def _line(line: Line, *, repeated: bool) -> list[Text]:
    from rich.text import Text

    kind = Text.assemble((line.kind, _KINDS[line.kind]), f", {line.place}")
    return [Text("" if repeated else line.row, style="bold"), kind, *(_cell(cell) for cell in line.cells)]


def _cell(cell: CellView) -> Text:
    from rich.text import Text

    text = Text(cell.text, style="dim" if cell.reason else "")
    if cell.ratio_text:
        text.append(f"\n{cell.ratio_text}", style="bold" if cell.ratio else "dim")
    return text


def _notes(console: Console, table: TableView) -> None:
    if table.baseline:
        console.print(f"{table.ratios}.", style="dim", markup=False)
    for claim in table.claims:
        console.print(
            f"published: {claim.text}, {claim.column_title} ({claim.paper.title}; {claim.place})",
            style=_KINDS["published"],
            markup=False,
        )
    console.print()


def _verdicts(console: Console, verdicts: Sequence[Verdict]) -> None:
    """Each expectation once, and under it a line for each value that was judged."""
    from rich.padding import Padding
    from rich.text import Text

    if not verdicts:
        return
    brief = len(verdicts) > _DISTINCT_AT
    listed = [v for v in verdicts if not brief or v.passed is not True]
    console.print("Verdicts", style="bold")
    for expectation in dict.fromkeys(v.expectation for v in listed):
        console.print(Padding(Text(expectation), (0, 0, 0, 2)))
        for verdict in listed:
            if verdict.expectation == expectation:
                console.print(Padding(_verdict(verdict), (0, 0, 0, 4)))
    if len(listed) < len(verdicts):
        console.print(f"  {len(verdicts) - len(listed)} further kept.", style="green")
    console.print()


def _verdict(verdict: Verdict) -> Text:
    from rich.text import Text

    text = Text.assemble((f"{verdict.word} ({outcome(verdict)})", _OUTCOMES[outcome(verdict)]))
    where = ", ".join(filter(None, [verdict.place, str(verdict.target or "")]))
    text.append(f"  {where}: " if where else "  ")
    if verdict.ours and verdict.theirs:
        text.append(f"{shown(verdict.ours)}, published {verdict.theirs.text}: ")
    return text.append(verdict.reason)


def _missing(console: Console, content: Content) -> None:
    if not content.missing:
        return
    console.print("Trials without a result", style="bold")
    for missing in content.missing:
        console.print(f"  {missing.cell} [{missing.target}] {missing.reason}", markup=False)
