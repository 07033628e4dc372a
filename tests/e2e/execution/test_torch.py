"""Ranks that meet through the framework they train with."""

import pytest

from harness.records import State


def test_ranks_join_a_torch_process_group(execute, make_trial):
    pytest.importorskip("torch")
    (record,) = execute(make_trial("all_reduce", world=2, ranks=2)).records
    assert record.state is State.OK, record.failure.log_tail
    assert [v.samples for v in record.values] == [[12.0], [12.0]]
