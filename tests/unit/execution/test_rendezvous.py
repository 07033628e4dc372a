import threading

import pytest

from harness.execution import journal, rendezvous
from harness.execution.rendezvous import FileRendezvous

KEYS = ["plain", "with space", "a/b", "..", "", "ü", "key-key", "%2F"]


@pytest.mark.parametrize("key", KEYS, ids=[k or "empty" for k in KEYS])
def test_any_key_and_value_comes_back(tmp_path, key):
    board = FileRendezvous(tmp_path / "board")
    board.set(key, "line 1\nline 2 ü")
    assert board.get(key, timeout=1) == "line 1\nline 2 ü"
    assert rendezvous.keys(tmp_path / "board") == {key: "line 1\nline 2 ü"}


def test_a_key_is_written_once(tmp_path):
    board = FileRendezvous(tmp_path)
    board.set("k", "1")
    with pytest.raises(ValueError, match="'k' is already set"):
        board.set("k", "2")
    assert board.get("k") == "1"


def test_waiting_ends_with_a_message(tmp_path):
    with pytest.raises(TimeoutError, match=r"no rank published 'k' within 0\.01 s"):
        FileRendezvous(tmp_path).get("k", timeout=0.01)


def test_a_barrier_names_the_rank_that_did_not_come(tmp_path):
    with pytest.raises(TimeoutError, match="rank 1 did not come to barrier 'b'"):
        FileRendezvous(tmp_path, rank=0, world_size=2).barrier("b", timeout=0.01)


def test_a_barrier_lets_nobody_through_before_the_last(tmp_path):
    through = []

    def come(rank):
        FileRendezvous(tmp_path, rank=rank, world_size=3).barrier("b", timeout=30)
        through.append(rank)

    threads = [threading.Thread(target=come, args=(r,)) for r in range(2)]
    for thread in threads:
        thread.start()
    assert through == []
    come(2)
    for thread in threads:
        thread.join()
    assert sorted(through) == [0, 1, 2]


def test_a_journal_that_was_cut_short_keeps_its_whole_lines(tmp_path):
    path = tmp_path / "events.jsonl"
    notes = journal.Journal(path)
    notes.write("value", samples=[1.0, float("inf")], text="ü\n")
    notes.write("done")
    notes.close()
    path.write_bytes(path.read_bytes()[:-3])
    assert journal.read(path) == [{"event": "value", "samples": [1.0, float("inf")], "text": "ü\n"}]
    assert journal.last(path) == "value"
    assert journal.read(tmp_path / "none") == []
