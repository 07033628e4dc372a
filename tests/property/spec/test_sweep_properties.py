import itertools

from hypothesis import given
from hypothesis import strategies as st

from harness.loading import sweep
from harness.spec import Sweep

names = st.sampled_from(["engine.a", "engine.b", "engine.B", "repeat.seed", "on.hardware", "engine.how.a"])
scalars = (
    st.integers(-5, 5)
    | st.booleans()
    | st.none()
    | st.text(max_size=6)
    | st.floats(allow_nan=False, allow_infinity=False)
)
axes = st.dictionaries(names, st.lists(scalars, min_size=1, max_size=4, unique_by=repr), min_size=1, max_size=4)


@given(axes)
def test_a_grid_has_every_combination_once_in_the_order_of_writing(grid):
    section = Sweep.model_validate({"grid": grid})
    cells = sweep.expand(section)
    assert [tuple(map(repr, cell.swept.values())) for cell in cells] == [
        tuple(map(repr, point)) for point in itertools.product(*grid.values())
    ]
    assert len(cells) == sweep.count(section)
    assert all(list(cell.swept) == list(grid) for cell in cells)


@given(axes)
def test_names_are_unique_short_and_safe_and_do_not_depend_on_the_run(grid):
    section = Sweep.model_validate({"grid": grid})
    found = [cell.name for cell in sweep.expand(section)]
    assert len({name.casefold() for name in found}) == len(found)
    assert all(0 < len(name) <= sweep.MAX_NAME and "/" not in name and name.isascii() for name in found)
    assert found == [cell.name for cell in sweep.expand(section)]


@given(axes, st.data())
def test_excluding_removes_exactly_what_matches(grid, data):
    rule = data.draw(st.fixed_dictionaries({path: st.sampled_from(values) for path, values in grid.items()}))
    left = sweep.expand(Sweep.model_validate({"grid": grid, "exclude": [rule]}))
    everything = sweep.expand(Sweep.model_validate({"grid": grid}))
    matching = [c for c in everything if all(sweep.equal(c.swept[p], v) for p, v in rule.items())]
    assert matching
    assert [c.swept for c in left] == [c.swept for c in everything if c not in matching]
