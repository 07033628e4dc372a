"""The documentation's figures are what the report's code draws from the committed records."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="figures need the extra 'report'")

from harness.report import documentation

ROOT = Path(__file__).resolve().parents[3]
FIGURES = ROOT / "docs" / "figures"


@pytest.fixture(scope="module")
def drawn():
    return documentation.files(ROOT)


def test_committed_figures_are_current(drawn):
    committed = {path.name: path.read_text("utf-8") for path in FIGURES.glob("*.svg")}
    assert committed == drawn, "run 'make figures' and commit the result"


def test_a_figure_stands_alone_and_says_what_its_values_are(drawn):
    for text in drawn.values():
        words = " ".join(ET.fromstring(text).itertext())
        assert "published" in words
        assert "emulated" in words
        assert "prefers-color-scheme: dark" in words
