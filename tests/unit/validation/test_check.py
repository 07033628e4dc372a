import json
from dataclasses import dataclass, field

import pytest

from emulation import validation
from emulation.validation import Prediction, Row, Split, check, halves


def made(count=40, families=("a", "b"), step=1):
    return [Row(f, {"x": float(step * n)}, 1.0 + step * n, choice=f) for f in families for n in range(1, count + 1)]


@dataclass
class Doubles:
    """Predicts a tenth too much, or what it was told to."""

    data: list
    factor: float = 1.1
    fitted: list = field(default_factory=list)
    silent: str = ""

    def rows(self, folder):
        return [row for row in self.data if folder.name in {"data", str(row.features.get("where", "data"))}]

    def splits(self, rows, seed):
        return [Split("half", *halves(rows, seed)), Split("b from a", rows[:40], rows[40:], drawn=False)]

    def fit(self, rows, seed):
        self.fitted.append(rows)

        def predict(row):
            found = self.factor * row.seconds
            return None if row.family == self.silent else Prediction(found, 0.8 * found, 1.2 * found)

        return predict


@pytest.fixture
def data(monkeypatch):
    data = Doubles(made())
    monkeypatch.setattr(validation, "DATA_SETS", ("doubles",))
    monkeypatch.setattr(validation, "load", lambda name: data)
    return data


def lines(report):
    return {(line.split, line.label): line for line in report.lines}


def test_halves_take_half_of_each_family_and_share_no_row():
    fit, scored = halves(made(), 3)
    assert [sum(row.family == f for row in fit) for f in "ab"] == [20, 20]
    assert sorted(row.key for row in [*fit, *scored]) == sorted(row.key for row in made())
    assert halves(made(), 3) == (fit, scored)
    assert halves(made(), 4)[0] != fit


def test_a_familys_half_does_not_depend_on_other_families():
    alone = halves(made(families=("b",)), 3)[0]
    assert [row for row in halves(made(), 3)[0] if row.family == "b"] == alone


def test_lines_are_scored_over_all_seeds_and_fixed_splits_once(data, tmp_path):
    (tmp_path / "data").mkdir()
    found = lines(check.check(tmp_path / "data", seeds=[0, 1, 2]))
    assert [(key, line.fitted, line.score.count) for key, line in found.items()] == [
        (("half", "all"), 40, 120),
        (("half", "a"), 40, 60),
        (("half", "b"), 40, 60),
        (("b from a", "all"), 40, 40),
        (("b from a", "b"), 40, 40),
    ]
    whole = found["half", "all"].score
    assert (whole.bias, whole.mape, whole.coverage, whole.regret) == pytest.approx((0.1, 0.1, 1.0, 0.0))
    assert len(data.fitted) == 4


def test_rows_the_model_says_nothing_of_are_counted(data, tmp_path):
    data.silent = "b"
    found = lines(check.check(tmp_path / "data", seeds=[0]))
    assert found["half", "all"].refused == 20
    assert found["half", "all"].score.count == 20
    assert ("half", "b") not in found


def test_a_split_that_scores_what_it_fits_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(Doubles, "splits", lambda self, rows, seed: [Split("leak", rows[:5], rows[4:9])])
    with pytest.raises(AssertionError, match="'leak' scores 1 rows that it fits"):
        check.check(tmp_path / "data", seeds=[0])


def test_held_out_rows_that_are_in_the_fit_are_not_scored(data, tmp_path):
    extra = Row("a", {"x": 99.0, "where": "other"}, 5.0)
    again = Row("a", {"x": 1.0}, 2.5)
    data.data = [*made()]
    data.rows = lambda folder: data.data if folder.name == "data" else [again, extra]
    (line, _) = check.check(tmp_path / "data", seeds=[0], held_out=tmp_path / "other").lines
    assert (line.split, line.fitted, line.score.count) == ("held out", 80, 1)


def test_absent_data_sets_are_named(data, tmp_path):
    data.data = []
    report = check.check(tmp_path / "data", seeds=[0])
    assert (report.lines, report.absent) == ((), ("doubles",))


def again(doubles, tmp_path, before=None, seeds=(0, 1), **changes):
    """What is worse than before, after these changes of the data set; and the document."""
    for name, value in changes.items():
        setattr(doubles, name, value)
    report = check.check(tmp_path / "data", seeds=seeds)
    document = json.loads(json.dumps(report.document()))
    return (check.worsened(report, before) if before else []), document, report


def test_a_mean_error_that_grows_by_more_than_a_point_is_worse(data, tmp_path):
    _, before, _ = again(data, tmp_path)
    assert again(data, tmp_path, before)[0] == []
    assert again(data, tmp_path, before, factor=1.109)[0] == []
    worse = again(data, tmp_path, before, factor=1.111)[0]
    assert len(worse) == 5
    assert worse[0] == "doubles, half, all: mean error 11.10 %, 10.00 % on record"


def test_a_band_that_no_longer_covers_is_worse_where_there_are_enough_pairs(data, tmp_path):
    _, before, _ = again(data, tmp_path, factor=1.2)
    worse = again(data, tmp_path, before, factor=0.8)[0]
    assert worse == ["doubles, half, all: the 80 % band covers 0 %, 100 % on record"]


def test_a_line_that_is_no_longer_scored_is_worse(data, tmp_path):
    _, before, _ = again(data, tmp_path)
    worse = again(data, tmp_path, before, silent="b")[0]
    assert "doubles, half, b: is no longer scored" in worse


@pytest.mark.parametrize("change", [{"seeds": (0,)}, {"data": made(41)}])
def test_scores_of_other_rows_or_seeds_are_not_compared(data, tmp_path, change):
    _, before, _ = again(data, tmp_path)
    worse, _, report = again(data, tmp_path, before, factor=3.0, **change)
    assert worse == []
    assert check.not_compared(report, before) == ["doubles"]
