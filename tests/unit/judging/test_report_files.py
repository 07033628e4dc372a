from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

from harness import report
from harness.checks import judge
from harness.errors import StoreError
from harness.records import State
from harness.report import csv as table_csv
from harness.report import junit, markdown, terminal
from harness.report.content import gather

HOSTILE = '<script>alert(1)</script> | =1+1 & "x" `y` [z](http://evil.example/)'


@pytest.fixture
def both(make):
    return [make.transports(), make.transports(backend="emulated", hardware="rdma-100g-pair")]


@pytest.fixture
def hostile(make):
    labels = {"transport": HOSTILE, "payload": "=cmd()"}
    records = [
        make.record([make.value("step_time", [s], **labels) for s in (1.0,)], cell="a"),
        make.record(cell="b", state=State.FAILED, message=HOSTILE + "\x00\x1b[31m", log_tail=HOSTILE),
    ]
    table = {"title": HOSTILE, "rows": "transport", "columns": "payload", "value": "step_time"}
    expect = [{"metric": "step_time", "where": {"transport": HOSTILE}, "at_most": "1 us"}]
    return make.experiment(description=HOSTILE, tables=[table], expect=expect), records


def test_the_same_records_give_the_same_bytes(make, both, tmp_path):
    experiment = make.quickstart()
    first = report.write(experiment, both, directory=tmp_path / "one")
    second = report.write(experiment, both, directory=tmp_path / "two")
    assert set(first) == {"html", "md", "csv"}
    for name in first:
        assert first[name].read_bytes() == second[name].read_bytes()


def test_csv_has_one_line_a_cell_and_names_each_origin(make, both):
    rows = list(csv.DictReader(io.StringIO(table_csv.render(gather(make.quickstart(), both)))))
    assert len(rows) == 2 * 2 * 12 + 1
    assert {row["kind"] for row in rows} == {"measured", "emulated", "published"}
    assert all(row["where"] for row in rows)
    measured = next(r for r in rows if (r["kind"], r["row"], r["column"]) == ("measured", "shm", "resnet50"))
    assert float(measured["ratio"]) == pytest.approx(22.75)


def test_csv_cells_are_no_formulas(hostile):
    text = table_csv.render(gather(*hostile))
    for row in csv.reader(io.StringIO(text)):
        assert not any(cell.startswith(("=", "+", "@")) for cell in row)


def test_markdown_tables_are_rectangular_and_escaped(hostile):
    text = markdown.render(gather(*hostile))
    assert "<script>" not in text
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert blocks
    for block in blocks:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block


def test_markdown_labels_every_line_with_its_origin(make, both):
    text = markdown.render(gather(make.quickstart(), both))
    assert "| shm | measured | laptop (local) |" in text
    assert "| shm | emulated | rdma-100g-pair |" in text
    assert "up to 25 x" in text


def test_junit_counts_agree_with_its_cases(make, both, tmp_path):
    lacking = make.record(backend="ray", hardware="lab", state=State.UNSUPPORTED, message="needs 2 GPUs")
    crashed = make.record(cell="x", state=State.CRASHED, message="signal 11", log_tail="last words")
    records = [*both, lacking, crashed]
    expect = [{"metric": "step_time", "at_most": "1 us"}, {"metric": "step_time", "at_most": "1 h"}]
    experiment = make.experiment(expect=expect)
    path = tmp_path / "out" / "junit.xml"
    junit.write(path, experiment, records, judge(experiment, records, gather(experiment, records).references))
    root = ET.parse(path).getroot()
    assert root.tag == "testsuites"
    assert [suite.get("name") for suite in root] == ["demo.trials", "demo.expectations"]
    tags = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    for suite in root:
        cases = suite.findall("testcase")
        assert int(suite.get("tests")) == len(cases)
        for attribute, tag in tags.items():
            assert int(suite.get(attribute)) == len(suite.findall(f"testcase/{tag}"))
        assert all(case.get("name") and case.get("classname") and float(case.get("time")) >= 0 for case in cases)
    for attribute in ("tests", *tags):
        assert int(root.get(attribute)) == sum(int(suite.get(attribute)) for suite in root)
    assert [root.get(name) for name in ("failures", "errors", "skipped")] == ["24", "1", "3"]
    assert "last words" in root.find("testsuite/testcase/error").text


def test_junit_survives_text_that_xml_cannot_hold(hostile):
    experiment, records = hostile
    root = ET.fromstring(junit.render(experiment, records, judge(experiment, records, gather(*hostile).references)))
    assert int(root.get("failures")) == 2


def test_the_terminal_shows_words_origins_and_no_markup(hostile):
    from rich.console import Console

    stream = io.StringIO()
    terminal.show(*hostile, console=Console(file=stream, width=200, highlight=False))
    text = stream.getvalue()
    assert "fail" in text
    assert "measured, laptop (local)" in text
    assert "[z]" in text
    assert "\x1b" not in text.replace("\x1b[31m", "")


@pytest.mark.parametrize("width", [40, 80, 160])
def test_the_terminal_keeps_to_its_width(make, both, width):
    from rich.console import Console

    stream = io.StringIO()
    terminal.show(make.quickstart(), both, console=Console(file=stream, width=width, highlight=False))
    assert max(map(len, stream.getvalue().splitlines())) <= width


def test_colour_is_off_with_no_color(make, both, monkeypatch):
    from rich.console import Console

    monkeypatch.setenv("NO_COLOR", "1")
    stream = io.StringIO()
    terminal.show(make.quickstart(), both, console=Console(file=stream, force_terminal=True, width=120))
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", stream.getvalue())


def test_an_unknown_format_is_refused(make, both, tmp_path):
    with pytest.raises(ValueError, match="expected one of html, md, csv"):
        report.write(make.experiment(), both, directory=tmp_path, formats=["pdf"])


def test_a_report_that_cannot_be_written_says_where(make, both, tmp_path):
    (tmp_path / "file").write_text("in the way", "utf-8")
    with pytest.raises(StoreError, match="cannot be written to"):
        report.write(make.experiment(), both, directory=tmp_path / "file", formats=["md"])


def test_drawing_libraries_are_loaded_only_to_draw():
    code = "import sys, harness.report.terminal, harness.report.markdown, harness.report.junit, harness.report.csv;"
    code += "print([m for m in ('matplotlib', 'jinja2', 'scipy', 'rich', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
