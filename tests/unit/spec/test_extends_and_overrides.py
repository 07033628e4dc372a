# ruff: noqa: E501 - a table reads best with one case a line
import pytest

from harness.errors import SpecError
from harness.load import load_experiment

BASE = "schema: 1\nname: base\nengine: {name: toy, size: 4 KiB, tags: [a, b], options: {x: 1, y: 2}}\nrepeat: {runs: 7, seed: 3}\n"


def refused(path, *overrides):
    with pytest.raises(SpecError) as caught:
        load_experiment(path, overrides)
    return [str(p).splitlines()[0] for p in caught.value.problems]


def test_maps_are_merged_lists_and_scalars_replaced(project):
    project.write(BASE, "base.yaml")
    child = "extends: base.yaml\nname: child\nengine: {tags: [c], options: {y: 5, z: 6}}\nrepeat: {seed: 4}\n"
    loaded = load_experiment(project.write(child))
    assert loaded.experiment.name == "child"
    assert loaded.engine_spec.tags == ["c"]
    assert loaded.engine_spec.options == {"x": 1, "y": 5, "z": 6}
    assert (loaded.experiment.repeat.runs, loaded.experiment.repeat.seed) == (7, 4)


def test_each_value_remembers_the_file_it_came_from(project):
    project.write(BASE, "base.yaml")
    loaded = load_experiment(project.write("extends: base.yaml\nrepeat: {seed: 4}\n"))
    assert loaded.origins["repeat.seed"] == "specs/spec.yaml:2:16"
    assert loaded.origins["repeat.runs"] == "specs/base.yaml:4:16"
    assert loaded.origins["engine.tags.1"] == "specs/base.yaml:3:44"


def test_null_takes_the_bases_value_away(project):
    project.write(BASE, "base.yaml")
    loaded = load_experiment(project.write("extends: base.yaml\nrepeat: {runs: null}\n"))
    assert loaded.experiment.repeat.runs == 5
    assert loaded.origins["repeat.runs"] == "default"


def test_mistakes_are_placed_in_the_file_that_makes_them(project):
    project.write(BASE + "limits: {timeout: 3}\n", "base.yaml")
    messages = refused(project.write("extends: base.yaml\nrepeat: {sead: 4}\n"))
    assert messages[0].startswith("specs/base.yaml:5:19: error: 'limits.timeout' is the number 3")
    assert messages[1].startswith("specs/spec.yaml:2:10: error: unknown field 'sead' in 'repeat'")


def test_a_replaced_value_that_could_not_be_read_is_no_mistake(project):
    project.write(BASE.replace("seed: 3", "seed: .inf"), "base.yaml")
    assert load_experiment(project.write("extends: base.yaml\nrepeat: {seed: 4}\n")).experiment.repeat.seed == 4


def test_bases_may_have_bases_and_lie_in_other_folders_of_the_project(project):
    project.write(BASE, "base.yaml")
    (project.root / "specs" / "deep").mkdir()
    project.write("extends: ../base.yaml\nname: middle\n", "deep/middle.yaml")
    assert load_experiment(project.write("extends: deep/middle.yaml\n")).experiment.name == "middle"


@pytest.mark.parametrize("link", [False, True], ids=["path", "symbolic link"])
def test_no_base_lies_outside_the_project(project, tmp_path, link):
    (tmp_path / "outside.yaml").write_text(BASE)
    named = "../../outside.yaml"
    if link:
        (project.root / "specs" / "link.yaml").symlink_to(tmp_path / "outside.yaml")
        named = "link.yaml"
    (message,) = refused(project.write(f"extends: {named}\n"))
    assert "which lies outside the project" in message


def test_a_cycle_is_shown_whole(project):
    project.write("extends: b.yaml\n", "a.yaml")
    path = project.write("extends: a.yaml\n", "b.yaml")
    assert refused(path) == [
        "specs/a.yaml:1:10: error: extends itself: b.yaml -> a.yaml -> b.yaml; expected a base that does not lead back here"
    ]


def test_a_chain_of_bases_has_an_end(project):
    for number in range(40):
        path = project.write(f"extends: s{number - 1}.yaml\n" if number else BASE, f"s{number}.yaml")
    (message,) = refused(path)
    assert "more than 16 files extend one another" in message


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("engine.rate=1e-3", ("engine", "rate"), 0.001),
        ("engine.size=1 MiB", ("engine", "size"), 2**20),
        ("engine.tags=[x, 'y z']", ("engine", "tags"), ["x", "y z"]),
        ("engine.tags.1=x", ("engine", "tags"), ["a", "x"]),
        ("engine.options={q: 9}", ("engine", "options"), {"q": 9}),
        ("engine.options.q=9", ("engine", "options"), {"x": 1, "y": 2, "q": 9}),
        ("engine.flag=true", ("engine", "flag"), True),
        ("engine.colour='a=b'", ("engine", "colour"), "a=b"),
        ("repeat.runs=1e2", ("repeat", "runs"), 100),
        ("limits.timeout=2 min", ("limits", "timeout"), 120.0),
        ("name=other", ("name",), "other"),
    ],
)
def test_an_override_is_typed_by_the_models(project, override, path, value):
    loaded = load_experiment(project.write(BASE), [override])
    found = loaded.engine_spec if path[0] == "engine" else loaded.experiment
    for step in path[1:] if path[0] == "engine" else path:
        found = getattr(found, step)
    assert found == value


def test_targets_can_be_overridden_by_index_or_without(project):
    one = project.write(BASE + "on: {backend: local}\n")
    assert load_experiment(one, ["on.0.backend=emulated"]).experiment.on.backend == "emulated"
    assert load_experiment(one, ["on.backend=emulated"]).experiment.on.backend == "emulated"
    two = project.write(BASE + "on: [{backend: local}, {backend: emulated}]\n")
    assert load_experiment(two, ["on.1.hardware=h100x8-ndr"]).experiment.on[1].hardware == "h100x8-ndr"
    none = project.write(BASE)
    assert load_experiment(none, ["on.0.backend=emulated"]).experiment.on.backend == "emulated"


def test_a_sweep_can_be_set(project):
    loaded = load_experiment(project.write(BASE), ["sweep.grid.engine.rate=[1, 2]"])
    assert loaded.experiment.sweep.grid == {"engine.rate": [1, 2]}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("engine.rtae=4", "--set #1:1:8: error: unknown field 'rtae' in 'engine'; expected one of: name, size, piece, rate, flag, tags, options, how, colour; did you mean 'rate'?"),
        ("engin.rate=4", "--set #1:1:1: error: unknown field 'engin'"),
        ("engine.rate=fast", "--set #1:1:13: error: 'engine.rate' is the text 'fast'; expected a number"),
        ("engine.rate= .nan", "--set #1:1:14: error: .nan is not a finite number"),
        ("engine.rate=[1", "--set #1:1:15: error: not well-formed YAML"),
        ("engine.rate", "--set #1:1:1: error: 'engine.rate' is not an override; expected PATH=VALUE"),
        ("=4", "--set #1:1:1: error: '=4' is not an override"),
        ("engine..rate=4", "--set #1:1:1: error: 'engine..rate=4' is not an override"),
        ("engine.tags.7=x", "--set #1:1:1: error: 'engine.tags' is a list of 2 and has no item '7'"),
        ("engine.size=", "--set #1:1:8: error: 'engine.size' is empty (null); expected a size such as"),
        ("repeat=3", "--set #1:1:8: error: 'repeat' is the number 3; expected a mapping"),
        ("extends=other.yaml", "--set #1:1:1: error: 'extends' cannot be overridden"),
        ("name=a\nb", "--set #1:1:1: error: an override of several lines"),
        ("name=\udcff", "--set #1:1:6: error: control character U+DCFF"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_placed_in_the_command_line(project, override, expected):
    (message,) = refused(project.write(BASE), override)
    assert message.startswith(expected)


def test_the_number_of_an_override_is_its_place_in_the_command_line(project):
    messages = refused(project.write(BASE), "engine.rate=2", "engine.rtae=4")
    assert messages[0].startswith("--set #2:1:8")


@pytest.mark.parametrize("override", ["engine.rate=3", "engine={name: toy, size: 1 B}"])
def test_what_is_swept_cannot_be_overridden_as_well(project, override):
    path = project.write(BASE + "sweep: {grid: {engine.rate: [1, 2]}}\n")
    assert any("'engine.rate' is swept by the spec, and overridden" in m for m in refused(path, override))
