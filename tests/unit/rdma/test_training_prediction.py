"""Predicted training steps: what must hold whatever the profile's figures are."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from emulation.evaluate import simulate
from emulation.graph import Workload
from engines.rdma.spec import Spec
from engines.rdma.training import costs, prediction
from engines.rdma.training.plan import Job
from engines.rdma.training.settings import Training
from harness.api import EnvironmentLacks, Repeat
from harness.hardware import load_profile


@dataclass
class Context:
    profile: object
    repeat: Repeat = field(default_factory=Repeat)

    def simulate(self, workload, *, name=""):
        return simulate(workload, self.profile, seed=0)


def predict(transports, profile="rdma-100g-cluster", **fields):
    training = Training(**{"model": "lstm", "size": "full", "batch": 32, "steps": 2, **fields})
    found = prediction.predict(Job(training, transports), Context(load_profile(profile)))
    return {(m.name, m.labels["transport"]): m.values()[0] for m in found}


def test_one_sided_writes_are_predicted_to_beat_copies_and_calls():
    found = predict(("zero-copy", "copy", "rpc-over-rdma", "grpc"))
    zero, copy, rpc, grpc = (found["train_step_time", t] for t in ("zero-copy", "copy", "rpc-over-rdma", "grpc"))
    assert zero < copy < min(rpc, grpc)
    assert found["copies_per_edge", "zero-copy"] == 0
    assert found["copies_per_edge", "copy"] == 1


def test_a_prediction_is_the_same_again():
    assert predict(("zero-copy",)) == predict(("zero-copy",))


def test_a_step_takes_no_less_than_its_computing_and_its_bytes():
    workers, seconds = 4, 0.5
    found = predict(("zero-copy",), workers=workers, compute=f"{seconds} s")
    # every worker's parameters leave by the server's one link
    wire = workers * costs.load("lstm", "full").nbytes / 12.5e9
    assert found["train_step_time", "zero-copy"] > seconds + wire
    assert found["communication_time", "zero-copy"] == pytest.approx(found["train_step_time", "zero-copy"] - seconds)


def test_more_workers_on_one_server_are_less_efficient_and_a_ring_scales_better():
    served = [predict(("zero-copy",), workers=n)["scaling_efficiency", "zero-copy"] for n in (2, 4, 8)]
    assert 1 > served[0] > served[1] > served[2] > 0
    ring = predict(("zero-copy",), workers=8, algorithm="ring")["scaling_efficiency", "zero-copy"]
    assert ring > served[2]


def test_transports_without_a_model_are_named():
    with pytest.raises(EnvironmentLacks, match="no cost model for gloo"):
        predict(("gloo",), algorithm="ring")


def test_a_spliced_graph_comes_after_what_it_should_and_keeps_its_own_order():
    work, part = Workload(), Workload()
    first = work.host("host0/cpu", 1.0, stream="a")
    one = part.host("host0/cpu", 1.0)
    part.host("host0/cpu", 1.0)
    part.transfer("host0/cpu", "host1/cpu", 8, after=[one])
    ends = prediction.splice(work, part, [first], label="edge")
    before = work.predecessors()
    assert [before[node] for node in (1, 2, 3)] == [[0], [1], [1]]
    assert ends == [2, 3]
    assert work.nodes[1].stream == "edge: main"


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"transports": ["gloo"]}, "algorithm 'parameter-server' does not train over 'gloo'"),
        ({"training": {"model": "lstm", "algorithm": "ring"}, "transports": ["grpc"]}, "'ring' does not train"),
        ({"models": ["lstm"]}, "'models' beside `training`"),
        ({"placement": "dynamic"}, "static shapes"),
        ({"training": {"model": "lstm", "steps": 3, "convergence": {"target_loss": 1}}}, "window of 10 steps"),
    ],
)
def test_what_does_not_fit_together_is_refused(fields, what):
    spec = Spec(**{"name": "rdma", "transports": ["zero-copy"], "training": {"model": "lstm"}, **fields})
    assert any(what in problem.what for problem in spec.check()), list(spec.check())


def test_a_server_is_a_rank_more():
    ranks = [Training(model="lstm", workers=3, algorithm=name).ranks for name in ("parameter-server", "ring")]
    assert ranks == [4, 3]
