import pytest

from harness.loading import sweep
from harness.spec import Sweep


def expand(**section):
    return sweep.expand(Sweep.model_validate(section))


def names(**section):
    return [cell.name for cell in expand(**section)]


def test_without_a_sweep_there_is_one_cell():
    assert names() == ["default"]


def test_a_grid_is_a_product_in_the_order_of_writing():
    assert names(grid={"engine.b": [2, 1], "engine.a": ["y", "x"]}) == ["b=2,a=y", "b=2,a=x", "b=1,a=y", "b=1,a=x"]


def test_a_zip_pairs():
    assert names(zip={"engine.a": [1, 2], "engine.b": ["x", "y"]}) == ["a=1,b=x", "a=2,b=y"]


def test_a_list_spells_cells_out():
    cells = expand(list=[{"engine.a": 1}, {"engine.b": 2, "engine.a": 3}])
    assert [cell.swept for cell in cells] == [{"engine.a": 1}, {"engine.b": 2, "engine.a": 3}]
    assert [cell.name for cell in cells] == ["a=1", "b=2,a=3"]


def test_excluded_cells_match_every_path_of_a_rule():
    section = {"grid": {"engine.a": [1, 2], "engine.b": [1, True]}, "exclude": [{"engine.a": 2, "engine.b": 1}]}
    assert [tuple(cell.swept.values()) for cell in expand(**section)] == [(1, 1), (1, True), (2, True)]


@pytest.mark.parametrize(
    ("paths", "short"),
    [
        (["engine.model"], ["model"]),
        (["engine.size", "needs.size"], ["engine.size", "needs.size"]),
        (["engine.how.speed", "engine.speed"], ["how.speed", "engine.speed"]),
    ],
)
def test_paths_are_shortened_as_far_as_they_stay_apart(paths, short):
    assert list(sweep.short_names(paths).values()) == short


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("1 MiB", "a=1MiB"),
        (0.5, "a=0.5"),
        (None, "a=null"),
        (True, "a=true"),
        ([1, "x"], "a=1+x"),
        (-3, "a=-3"),
    ],
)
def test_values_that_fit_a_file_name_are_shown_as_they_are(value, name):
    assert names(grid={"engine.a": [value]}) == [name]


@pytest.mark.parametrize("value", ["a/b", "../x", "実験", "", "a,b=c", "x" * 300, {"k": 1}, "a\nb"])
def test_any_value_gives_a_name_that_every_file_system_takes(value):
    (name,) = names(grid={"engine.a": [value]})
    assert len(name) <= sweep.MAX_NAME
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+-=,")
    assert name.startswith("a=")


def test_names_differ_even_without_regard_to_case():
    found = names(grid={"engine.a": ["x", "X", "x y", "xy", "x/y", "x:y"]})
    assert len({name.casefold() for name in found}) == 6


def test_the_count_is_known_without_expanding():
    assert sweep.count(Sweep.model_validate({"grid": {f"engine.{c}": list(range(1000)) for c in "abcdef"}})) == 10**18
