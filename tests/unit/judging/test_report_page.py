from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser

import pytest

from harness import report
from harness.records import Artifact, State

FETCHING = {"src", "srcset", "poster", "data", "background", "action", "formaction", "xlink:href", "ping"}


class Page(HTMLParser):
    """What a page consists of, and what it would fetch."""

    def __init__(self, text):
        super().__init__()
        self.tags = Counter()
        self.fetched = []
        self.ids = Counter()
        self.links = []
        self.handlers = []
        self.words = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags[tag] += 1
        for name, value in attributes:
            if name in FETCHING or (name == "href" and tag not in ("a", "use")):
                self.fetched.append(value)
            if name == "href" and tag == "a":
                self.links.append(value)
            if name == "id":
                self.ids[value] += 1
            if name.startswith("on"):
                self.handlers.append(name)

    handle_startendtag = handle_starttag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def traced(make, tmp_path_factory):
    """An experiment with every part of a page: tables, verdicts, scores, timelines, empty cells."""
    home = tmp_path_factory.mktemp("traced")
    events = [{"ph": "M", "pid": 0, "name": "process_name", "args": {"name": "rank 0"}}]
    events += [{"ph": "X", "pid": 0, "tid": 0, "name": "send", "ts": 1000 * i, "dur": 500} for i in range(20)]
    (home / "trial").mkdir()
    (home / "trial" / "trace.json").write_text(json.dumps({"traceEvents": events}), "utf-8")
    (home / "trial" / "bad.trace.json").write_text("not json", "utf-8")
    artifacts = [
        Artifact(path=p, sha256="0" * 64, bytes=1) for p in ("trace.json", "bad.trace.json", "gone.trace.json")
    ]
    records = [
        make.transports(artifacts=artifacts),
        make.transports(backend="emulated"),
        make.record(backend="ray", hardware="lab", state=State.UNSUPPORTED, message="needs 2 GPUs <b>"),
    ]
    written = report.write(make.quickstart(), records, directory=home / "report", locate=lambda _: home / "trial")
    return written["html"].read_text("utf-8")


def test_nothing_is_fetched_and_nothing_runs(traced):
    page = Page(traced)
    assert page.tags["script"] == 0
    assert page.tags["link"] == page.tags["iframe"] == page.tags["img"] == page.tags["object"] == 0
    assert page.handlers == []
    assert all(value.startswith("#") for value in page.fetched), page.fetched
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)'\"]*)", traced))
    assert "@import" not in traced
    assert "@font-face" not in traced


def test_links_lead_to_the_paper_and_to_traces_only(traced):
    assert sorted(set(Page(traced).links)) == [
        "../trial/bad.trace.json",
        "../trial/trace.json",
        "https://arxiv.org/abs/1805.08430",
    ]


def test_ids_are_unique_and_every_reference_has_its_target(traced):
    page = Page(traced)
    assert [name for name, count in page.ids.items() if count > 1] == []
    for target in re.findall(r'(?:url\(#|href="#)([^)"]+)', traced):
        assert target in page.ids


def test_every_part_is_there_in_words(traced):
    text = Page(traced).text
    for words in (
        "measured",
        "emulated",
        "published",
        "laptop (local)",
        "up to 25 x",
        "shape-only",
        "pass",
        "fail",
        "not-run",
        "Predictions against measurements",
        "Kendall",
        "Timelines",
        "not in Chrome's JSON format",
        "needs 2 GPUs <b>",
        "0123456789ab",
        "AMD EPYC",
    ):
        assert words in text, words


def test_drawings_follow_the_theme_and_keep_text_as_text(traced):
    drawings = re.findall(r"<svg.*?</svg>", traced, re.DOTALL)
    # Two metrics on two targets, two scatter plots, one timeline.
    assert len(drawings) == 2 * 2 + 2 + 1
    for drawing in drawings:
        assert "<text" in drawing
        assert "var(--ink)" in drawing
        assert not re.search(r"(?:fill|stroke): #", drawing)
        assert "<metadata" not in drawing


def test_what_a_spec_says_is_text(make, tmp_path):
    evil = "<img src=x onerror=alert(1)>\"'</style></svg>"
    labels = {"transport": evil, "payload": evil}
    values = [make.value("step_time", [s], **{**labels, "payload": f"{evil}{s}"}) for s in (1.0, 2.0)]
    records = [
        make.record(values, cell="a", hardware="h"),
        make.record(cell="b", state=State.FAILED, message=evil, hardware="h"),
    ]
    table = {"title": evil, "rows": "transport", "columns": "payload", "value": "step_time"}
    experiment = make.experiment(description=evil, tables=[table], expect=[{"metric": evil}])
    text = report.write(experiment, records, directory=tmp_path, formats=["html"])["html"].read_text("utf-8")
    page = Page(text)
    assert page.tags["img"] == 0
    assert page.handlers == []
    assert text.count("</style>") == 1
    assert page.text.count(evil) > 5


@pytest.mark.parametrize("count", [0, 1])
def test_a_page_with_next_to_nothing_is_still_a_page(make, tmp_path, count):
    records = [make.record([make.value("steps", [float("1")])])] * count
    text = report.write(make.experiment(), records, directory=tmp_path, formats=["html"])["html"].read_text("utf-8")
    assert "<h1>demo</h1>" in text
    assert text.rstrip().endswith("</html>")


def test_columns_that_are_sizes_are_drawn_as_lines(make, tmp_path):
    values = [
        make.value("step_time", [s * 1e-3], transport="shm", payload=p)
        for s, p in ((1, "1 KiB"), (2, "64 KiB"), (50, "4 MiB"))
    ]
    table = {"rows": "transport", "columns": "payload", "value": "step_time"}
    path = report.write(make.experiment(tables=[table]), [make.record(values)], directory=tmp_path, formats=["html"])
    drawing = re.search(r"<svg.*?</svg>", path["html"].read_text("utf-8"), re.DOTALL)[0]
    assert "64 KiB" in drawing
    assert re.search(r'<path d="M [^"]* L [^"]* L [^"]*" [^>]*stroke: var\(--series-1\)', drawing)


def test_long_names_leave_room_for_the_drawing(make, tmp_path):
    name = "layer." * 40
    events = [
        {"ph": "X", "pid": name, "tid": i % 3, "name": f"send {name}{i}", "ts": 1000 * i, "dur": 500}
        for i in range(200)
    ]
    (tmp_path / "trace.json").write_text(json.dumps({"traceEvents": events}), "utf-8")
    values = [
        make.value("step_time", [1.0 + i], transport=f"{name}{i}", payload=f"{name}{j}") for i in (0, 1) for j in (0, 1)
    ]
    record = make.record(values, artifacts=[Artifact(path="trace.json", sha256="0" * 64, bytes=1)])
    table = {"rows": "transport", "columns": "payload", "value": "step_time"}
    # A layout that collapses is a warning of the drawing library, and warnings are errors here.
    experiment = make.experiment(tables=[table])
    path = report.write(experiment, [record], directory=tmp_path, formats=["html"], locate=lambda _: tmp_path)["html"]
    assert path.read_text("utf-8").count("<svg") == 2


def test_many_timelines_are_linked_not_drawn(make, tmp_path):
    events = [{"ph": "X", "pid": 0, "tid": 0, "name": "send", "ts": 0, "dur": 500}]
    artifacts = [Artifact(path=f"{i}.trace.json", sha256="0" * 64, bytes=1) for i in range(9)]
    for artifact in artifacts:
        (tmp_path / artifact.path).write_text(json.dumps({"traceEvents": events}), "utf-8")
    records = [make.record([make.value("steps", [1.0])], artifacts=artifacts)]
    path = report.write(make.experiment(), records, directory=tmp_path, formats=["html"], locate=lambda _: tmp_path)
    page = Page(path["html"].read_text("utf-8"))
    assert page.tags["svg"] == 3
    assert len(page.links) == 9
