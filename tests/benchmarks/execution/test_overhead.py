"""What the harness itself costs: a trial that does nothing, and a listing of ten thousand records."""

import sys
from pathlib import Path

import pytest

from harness import index
from harness.runner import run
from harness.store import Store

sys.path.append(str(Path(__file__).parents[2] / "unit" / "execution" / "engines"))


@pytest.fixture
def records(tmp_path):
    """Ten thousand record files with one content, which the index need not know."""
    from fake import trials

    store = Store(tmp_path / "runs")
    (record,) = run([trials.make(tmp_path, "ok", backend="emulated")], store=store).records
    content = record.model_dump_json(indent=1).encode()
    for number in range(10_000):
        place = store.directory / f"spec{number % 10}" / f"cell-{number:012}"
        place.mkdir(parents=True)
        (place / index.RECORD).write_bytes(content)
    return store


def test_overhead_of_a_hundred_trials_that_do_nothing(benchmark, tmp_path):
    from fake import trials

    rounds = iter(range(100))

    def execute():
        number = next(rounds)
        todo = [trials.make(tmp_path, "noop", f"cell{i}") for i in range(100)]
        return run(todo, store=Store(tmp_path / f"runs{number}"))

    assert benchmark.pedantic(execute, rounds=3).executed == 100


def test_listing_ten_thousand_records(benchmark, records):
    assert records.reindex() == 10_001
    assert len(benchmark.pedantic(records.list, rounds=5, warmup_rounds=1)) == 10_001


def test_reindexing_ten_thousand_records(benchmark, records):
    assert benchmark.pedantic(records.reindex, rounds=2) == 10_001
