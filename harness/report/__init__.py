"""The results as a person reads them: one page, Markdown, CSV, a terminal, and JUnit XML for machines.

    written = harness.report.write(experiment, records, directory=Path("report"))
    written["html"]  # report/index.html

Everything shown is labelled `measured`, `emulated` or `published` with its device. Whatever comes from a spec or a
record is treated as untrusted text and escaped in each format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.records import Record
    from harness.references import References
    from harness.report.content import Content, Locate
    from harness.spec import Experiment

__all__ = ["FILES", "write", "write_content"]

FILES = {"html": "index.html", "md": "report.md", "csv": "values.csv"}
"""Format to the name of its file."""


def write(
    experiment: Experiment,
    records: Sequence[Record],
    *,
    directory: Path,
    formats: Sequence[str] = ("html", "md", "csv"),
    references: References | None = None,
    locate: Locate | None = None,
) -> dict[str, Path]:
    """Write the report of one experiment and say where it lies.

    Args:
        experiment: the spec, for its tables and expectations.
        records: its records, of one run directory.
        directory: where the files go; made if missing.
        formats: any of `FILES`.
        references: published figures; by default those the project ships.
        locate: finds a record's trial directory; without it no timeline is shown.

    Raises:
        StoreError: a file cannot be written.
        ValueError: an unknown format.
    """
    from harness.report.content import gather

    content = gather(experiment, records, references=references, locate=locate)
    return write_content(content, directory=directory, formats=formats)


def write_content(
    content: Content, *, directory: Path, formats: Sequence[str] = ("html", "md", "csv")
) -> dict[str, Path]:
    """The same for what has been gathered already, so that nothing is judged or laid out twice."""
    unknown = [name for name in formats if name not in FILES]
    if unknown:
        raise ValueError(f"unknown report format {unknown[0]!r}; expected one of {', '.join(FILES)}")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return {name: _write_one(name, content, directory) for name in formats}
    except OSError as error:
        raise StoreError(f"the report cannot be written to {directory}: {error.strerror}") from error


def _write_one(name: str, content: Content, directory: Path) -> Path:
    path = directory / FILES[name]
    if name == "html":
        from harness.report import page

        text = page.render(content, beside=directory)
    elif name == "md":
        from harness.report import markdown

        text = markdown.render(content)
    else:
        from harness.report import csv

        text = csv.render(content)
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(text, encoding="utf-8", newline="")
    aside.replace(path)
    return path
