# ruff: noqa: E501 - a table reads best with one case a line
import subprocess
import sys

import pytest
from pydantic import Field

from emulation.units import Duration, Strict
from harness.errors import SpecError
from harness.load import load_experiment, load_yaml_model

GOOD = "schema: 1\nname: x\nengine: {name: toy, size: 4 KiB}\n"


def messages(path, *overrides):
    with pytest.raises(SpecError) as caught:
        load_experiment(path, overrides)
    return [str(p).splitlines()[0].removeprefix(f"{path}:") for p in caught.value.problems]


def test_a_good_spec_is_loaded_with_the_origin_of_every_value(project):
    loaded = load_experiment(project.write(GOOD + "repeat: {runs: 7}\n"), ["engine.rate=2"])
    assert loaded.engine_spec.size == 4096
    assert loaded.engine_spec.rate == 2.0
    assert loaded.experiment.repeat.runs == 7
    assert loaded.origins["engine.size"] == "specs/spec.yaml:3:27"
    assert loaded.origins["engine.rate"] == "--set #1"
    assert loaded.origins["repeat.runs"] == "specs/spec.yaml:4:16"
    assert loaded.origins["repeat.seed"] == "default"


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        ("{name: toy}", "3:1: error: missing field 'size' in 'engine'; expected 'size: ...' (Bytes copied)"),
        ("{name: toy, size: 0 B}", "3:27: error: 'engine.size' is the text '0 B'; expected more than 0"),
        ("{name: toy, sise: 4 B}", "3:21: error: unknown field 'sise' in 'engine'; expected one of: name, size, piece, rate, flag, tags, options, how, colour; did you mean 'size'?"),
        ("{name: toy, size: 4 B, piece: 5 B}", "3:39: error: the piece is larger than the whole; expected at most size"),
        ("{name: toy, size: 4 KiB, flag: 1}", "3:40: error: 'engine.flag' is the number 1; expected true or false"),
        ("{name: toy, size: 4 KiB, tags: [a, 1]}", "3:44: error: 'engine.tags.1' is the number 1; expected text"),
        ("{name: toy, size: 4 KiB, options: {a: x}}", "3:47: error: 'engine.options.a' is the text 'x'; expected a whole number"),
        ("{name: toy, size: 4 KiB, how: {kind: fats}}", "3:46: error: 'engine.how.kind' is the text 'fats'; expected one of 'fast', 'slow'; did you mean 'fast'?"),
        ("{name: toy, size: 4 KiB, how: {kind: slow}}", "3:34: error: missing field 'reason' in 'engine.how'"),
        ("{name: toy, size: 4 KiB, how: {kind: fast, sped: 1}}", "3:52: error: unknown field 'sped' in 'engine.how'; expected one of: kind, speed"),
        ("{name: toy, size: 4 KiB, how: {kind: fast, speed: x}}", "3:59: error: 'engine.how.speed' is the text 'x'; expected a number"),
    ],
)  # fmt: skip
def test_mistakes_in_the_engines_fields_are_placed_and_worded(project, engine, expected):
    (message,) = messages(project.write(f"schema: 1\nname: x\nengine: {engine}\n"))
    assert message.startswith(expected)


def test_a_check_that_raises_is_the_engines_mistake_and_says_so(project, install):
    install(
        "broken",
        "broken_engine",
        "from harness.api import EngineSpec\nclass Spec(EngineSpec):\n    def check(self):\n        return 1 / 0\n",
    )
    (message,) = messages(project.write("schema: 1\nname: x\nengine: {name: broken}\n"))
    assert message.startswith("3:16: error: the engine's own check failed: ZeroDivisionError")


def test_an_engine_that_cannot_be_imported_is_named_at_its_line(project, install):
    install("broken", "broken_engine", "import nothing_of_this_name\n")
    (message,) = messages(project.write("schema: 1\nname: x\nengine: {name: broken}\n"))
    assert message.startswith("3:16: error: the engine's module broken_engine.spec cannot be imported: ModuleNotFound")


def test_a_field_that_only_the_sweep_gives_is_not_missing(project):
    text = "schema: 1\nname: x\nengine: {name: toy}\nsweep: {grid: {engine.size: [2 KiB, 4 KiB]}}\n"
    assert load_experiment(project.write(text)).engine_spec.size == 2048


def test_yaml_models_get_the_same_messages(tmp_path):
    class Inner(Strict):
        wait: Duration

    class Outer(Strict):
        parts: list[Inner] = Field(min_length=1)

    path = tmp_path / "f.yaml"
    path.write_text("parts:\n  - {wait: 3 s}\n  - {wait: 3}\n  - {wiat: 3 s}\n")
    with pytest.raises(SpecError) as caught:
        load_yaml_model(path, Outer)
    assert [str(p).splitlines()[0].removeprefix(f"{path}:") for p in caught.value.problems] == [
        "3:12: error: 'parts.1.wait' is the number 3: a duration needs a unit, such as '3 us' or '2 min'",
        "4:6: error: unknown field 'wiat' in 'parts.2'; expected one of: wait; did you mean 'wait'?",
    ]
    path.write_text("parts: [{wait: 3 s}]\n")
    assert load_yaml_model(path, Outer).parts[0].wait == 3.0


def test_validating_imports_nothing_heavy(project):
    path = project.write("schema: 1\nname: x\nengine: {name: rdma, sizes: [4 KiB]}\n")
    code = (
        "import sys; from harness.load import load_experiment; from harness.resolve import resolve\n"
        f"assert resolve(load_experiment({str(path)!r}), on='emulated')\n"
        "heavy = {'numpy', 'networkx', 'simpy', 'rich', 'torch', 'ray', 'scipy', 'matplotlib', 'grpc'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
