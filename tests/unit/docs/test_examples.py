"""Examples in the documentation run, and its headline figures are those on record."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "docs" / "emulation.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
)


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_of_the_emulator_run(example, capsys):
    exec(compile(example, "docs/emulation.md", "exec"), {})
    assert float(capsys.readouterr().out.split()[0]) > 0


def test_the_readme_has_the_errors_on_record():
    record = json.loads((ROOT / "results" / "measured" / "emulator-check.json").read_text("utf-8"))
    mean = {
        line["split"]: line["mape"] for line in record["lines"] if line["label"] == "all" and line["data"] != "aceso"
    }
    splits = (
        "one node: a random half of each family",
        "clusters: a random half of each model",
        "unseen sizes: a random half of each table",
    )
    text = " ".join((ROOT / "README.md").read_text("utf-8").split())
    found = re.search(r"off by ([\d.]+ %) on one node and ([\d.]+ %) on .* on A100 by ([\d.]+ %)", text)
    assert found, "the README has no headline"
    assert found.groups() == tuple(f"{100 * mean[split]:.1f} %" for split in splits)
