"""The `verbs` provider over real verbs: one guest, two Soft-RoCE devices, both bindings.

The guest runs each suite once and prints a line of JSON a case; here every line is a test.
"""

import json
import runpy
from pathlib import Path

import pytest

import engines.rdma.conformance.cases  # noqa: F401 - defines them
from emulation.softroce import Cluster, Share
from engines.rdma.conformance.case import CASES
from harness import guests

pytestmark = [pytest.mark.softroce, pytest.mark.timeout(600)]

FAILURES = Path(__file__).with_name("verbs_failures.py")
CUT = 1_000_000
"""Bytes of a work request, far below what Soft-RoCE takes, so that the suite also sees transfers that are cut."""
SUITE_SECONDS = 400


@pytest.fixture(scope="module")
def guest(tmp_path_factory):
    shares = [Share(folder, str(folder)) for folder in guests.code()]
    with Cluster(
        1,
        tmp_path_factory.mktemp("verbs"),
        memory=1 << 30,
        shares=shares,
        layers=guests.layers(),
        python_path=[share.place for share in shares],
    ) as cluster:
        yield cluster[0]


def outcomes(guest, *command):
    """By name, what the guest says of each case."""
    environment = {"PYTHONDONTWRITEBYTECODE": "1"}
    ended = guest.run(["python3", *command], timeout=SUITE_SECONDS, environment=environment)
    assert not ended.timed_out, ended.output
    found = [json.loads(line) for line in ended.output.splitlines() if line.startswith("{")]
    assert found, ended.errors
    return {outcome["name"]: outcome for outcome in found}


@pytest.fixture(scope="module", params=["ibverbs", "pyverbs"])
def conformance(request, guest):
    options = [
        f"--{end}={key}={value}"
        for end, device in (("near", "rxe0"), ("far", "rxe1"))
        for key, value in (("device", device), ("binding", request.param), ("largest_write", CUT))
    ]
    return outcomes(guest, "-m", "engines.rdma.conformance", "--provider", "verbs", *options, "--json")


@pytest.fixture(scope="module")
def failures(guest):
    return outcomes(guest, str(FAILURES))


@pytest.mark.parametrize("name", CASES)
def test_conformance(conformance, name):
    outcome = conformance[name]
    assert outcome["status"] == "ok", outcome["message"]


@pytest.mark.parametrize("name", runpy.run_path(str(FAILURES))["CASES"])
def test_failures(failures, name):
    outcome = failures[name]
    assert outcome["status"] == "ok", outcome["message"]
