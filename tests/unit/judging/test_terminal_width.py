"""A terminal that does not know its width still shows the results, and a baseline that nothing matches is named."""

import io

from rich.console import Console

from harness.judging.tables import TableView
from harness.report import terminal


def test_a_table_says_why_it_has_no_ratios():
    view = TableView("", "transport", "", ("",), (), "transport = tcpp")
    assert view.ratios == "No ratios: no value has transport = tcpp"


def test_no_baseline_no_note():
    assert TableView("", "transport", "", ("",), (), "").ratios == ""


def test_a_console_of_no_width_is_given_one(make):
    stream = io.StringIO()
    terminal.show(make.quickstart(), [make.transports()], console=Console(file=stream, width=0, highlight=False))
    assert "measured" in stream.getvalue()
