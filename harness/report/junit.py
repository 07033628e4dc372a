"""The outcome as JUnit XML, the form every CI server reads.

Two suites for each experiment: its trials, and its expectations. A trial that raised is a failure; one that crashed,
ran out of time or memory is an error; an unsupported one is skipped, with the reason.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

from harness.checks import Verdict, why_empty
from harness.errors import StoreError
from harness.judging.comparison import shown
from harness.judging.observations import target_of
from harness.records import State

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.records import Record
    from harness.spec import Experiment

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_OUTCOMES = {
    State.FAILED: "failure",
    State.CRASHED: "error",
    State.OOM: "error",
    State.TIMEOUT: "error",
    State.CANCELLED: "skipped",
    State.UNSUPPORTED: "skipped",
}


def write(path: Path, experiment: Experiment, records: Sequence[Record], verdicts: Sequence[Verdict]) -> None:
    """Write the outcome of one experiment.

    Raises:
        StoreError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(render(experiment, records, verdicts))
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}") from error


def render(experiment: Experiment, records: Sequence[Record], verdicts: Sequence[Verdict]) -> bytes:
    """The XML document."""
    root = ET.Element("testsuites", name=_clean(experiment.name))
    _suite(root, f"{experiment.name}.trials", [_trial(experiment.name, record) for record in records])
    _suite(root, f"{experiment.name}.expectations", [_expectation(experiment.name, v) for v in verdicts])
    for count in ("tests", "failures", "errors", "skipped"):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in root)))
    root.set("time", f"{sum(record.seconds for record in records):.3f}")
    ET.indent(root)
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True))


def _suite(root: ET.Element, name: str, cases: Sequence[ET.Element]) -> None:
    suite = ET.SubElement(root, "testsuite", name=_clean(name), tests=str(len(cases)))
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(sum(case.find(tag) is not None for case in cases)))
    suite.set("time", f"{sum(float(case.get('time', '0')) for case in cases):.3f}")
    suite.extend(cases)


def _trial(spec: str, record: Record) -> ET.Element:
    name = f"{record.cell} [{target_of(record)}]"
    case = ET.Element("testcase", classname=_clean(f"{spec}.trials"), name=_clean(name), time=f"{record.seconds:.3f}")
    tag = _OUTCOMES.get(record.state)
    if tag:
        bad = ET.SubElement(case, tag, message=_clean(why_empty(record)))
        if tag != "skipped" and record.failure is not None:
            bad.set("type", _clean(record.failure.type))
            bad.text = _clean(f"{record.failure.message}\n{record.failure.where}\n{record.failure.log_tail}")
    return case


def _expectation(spec: str, verdict: Verdict) -> ET.Element:
    place = ", ".join(filter(None, [verdict.place, str(verdict.target or "")]))
    name = f"{verdict.expectation} [{place}]" if place else verdict.expectation
    case = ET.Element("testcase", classname=_clean(f"{spec}.expectations"), name=_clean(name), time="0.000")
    message = f"{verdict.word}: {verdict.reason}"
    if verdict.missed:
        failure = ET.SubElement(case, "failure", type=str(verdict.word), message=_clean(message))
        failure.text = _clean(_figures(verdict))
    elif verdict.passed is None:
        ET.SubElement(case, "skipped", message=_clean(message))
    else:
        ET.SubElement(case, "system-out").text = _clean(f"{message}\n{_figures(verdict)}")
    return case


def _figures(verdict: Verdict) -> str:
    ours = f"ours: {shown(verdict.ours)}, {verdict.ours.target}" if verdict.ours else "ours: no value"
    if verdict.theirs is None:
        return ours
    return f"{ours}\npublished: {verdict.theirs.text}, {verdict.theirs.place}, {verdict.theirs.paper.title}"


def _clean(text: str) -> str:
    """Text without the characters that XML 1.0 cannot hold."""
    return _NOT_XML.sub("\ufffd", text)
