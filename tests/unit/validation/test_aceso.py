import pytest

from emulation.validation import aceso


@pytest.fixture
def folder(tmp_path):
    (tmp_path / aceso.FOLDER).mkdir()
    rows = [f"1B,all_gather,4gpus,{size},{0.1 + size / 100}" for size in range(1, 41)]
    rows += ["1B,all_reduce,2gpus,10,1.0", "2B,all_reduce,2gpus,10,3.0", "1B,all_reduce,2gpus,20,1000000.0"]
    (tmp_path / aceso.FOLDER / aceso.COLLECTIVES).write_text("\n".join([",".join(aceso.COLUMNS), *rows]) + "\n")
    (tmp_path / aceso.FOLDER / "p2p_intra_node.csv").write_text("1,2,4\n10.0, 20.0, 40.0\n")
    return tmp_path


def test_repeats_are_one_row_and_failed_runs_none(folder):
    rows = aceso.rows(folder)
    assert [(row.features["bytes"], row.seconds) for row in rows if row.family == "all-reduce, 2 V100"] == [
        (10 * 10**6, pytest.approx(2e-3))
    ]
    assert len({row.key for row in rows}) == len(rows) == 40 + 1 + 3


def test_messages_are_sizes_over_rates(folder):
    sent = [row for row in aceso.rows(folder) if row.family == "send, within a node"]
    assert [row.seconds for row in sent] == pytest.approx([1e-4, 1e-4, 1e-4])


def test_unseen_sizes_of_a_straight_line_are_predicted(folder):
    rows = [row for row in aceso.rows(folder) if row.features["op"] == "all-gather"]
    (split,) = aceso.splits(rows, 0)
    predict = aceso.fit(split.fit, 0)
    for row in split.scored:
        found = predict(row)
        assert found.low <= found.seconds <= found.high
        assert found.seconds == pytest.approx(row.seconds, rel=1e-6)


def test_a_family_without_rows_is_not_predicted(folder):
    rows = aceso.rows(folder)
    assert aceso.fit(rows[:40], 0)(rows[-1]) is None


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (aceso.COLLECTIVES, "size,time\n", "gpt_collectives.csv:1: expected the columns model"),
        (aceso.COLLECTIVES, ",".join(aceso.COLUMNS) + "\n1B,all_reduce,2gpus,10\n", "gpt_collectives.csv:2: expected"),
        ("p2p_intra_node.csv", "1,2\n10.0\n", "p2p_intra_node.csv:1: expected a line of sizes"),
    ],
)
def test_another_layout_is_named_with_its_line(folder, name, text, message):
    (folder / aceso.FOLDER / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        aceso.rows(folder)


def test_absent_files_have_no_rows(tmp_path):
    assert aceso.rows(tmp_path) == []
