import pytest
import yaml

from harness.errors import Position, SpecError
from harness.load import load_experiment
from harness.loading import document
from harness.loading.document import compose, read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e6", 1000000),
        ("1.5e3", 1500.0),
        ("1e-3", 0.001),
        ("+3", 3),
        ("-.5", -0.5),
        ("0o17", 15),
        ("0x1F", 31),
        ("017", 17),
        ("NO", "NO"),
        ("yes", "yes"),
        ("on", "on"),
        ("3:25", "3:25"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("0b11", "0b11"),
        ("True", True),
        ("false", False),
        ("~", None),
        ("Null", None),
        ("'null'", "null"),
        ('"1e6"', "1e6"),
        ("!!str 3", "3"),
        ("!!float 3", 3.0),
    ],
)  # fmt: skip
def test_scalars_follow_yaml_1_2(text, value):
    found = compose(f"key: {text}\n", "f").data["key"]
    assert found == value
    assert type(found) is type(value)


def test_every_key_and_value_has_its_place():
    text = "a: 1\nb:\n  - x\n  - {c: 'two words'}\n"
    found = compose(text, "f.yaml")
    assert found.locate(("a",)) == Position("f.yaml", 1, 4)
    assert found.locate(("a",), key=True) == Position("f.yaml", 1, 1)
    assert found.locate(("b", 0)) == Position("f.yaml", 3, 5)
    assert found.locate(("b", 1, "c")) == Position("f.yaml", 4, 9)
    assert found.locate(("b", 1, "c")).length == len("'two words'")
    assert found.locate(("b",)) == Position("f.yaml", 2, 1), "a block is pointed to by its key"
    assert found.locate(("b", 1, "missing")) == Position("f.yaml", 4, 5), "the nearest part that holds it"
    assert found.locate(("nowhere", "at", "all")) == Position("f.yaml", 1, 1)


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
def test_lines_are_counted_alike_for_every_line_end(newline):
    found = compose(newline.join(["a: 1", "b: 2", "c: 3", ""]), "f")
    assert found.data == {"a": 1, "b": 2, "c": 3}
    assert found.locate(("c",)) == Position("f", 3, 4)


def test_aliases_and_merge_keys_work_and_own_keys_win():
    text = "base: &b {x: 1, y: 2}\nlater: &l {y: 5, z: 3}\nuse:\n  <<: [*b, *l]\n  x: 9\nsame: *b\n"
    assert compose(text, "f").data["use"] == {"x": 9, "y": 2, "z": 3}
    assert compose(text, "f").data["same"] == {"x": 1, "y": 2}


def test_merged_keys_know_where_they_were_written():
    found = compose("base: &b\n  x: 1\nuse:\n  <<: *b\n", "f")
    assert found.locate(("use", "x")) == Position("f", 2, 6)


def test_merges_of_merges_are_counted_even_where_they_add_nothing():
    text = "a0: &a0 {}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40))
    with pytest.raises(document.SpecError, match="more than 100000 values"):
        compose(text, "f")


def test_mistakes_that_leave_the_rest_readable_are_all_collected():
    found = compose("a: 1\na: 2\nb: !x 3\nc: .inf\n4: d\ne: 5\n", "f")
    assert [p.position.line for p in found.problems] == [2, 3, 4, 5]
    assert found.data["e"] == 5
    assert found.broken == {("b",), ("c",)}


def test_the_caret_stands_under_wide_characters():
    found = compose("名: 前 # x\nb: !t 1\n", "f")
    assert found.problems[0].excerpt.splitlines() == ["  1 | 名: 前 # x", "  2 | b: !t 1", "    |    ^^^^"]
    same_line = compose("{名前: !t 1}\n", "f")
    assert same_line.problems[0].excerpt.splitlines()[-1] == "    | " + " " * len("{名前: ") + "  " + "^^^^"


def test_a_long_line_is_cut_around_the_mistake():
    found = compose("x: [" + "aaaa, " * 100 + "!t 1]\n", "f")
    line, caret = found.problems[0].excerpt.splitlines()
    assert len(line) < 130
    assert line[caret.index("^") :].startswith("!t 1")


def test_the_pure_python_parser_gives_the_same(monkeypatch):
    text = "a: {b: [1, 2e3, x], c: 'd'}\ne:\n  - f\n"
    fast = compose(text, "f")

    class Events(yaml.reader.Reader, yaml.scanner.Scanner, yaml.parser.Parser):
        def __init__(self, stream):
            yaml.reader.Reader.__init__(self, stream)
            yaml.scanner.Scanner.__init__(self)
            yaml.parser.Parser.__init__(self)

    class Loader(yaml.composer.Composer, document.CoreResolver, Events):
        def __init__(self, stream):
            Events.__init__(self, stream)
            yaml.composer.Composer.__init__(self)
            document.CoreResolver.__init__(self)

    monkeypatch.setattr(document, "_Loader", Loader)
    slow = compose(text, "f")
    assert slow.data == fast.data
    assert {path: spot.value for path, spot in slow.spots.items()} == {p: s.value for p, s in fast.spots.items()}


def test_a_byte_order_mark_does_not_move_columns(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read(path).locate(("a",)) == Position(str(path), 1, 4)


def test_a_symbolic_link_to_itself_is_a_file_that_cannot_be_read(tmp_path):
    path = tmp_path / "circle.yaml"
    path.symlink_to(path)
    with pytest.raises(SpecError, match=r"circle.yaml:1:1: error: cannot read the file: Too many levels"):
        load_experiment(path)
