from dataclasses import replace

import pytest

from emulation.softroce import Wire
from harness.backends import wires
from harness.backends.base import Capabilities, lacks
from harness.errors import EnvironmentLacks
from harness.hardware import load_profile

LOSS = {"kind": "loss", "link": "rdma", "p": 0.5}
LATE = {"kind": "extra-latency", "link": "rdma", "latency": "2 ms"}
SLOW = {"kind": "slow-link", "link": "rdma", "factor": 0.5}
LINK_RATE = load_profile("softroce-2").fabric.links[0].rate.value
"""Bytes per second."""


def between(*faults, profile="softroce-2"):
    return wires.between(load_profile(profile), faults)


def test_without_faults_the_wire_is_plain():
    assert between() == (Wire(), Wire())


@pytest.mark.parametrize(
    ("faults", "wire"),
    [
        ([LOSS], Wire(loss=0.5)),
        ([LOSS, LOSS], Wire(loss=0.75)),
        ([LATE, LATE], Wire(delay=0.004)),
        ([SLOW], Wire(rate=LINK_RATE * 8 / 2)),
        ([SLOW, LOSS, SLOW, LATE], Wire(loss=0.5, delay=0.002, rate=LINK_RATE * 8 / 4)),
    ],
    ids=["loss", "losses", "latencies", "slow", "all"],
)
def test_a_fault_of_the_link_is_on_the_wire_of_both_guests(faults, wire):
    assert between(*faults) == (wire, wire)


@pytest.mark.parametrize("name", ["network", "host?/nic0>host?/nic0", "rdma"])
def test_the_wire_is_named_as_the_profile_names_it(name):
    assert between({**LOSS, "link": name}) == (Wire(loss=0.5), Wire(loss=0.5))


def test_one_direction_is_the_wire_of_the_guest_that_sends():
    assert between({**LOSS, "link": "host1/nic0>host0/nic0"}) == (Wire(), Wire(loss=0.5))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({**LATE, "jitter": "1 ms"}, "without reordering"),
        ({**SLOW, "from": "1 s"}, "for the whole trial"),
        ({**SLOW, "to": "1 s"}, "for the whole trial"),
        ({**LOSS, "link": "pcie"}, "on their network alone"),
        ({**LOSS, "link": "host0/nic0"}, "on their network alone"),
        ({"kind": "jitter", "sigma": 0.1}, "cannot be given 'jitter'"),
    ],
    ids=["jitter", "from", "to", "inside", "port", "kind"],
)
def test_what_netem_cannot_do_is_refused(fault, said):
    with pytest.raises(EnvironmentLacks, match=said):
        between(fault)


def test_a_guest_treats_all_its_peers_alike():
    assert len(between(LOSS, profile="softroce-2@3")) == 3
    with pytest.raises(EnvironmentLacks, match="treats all its peers alike"):
        between({**LOSS, "link": "host0/nic0>host1/nic0"}, profile="softroce-2@3")


def test_a_backend_says_which_faults_it_can_bring_about(make_trial):
    trial = replace(make_trial(), faults=[LOSS, {"kind": "link-down"}])
    assert lacks(trial, Capabilities(faults=wires.KINDS)) == (
        "faults: needs link-down, which only an emulated cluster can be given; here only extra-latency, loss, slow-link"
    )
    assert lacks(trial, Capabilities()) == "faults: needs loss, link-down, which only an emulated cluster can be given"
    assert lacks(replace(trial, faults=[LOSS]), Capabilities(faults=wires.KINDS)) == ""
