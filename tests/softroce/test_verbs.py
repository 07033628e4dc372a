"""The `verbs` provider over real verbs: one guest, two Soft-RoCE devices, both bindings.

The guest runs each suite once and prints a line of JSON a case; here every line is a test.
"""

import json
import runpy
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import engines.rdma.conformance.cases  # noqa: F401 - defines them
from emulation.softroce import Cluster, Share, Wire
from engines.rdma.conformance.case import CASES
from harness import guests

pytestmark = [pytest.mark.softroce, pytest.mark.timeout(600)]

FAILURES = Path(__file__).with_name("verbs_failures.py")
CUT = 1_000_000
"""Bytes of a work request, far below what Soft-RoCE takes, so that the suite also sees transfers that are cut."""
SUITE_SECONDS = 400
RANK = Path(__file__).with_name("verbs_rank.py")
RANK_SECONDS = 120
RESENT = ("duplicate_request", "out_of_seq_request", "rcvd_seq_err", "completer_retry_err")


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


@pytest.fixture(scope="module")
def code(shared):
    """The code, where both guests of `pair` see it."""
    root = Path(__file__).parents[2]
    for package in ("emulation", "engines", "harness"):
        shutil.copytree(root / package, shared / "code" / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(RANK, shared / "code" / RANK.name)
    return "/share/code"


def ranks(pair, shared, code, name, *arguments):
    """What the two ranks said, rank r in guest r; the ends of their processes."""
    (shared / name).mkdir()
    # A guest's own PYTHONPATH leads to its packages.
    script = f'PYTHONPATH="{code}:$PYTHONPATH" exec python3 {code}/{RANK.name} "$@"'

    def run(number):
        command = ["bash", "-c", script, "rank", str(number), f"/share/{name}", *map(str, arguments)]
        return pair[number].run(command, timeout=RANK_SECONDS, environment={"PYTHONDONTWRITEBYTECODE": "1"})

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, range(2)))


def test_bytes_between_hosts_are_intact_where_packets_are_lost_and_late(pair, shared, code):
    pair.set_wire(Wire(loss=0.01, delay=0.005))
    try:
        ends = ranks(pair, shared, code, "lossy", 8)
    finally:
        pair.set_wire(Wire())
    assert [end.code for end in ends] == [0, 0], [end.errors for end in ends]
    sender, receiver = (json.loads(end.output) for end in ends)
    assert (sender["statuses"], receiver["intact"]) == (["success"] * 8, 8)
    sent_again = sum(end["wire"][name] for end in (sender, receiver) for name in RESENT)
    assert sent_again > 0, (sender["wire"], receiver["wire"])


def test_a_rank_that_is_killed_on_another_host_is_found_out(pair, shared, code):
    sender, victim = ranks(pair, shared, code, "killed", 8, 3)
    assert victim.code == -9
    assert sender.code == 0, sender.errors
    said = json.loads(sender.output)
    # The write was acknowledged by the adapter before its rank died; what shows the death is the next look.
    assert said["statuses"] == ["success"] * 4 + ["peer is gone"]
    assert said["seconds"] < 30
