import io
import json

import pytest

from harness.progress import Event, Json, Lines, Live, document, duration, listener
from harness.records import Failure, State


@pytest.fixture
def record(execute, make_trial):
    return execute(make_trial("noop", backend="emulated")).records[0]


@pytest.fixture
def event(make_trial, record):
    def event(kind="record", state=State.OK, failure=None):
        changed = record.model_copy(update={"state": state, "failure": failure, "seconds": 0.25})
        return Event(
            kind, make_trial("noop", backend="emulated"), None if kind in {"start", "waiting"} else changed, 1, 2, 30.0
        )

    return event


LINES = {
    "record": "[1/2] trial default on emulated:laptop: ok (0.2 s)\n",
    "cached": "[1/2] trial default on emulated:laptop: ok (recorded before)\n",
    "waiting": "[1/2] trial default on emulated:laptop: another process is at it, waiting\n",
    "start": "",
}


@pytest.mark.parametrize(("kind", "line"), LINES.items(), ids=list(LINES))
def test_a_log_gets_one_plain_line(event, kind, line):
    out = io.StringIO()
    Lines(out).on(event(kind))
    assert out.getvalue() == line


def test_a_failure_is_told_in_one_line_with_its_place(event):
    out = io.StringIO()
    failure = Failure(type="ValueError", message="out of steam\nand more", where="x/engine.py:3 in run")
    Lines(out).on(event("retry", State.FAILED, failure))
    assert out.getvalue().endswith("failed: out of steam at x/engine.py:3 in run (0.2 s); trying again\n")


def test_programs_get_json(event):
    out = io.StringIO()
    Json(out).on(event())
    told = json.loads(out.getvalue())
    assert (told["event"], told["state"], told["done"], told["total"], told["eta"]) == ("record", "ok", 1, 2, 30.0)
    assert document(event("start"))["state"] is None


def test_a_terminal_gets_a_display(event, monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr("sys.stderr", out)
    live = Live()
    with live:
        live.on(event("start"))
        bottom = str(live._bottom())
        live.on(event("record"))
    assert "trial default on emulated" in bottom
    assert "1 of 2 done, about 30 s left" in bottom
    assert "trial default on emulated:laptop: ok" in out.getvalue()


WHO = {"json": ({"as_json": True}, Json), "log": ({}, Lines)}


@pytest.mark.parametrize(("wanted", "kind"), WHO.values(), ids=list(WHO))
def test_the_listener_fits_the_output(wanted, kind, capsys):
    with listener(**wanted) as found:
        assert isinstance(found, kind)


DURATIONS = {0.25: "0.2 s", 59.6: "60 s", 240: "4 min", 7500: "2 h 5 min"}


@pytest.mark.parametrize(("seconds", "text"), DURATIONS.items(), ids=list(DURATIONS.values()))
def test_durations_are_for_people(seconds, text):
    assert duration(seconds) == text
