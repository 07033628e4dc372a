"""`harness check-emulator` on the published measurements, where they are."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("HARNESS_DATA") or ROOT.parent / "shared" / "data")
RECORD = ROOT / "results" / "measured" / "emulator-check.json"

measured = pytest.mark.skipif(
    not all((DATA / name).is_dir() for name in ("megatron-a100", "aceso-v100")),
    reason=f"the measurements are not part of the repository (no {DATA})",
)


def harness(*arguments, cwd=ROOT, **environment):
    command = [sys.executable, "-m", "harness", "check-emulator", *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, check=False)


def line(document, split, label="all", data="allreduce"):
    lines = [x for x in document["lines"] if (x["data"], x["label"]) == (data, label)]
    return next(x for x in lines if x["split"].startswith(split))


@pytest.fixture
def project(tmp_path):
    """A project with the scores on record, that a test may change."""
    for folder in ("specs", "results/measured"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(RECORD, tmp_path / "results" / "measured")
    return tmp_path


@measured
@pytest.mark.timeout(300)
def test_nothing_is_worse_than_the_scores_on_record_and_the_bars_are_met():
    # Simulating Megatron's steps takes minutes; `test_megatron` scores them by the closed form it is held to.
    done = harness("allreduce", "aceso", "--json", "--data", DATA)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["worse"] == []
    sizes = line(found, "unseen sizes")
    assert sizes["mape"] <= 0.015
    assert 0.75 <= sizes["coverage"] <= 0.85
    small = line(found, "unseen sizes", "up to 16 MiB")
    assert small["mape"] <= 0.04
    assert 0.75 <= small["coverage"] <= 0.85
    assert 0.75 <= line(found, "unseen sizes", data="aceso")["coverage"] <= 0.85
    assert all(line(found, f"unseen group size: {n}")["mape"] <= 0.08 for n in (2, 4, 8))


@measured
@pytest.mark.timeout(300)
def test_a_score_that_was_better_on_record_fails(project):
    record = project / "results" / "measured" / "emulator-check.json"
    better = json.loads(record.read_text())
    for old in better["lines"]:
        old["mape"] -= 0.02
    record.write_text(json.dumps(better))
    done = harness("allreduce", "--data", DATA, cwd=project)
    assert done.returncode == 1
    assert "worse: allreduce, unseen sizes" in done.stdout


@measured
def test_other_rows_of_the_same_tables_are_scored(tmp_path):
    (tmp_path / "megatron-a100").mkdir()
    for ranks in (2, 4, 8):
        name = f"megatron-a100/allreduce_a100_{ranks}gpu.csv"
        head, *rows = (DATA / name).read_text().splitlines()
        # The same times for half a MiB more: nearly right for large messages.
        moved = [",".join([str(int(row.split(",")[0]) + 2**19), *row.split(",")[1:]]) for row in rows[99::100]]
        (tmp_path / name).write_text("\n".join([head, rows[0], *moved]) + "\n")
    done = harness("allreduce", "--data", DATA, "--held-out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "allreduce: held out" in done.stdout
    # The first row of each is known from the fit, and not scored.
    assert next(x for x in done.stdout.splitlines() if x.startswith("  all")).split()[1:3] == ["3072", "30"]


def test_without_measurements_it_says_what_it_lacks(project):
    done = harness(cwd=project, HARNESS_DATA="")
    assert done.returncode == 3
    assert "name their folder with --data or HARNESS_DATA" in done.stderr
    done = harness("--data", project, cwd=project)
    assert done.returncode == 3
    assert "has no rows to score of allreduce" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["allreduc"], "did you mean 'allreduce'"),
        (["--data", "nowhere"], "'nowhere' is no folder"),
        (["--seeds", "0"], "at least 1"),
        (["--update", "--held-out", "."], "--update alone"),
    ],
)
def test_a_wrong_command_line_is_refused(project, arguments, message):
    done = harness(*arguments, cwd=project)
    assert done.returncode == 2
    assert message in done.stderr.replace("'allreduce'?", "'allreduce'")
