import pytest

from emulation.cost.tables import ring_step
from emulation.validation import allreduce
from harness.hardware import load_profile

HEADER = ",".join(allreduce.COLUMNS)


def seconds(ranks, size):
    """A ring of 2 us a step at 200 GB/s, behind a base of 20 us."""
    return 20e-6 + 2 * (ranks - 1) * 1.9e-6 + 2 * (ranks - 1) / ranks * size / 200e9


@pytest.fixture
def folder(tmp_path):
    (tmp_path / allreduce.FOLDER).mkdir()
    for ranks in (2, 4, 8):
        times = [(n * 2**20, round(seconds(ranks, n * 2**20) * 1e9)) for n in range(1, 65)]
        text = "\n".join([HEADER, *(f"{size},{size // 4},float,{time},1.0,{2 * time},1.0" for size, time in times)])
        (tmp_path / allreduce.FOLDER / f"allreduce_a100_{ranks}gpu.csv").write_text(text + "\n")
    return tmp_path


def test_rows_are_the_out_of_place_times_of_every_table(folder):
    rows = allreduce.rows(folder)
    assert len(rows) == 3 * 64
    assert rows[0].features == {"chip": "A100", "ranks": 2, "bytes": 2**20}
    assert rows[0].seconds == pytest.approx(seconds(2, 2**20), rel=1e-4)
    assert {row.family for row in rows} == {"2 A100", "4 A100", "8 A100"}


def test_an_absent_folder_has_no_rows(tmp_path):
    assert allreduce.rows(tmp_path) == []


def test_splits_hold_out_sizes_and_group_sizes(folder):
    rows = allreduce.rows(folder)
    names = [split.name for split in allreduce.splits(rows, 0)]
    assert names == [
        "unseen sizes: a random half of each table",
        "unseen group size: 2 from 4 and 8 A100",
        "unseen group size: 4 from 2 and 8 A100",
        "unseen group size: 8 from 2 and 4 A100",
    ]
    one = [row for row in rows if row.features["ranks"] == 2]
    assert len(allreduce.splits(one, 0)) == 1


def test_a_rings_unseen_sizes_and_group_sizes_are_predicted(folder):
    for split in allreduce.splits(allreduce.rows(folder), 0):
        predict = allreduce.fit(split.fit, 0)
        for row in split.scored:
            found = predict(row)
            assert found.low <= found.seconds <= found.high
            # Leaving ranks away saves steps, and that is not believed.
            assert found.seconds == pytest.approx(row.seconds, rel=0.3 if "2 from" in split.name else 0.002)


def test_lines_tell_what_lies_between_the_fitted_sizes(folder):
    rows = [row for row in allreduce.rows(folder) if row.features["ranks"] == 2]
    labels = allreduce._labels(rows[1:-1])
    assert labels(rows[0]) == ("up to 16 MiB, beyond the fitted sizes",)
    assert labels(rows[8]) == ("up to 16 MiB", "up to 16 MiB, 2 A100")
    assert labels(rows[-1]) == ("above 16 MiB, beyond the fitted sizes",)


def test_of_another_chip_nothing_is_said(folder):
    rows = allreduce.rows(folder)
    assert allreduce.fit(rows, 0)(allreduce._row(folder, 1, ["4", "1", "float", "5"], "V100", 4)) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size,time\n1,2\n", r"allreduce_a100_2gpu.csv:1: expected the columns size"),
        (HEADER + "\n1,1,float,ten,1,1,1\n", r"gpu.csv:2: expected a size in bytes and a time in ns"),
        (HEADER + "\n1,1,float,0,1,1,1\n", r"gpu.csv:2: a size and a time must be positive"),
    ],
)
def test_a_table_of_another_layout_is_named_with_its_line(folder, text, message):
    (folder / allreduce.FOLDER / "allreduce_a100_2gpu.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        allreduce.rows(folder)


def test_the_step_is_that_of_the_shipped_profile():
    profile = load_profile("a100x8-hdr")
    assert ring_step(profile.collectives, "nvlink") == allreduce.STEP
