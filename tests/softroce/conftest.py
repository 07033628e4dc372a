"""Tests that boot guests. They run one after the other: guests that share two cores tell nothing about anything."""

import os
import sys
from pathlib import Path

import pytest

from emulation.softroce import Cluster, Image, Share, tools
from harness import guests

sys.path.append(str(Path(__file__).parents[1] / "unit" / "execution" / "engines"))

from fake.fixtures import make_trial, store

__all__ = ["make_trial", "store"]

REQUIRED = os.environ.get("HARNESS_SOFTROCE") == "required"


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.softroce)


@pytest.fixture(scope="session", autouse=True)
def able():
    """Whether guests can boot here: skipped where not, and failed where they must."""
    missing = tools.missing({**tools.TO_BOOT, **tools.TO_BUILD})
    reason = f"{tools.installing(missing)} gets what Soft-RoCE guests need" if missing else ""
    if not reason and os.geteuid() != 0 and Image.find() is None:
        reason = "building the image of Soft-RoCE guests needs root"
    if reason and REQUIRED:
        pytest.fail(f"HARNESS_SOFTROCE=required, and there are no guests: {reason}", pytrace=False)
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder that the guests of `pair` have at /share."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="session")
def pair(able, shared, tmp_path_factory):
    """Two guests for all tests that leave them as they were."""
    shares = [Share(shared, "/share", writable=True)]
    with Cluster(2, tmp_path_factory.mktemp("guests"), shares=shares, layers=guests.layers()) as cluster:
        yield cluster
