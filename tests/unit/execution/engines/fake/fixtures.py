"""Fixtures of every test that runs trials of the fake engine; a conftest re-exports them."""

import functools

import pytest

from harness.runner import RunOptions, run
from harness.store import Store


@pytest.fixture
def make_trial(tmp_path):
    from fake import trials

    return functools.partial(trials.make, tmp_path)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


@pytest.fixture
def execute(store):
    return functools.partial(execute_in, store)


def execute_in(store, *trials, listener=None, **options):
    """Runs trials and leaves their records in a store."""
    return run(trials, store=store, options=RunOptions(grace=1.0, **options), listener=listener)
