"""`harness calibrate`, run for real."""

import json

import pytest

from harness.cli import main
from harness.load import load_yaml_model


def test_what_needs_only_numpy_makes_a_profile(tmp_path, capsys):
    from emulation.profile import Profile

    target = tmp_path / "box.yaml"
    assert main(["calibrate", "--quick", "--only", "memcpy,tcp", "--only", "gemm", "--to", str(target)]) == 0
    profile = load_yaml_model(target, Profile)
    assert profile.name == "box"
    assert profile.calibration.file == "box.calibration.json"
    assert 1e8 < profile.hosts[0].software.memcpy.peak.value < 1e12
    assert f"profile: {target}" in capsys.readouterr().out


@pytest.mark.timeout(300)
def test_copies_and_collectives_are_timed(tmp_path, capsys):
    pytest.importorskip("torch")
    target = tmp_path / "box.yaml"
    assert main(["calibrate", "--quick", "--only", "memcpy,gloo", "--to", str(target), "--json"]) == 0
    said = capsys.readouterr()
    assert "a profile needs tcp" in said.err
    assert json.loads(said.out)["profile"] is None
    assert not target.exists()
    raw = json.loads((tmp_path / "box.calibration.json").read_text())
    reduced = [s for s in raw["series"] if s["probe"] == "gloo" and s["labels"]["op"] == "all-reduce"]
    assert {s["labels"]["ranks"] for s in reduced} == {2, 3, 4}
    assert all(0 < s["median_s"] < 1 for s in raw["series"])
    assert not raw["skipped"]


def test_a_probe_that_breaks_off_is_said_and_leaves_the_others_alone(tmp_path, monkeypatch, capsys):
    from emulation.calibrate import measure
    from emulation.calibrate.pool import ProbeError

    def broken(found, pool):
        raise ProbeError("on purpose")

    monkeypatch.setitem(measure.PROBES, "memcpy", measure.Probe("memcpy", "breaks off", broken))
    assert main(["calibrate", "--quick", "--only", "memcpy,tcp", "--to", str(tmp_path / "box.yaml")]) == 1
    assert "memcpy: left out: on purpose" in capsys.readouterr().out
    raw = json.loads((tmp_path / "box.calibration.json").read_text())
    assert {series["probe"] for series in raw["series"]} == {"tcp"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "memcopy"], "did you mean 'memcpy'?"),
        (["--to", "box.json"], "box.yaml"),
        (["--to", "box.yaml", "--name", "other"], "other.yaml"),
        (["--name", "Big Box"], "lower-case letters"),
        (["--to", "nowhere/box.yaml"], "there is no folder"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_measured(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert main(["calibrate", *words]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
