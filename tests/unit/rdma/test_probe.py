"""The figures derived from two measured sizes are those that the cost models turn into these sizes' times."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from emulation.evaluate import simulate
from emulation.profile import Profile
from engines.rdma.engine import ENGINE
from engines.rdma.probe import NEEDED, Points, Unsolvable, figures, read
from engines.rdma.spec import Spec
from harness.api import Repeat

HARDWARE = Path(__file__).parents[3] / "specs" / "hardware"
SIZES = ["3 KiB", "24 MiB"]


class Emulation:
    repeat = Repeat()

    def __init__(self, profile):
        self.profile = profile

    def simulate(self, workload, *, name=""):
        return simulate(workload, self.profile, seed=0)


def written(name):
    return yaml.safe_load((HARDWARE / f"{name}.yaml").read_text())


def predicted(profile):
    """The record that a run of the calibration spec would leave if the cost models were the machine."""
    plan = ENGINE.plan(Spec(name="rdma", transports=list(NEEDED), sizes=SIZES), None)
    found = ENGINE.predict(plan, Emulation(profile))
    return {"values": [{"name": m.name, "labels": m.labels, "samples": m.values()} for m in found]}


def software(profile):
    costs = profile.hosts[0].software
    return {
        "one_sided.post": costs.one_sided.post.value,
        "one_sided.completion": costs.one_sided.completion.value,
        "tcp.per_message": costs.tcp.per_message.value,
        "tcp.stream": costs.tcp.stream.value,
        "rpc.per_call": costs.rpc.per_call.value,
        "rpc.stream_message": costs.rpc.stream_message.value,
        "rpc.serialise": costs.rpc.serialise.value,
        "rpc.stream": costs.rpc.stream.value,
    }


def test_on_one_host_the_models_give_back_what_they_were_made_of():
    profile = Profile.model_validate(written("laptop"))
    found = figures(read(predicted(profile)), between_hosts=False)
    assert found == pytest.approx(software(profile), rel=0.05)


def test_between_hosts_the_wire_is_found_too():
    value = written("rdma-100g-pair")
    for link in (value["hosts"][0]["links"][0], value["fabric"]["links"][0]):
        link["latency"]["value"] = "0 s"
    profile = Profile.model_validate(value)
    found = figures(read(predicted(profile)), between_hosts=True)
    # Of the link's 12.5 GB/s, headers leave 96 %; the probe sees what is left.
    assert found.pop("link.rate") == pytest.approx(12e9, rel=0.05)
    assert found.pop("memcpy") == pytest.approx(10e9, rel=0.05)
    assert found == pytest.approx(software(profile), rel=0.05)


def test_a_record_is_read_by_its_medians():
    values = [
        {"name": "step_time", "labels": {"transport": t, "payload": p}, "samples": [s, s / 2, s * 9]}
        for t in NEEDED
        for p, s in (("3 KiB", 1e-3), ("24 MiB", 1.0))
    ]
    values += [
        {"name": "memcpy_bandwidth", "labels": {"payload": p}, "samples": [5.0, 7.0, 6.0]} for p in ("3 KiB", "24 MiB")
    ]
    points = read({"values": [*values, {"name": "copies", "labels": {}, "samples": [0]}]})
    assert (points.small, points.large) == (3072, 24 * 2**20)
    assert set(points.steps.values()) == {1e-3, 1.0}
    assert points.copied == {points.small: 6.0, points.large: 6.0}


@pytest.mark.parametrize("left_out", ["24 MiB", "grpc"])
def test_a_record_that_lacks_a_point_is_refused(left_out):
    record = predicted(Profile.model_validate(written("laptop")))
    record["values"] = [v for v in record["values"] if left_out not in v["labels"].values()]
    with pytest.raises(Unsolvable, match="a probe needs two sizes and the transports zero-copy, rpc-over-rdma"):
        read(record)


def test_times_that_no_figures_explain_are_refused():
    steps = {(name, size): 1e-3 for name in NEEDED for size in (3072, 2**20)}
    with pytest.raises(Unsolvable, match=r"does not fit the cost models: .*tcp\.stream.* would be negative"):
        figures(Points(3072, 2**20, steps | {("tcp", 2**20): 0.5e-3}, {3072: 1e9, 2**20: 1e9}), between_hosts=False)
