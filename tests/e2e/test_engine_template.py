"""The engine that CONTRIBUTING tells a newcomer to start from is built, found by its entry point, and run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The template under another name, built by pip into a folder of its own."""
    folder = tmp_path_factory.mktemp("template")
    source = folder / "my-engine"
    shutil.copytree(ROOT / "docs" / "engine-template", source)
    for path in sorted(source.rglob("*")):
        if path.is_file():
            path.write_text(path.read_text("utf-8").replace("memcopy", "mycopy"), "utf-8")
    (source / "specs" / "memcopy.yaml").rename(source / "specs" / "mycopy.yaml")
    (source / "memcopy").rename(source / "mycopy")
    site = folder / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(site), str(source)], check=True, capture_output=True)
    shutil.rmtree(source / "mycopy")
    return source / "specs" / "mycopy.yaml", site


def harness(*arguments, site):
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, "-m", "harness", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )


def test_a_new_engine_is_listed_validated_and_run(installed, tmp_path):
    spec, site = installed
    listed = harness("ls", "engines", "--json", site=site)
    assert "mycopy" in [row["name"] for row in json.loads(listed.stdout)]
    assert harness("validate", str(spec), site=site).returncode == 0
    done = harness("run", str(spec), "--out", str(tmp_path), "--no-report", site=site)
    assert done.returncode == 0, done.stderr
    records = [json.loads(p.read_text()) for p in sorted(tmp_path.rglob("record.json"))]
    assert (
        sorted((r["target"]["backend"], r["state"]) for r in records)
        == [("emulated", "ok")] * 2 + [("local", "ok")] * 2
    )


def test_its_cross_field_check_points_at_the_line(installed, tmp_path):
    _, site = installed
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("schema: 1\nname: wrong\nengine:\n  name: mycopy\n  size: 1 KiB\n  piece: 2 KiB\n")
    done = harness("validate", str(wrong), site=site)
    assert done.returncode == 2
    assert f"{wrong}:6:3" in done.stderr or f"{wrong}:6:10" in done.stderr
