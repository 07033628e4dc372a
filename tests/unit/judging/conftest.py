"""`make`: records by hand, until a test wants something a runner would never leave."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from harness import references


@pytest.fixture(scope="session")
def make():
    spec = importlib.util.spec_from_file_location("record_factory", Path(__file__).with_name("factory.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def shipped():
    return references.load_all()


PAPER = """\
schema: 1
paper: {title: A paper, venue: A venue, citation: Somebody, url: "https://example.org/paper"}
conditions: {hardware: one P100, devices: [P100], device_count: 1}
tables:
  t:
    title: A table
    source: {place: Table 1, page: 3}
    rows:
      time: {exact: {value: 100, unit: ms}, unknown: {value: null, unit: s, note: illegible}}
      speed:
        exact: {value: 5, unit: x}
        most: {value: 25, unit: x, bound: upper}
        least: {value: 2, unit: x, bound: lower}
      read: {off: {value: 100, unit: ms, tolerance: 10 %}}
      score: {any: {value: 0.8, conditions: {hardware: any, dataset: SST}}}
      rate: {exact: {value: 1, unit: GB/s}}
      nowhere: {time: {value: 100, unit: ms, conditions: {}}}
"""


@pytest.fixture(scope="session")
def paper(tmp_path_factory):
    directory = tmp_path_factory.mktemp("published")
    (directory / "p.yaml").write_text(PAPER, "utf-8")
    return references.load_all(directory)
