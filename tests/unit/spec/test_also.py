import json

import pytest

from harness import cli
from harness.errors import SpecError
from harness.load import load_with_others

SPEC = "schema: 1\nname: {}\nengine: {{name: toy, size: 4 KiB}}\n"


def names(path, *overrides):
    return [one.experiment.name for one in load_with_others(path, overrides)]


def test_specs_named_under_also_follow_in_order_each_once(project):
    (project.root / "specs" / "more").mkdir()
    project.write(SPEC.format("second") + "also: [../spec.yaml, third.yaml]\n", "more/second.yaml")
    project.write(SPEC.format("third"), "more/third.yaml")
    first = project.write(SPEC.format("first") + "also: [more/second.yaml, more/third.yaml]\n")
    assert names(first) == ["first", "second", "third"]


def test_overrides_are_for_the_spec_that_was_asked_for(project):
    project.write(SPEC.format("second"), "second.yaml")
    loaded = load_with_others(project.write(SPEC.format("first") + "also: [second.yaml]\n"), ["engine.size=8 KiB"])
    assert [one.engine_spec.size for one in loaded] == [8192, 4096]


def test_a_base_does_not_bequeath_what_it_names(project):
    project.write(SPEC.format("second"), "second.yaml")
    project.write(SPEC.format("base") + "also: [second.yaml]\n", "base.yaml")
    assert names(project.write("extends: base.yaml\nname: child\n")) == ["child"]


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("absent.yaml", "specs/spec.yaml:4:8: error: names 'absent.yaml', which does not exist"),
        ("../../away.yaml", "specs/spec.yaml:4:8: error: names '../../away.yaml', which lies outside the project"),
        ('"a\\0b"', "specs/spec.yaml:4:8: error: names 'a\\x00b', which is no file name"),
    ],
)
def test_what_cannot_follow_is_refused_at_its_place(project, named, message):
    path = project.write(SPEC.format("first") + f"also: [{named}]\n")
    with pytest.raises(SpecError) as caught:
        load_with_others(path)
    assert str(caught.value.problems[0]).startswith(message)


def test_validate_counts_the_trials_of_all(project, capsys, monkeypatch):
    monkeypatch.chdir(project.root)
    project.write(SPEC.format("second"), "second.yaml")
    project.write(SPEC.format("first") + "also: [second.yaml]\n")
    assert cli.main(["validate", "specs/spec.yaml", "--json"]) == 0
    valid = json.loads(capsys.readouterr().out)["valid"]
    assert [one["spec"] for one in valid] == ["specs/spec.yaml", "specs/second.yaml"]
