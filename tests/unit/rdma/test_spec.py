"""The engine's fields, its plan, and what it predicts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from emulation.evaluate import simulate
from emulation.profile import Profile
from engines.rdma import models
from engines.rdma.engine import ENGINE
from engines.rdma.spec import Spec
from engines.rdma.tensors import Payload, Tensor, fill, first_difference
from harness.api import EnvironmentLacks, Repeat

HARDWARE = Path(__file__).parents[3] / "specs" / "hardware"


def profile(name):
    return Profile.model_validate(yaml.safe_load((HARDWARE / f"{name}.yaml").read_text()))


class Emulation:
    repeat = Repeat()

    def __init__(self, name):
        self.profile = profile(name)

    def simulate(self, workload, *, name=""):
        return simulate(workload, self.profile, seed=0)


def predicted(name, **fields):
    plan = ENGINE.plan(Spec(name="rdma", **fields), None)
    found = {}
    for m in ENGINE.predict(plan, Emulation(name)):
        assert not m.problem({metric.name: metric for metric in ENGINE.metrics()})
        found[m.name, m.labels.get("transport", ""), m.labels["payload"]] = m
    return found


MISTAKES = {
    "nothing to move": ({}, ("models",), "nothing to move"),
    "twice": (
        {"transports": ["zero-copy", "zero-copy"], "sizes": ["1 KiB"]},
        ("transports", 1),
        "'zero-copy' stands twice",
    ),
    "equal sizes": ({"sizes": ["1 KiB", "1024 B"]}, ("sizes", 1), "'1 KiB' stands twice"),
    "half an element": ({"sizes": ["6 B"]}, ("sizes", 0), "not a whole number of float32 elements"),
    "zero": ({"sizes": ["0 B"]}, ("sizes", 0), "cannot be moved by every transport"),
    "too large": ({"sizes": ["4 KiB", "2 GiB"]}, ("sizes", 1), "cannot be moved by every transport"),
}


@pytest.mark.parametrize(("fields", "path", "what"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_across_fields_is_found_at_its_place(fields, path, what):
    problems = list(Spec(name="rdma", **fields).check())
    assert [problem.path for problem in problems] == [path]
    assert what in problems[0].what


def test_a_good_spec_has_no_problem_and_two_ranks():
    spec = Spec(name="rdma", models=["bert-base"], sizes=["1 KiB", "1 GiB"])
    assert list(spec.check()) == []
    assert spec.ranks() == 2


@pytest.mark.parametrize(
    "fields",
    [
        {"transports": ["rdma"]},
        {"models": ["bert"]},
        {"sizes": [4]},
        {"dtype": "fp8"},
        {"allocator": "none"},
        {"transports": ["shm"]},
        {"provider": "rxe"},
        {"placement": "automatic"},
        {"signal": "flag"},
    ],
)
def test_unknown_choices_are_refused(fields):
    with pytest.raises(ValidationError):
        Spec(name="rdma", **fields)


def test_the_spec_is_light_to_import():
    heavy = "{'numpy', 'torch', 'grpc', 'google.protobuf', 'simpy'} & set(sys.modules)"
    code = f"import sys, engines.rdma.spec; sys.exit(str({heavy}) if {heavy} else 0)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_plan_is_json_and_its_digest_depends_on_nothing_but_the_spec():
    plan = ENGINE.plan(Spec(name="rdma", models=["lstm-seq2seq"], sizes=["64 MiB"]), None)
    assert json.loads(json.dumps(plan.payload)) == plan.payload
    assert plan.digest == "487ae310e78b8670dc08ce28332e07732588b4bbb7ccecdf79276bc3601a74dc"


@pytest.mark.parametrize(
    ("model", "tensors", "parameters"),
    [
        ("resnet-50", 161, 25_557_032),
        ("bert-base", 199, 109_482_240),
        ("gpt2-small", 148, 124_439_808),
        ("lstm-seq2seq", 32, 66_772_736),
    ],
)
def test_models_have_the_parameters_their_papers_count(model, tensors, parameters):
    payload = models.load(model)
    assert len(payload.tensors) == tensors
    assert payload.nbytes == 4 * parameters


def test_contents_depend_on_seed_payload_and_tensor_and_on_nothing_else():
    def made(**change):
        target = np.zeros(100_003, np.uint8)
        fill(target, **{"seed": 1, "payload": "p", "index": 0, **change})
        return target

    assert np.array_equal(made(), made())
    others = [made(seed=2), made(payload="q"), made(index=1)]
    assert all((other != made()).mean() > 0.9 for other in others)


@pytest.mark.parametrize("at", [0, 1, 8, 99])
def test_the_first_difference_is_found(at):
    good = np.arange(100, dtype=np.uint8)
    bad = good.copy()
    bad[at:] ^= 1
    assert first_difference(bad, good) == at
    assert first_difference(good, good.copy()) is None
    assert first_difference(good[:at], good) == at


def test_payloads_survive_a_plan():
    payload = Payload("p", (Tensor("a", (2, 3), "float16"), Tensor("b", (), "int64")))
    assert Payload.from_json(json.loads(json.dumps(payload.to_json()))) == payload
    assert payload.nbytes == 20


@pytest.mark.parametrize("name", ["laptop", "rdma-100g-pair"])
def test_a_prediction_orders_the_transports_as_the_paper_does_and_repeats_exactly(name):
    fields = {"models": ["resnet-50"], "sizes": ["1 KiB", "64 MiB"]}
    first, second = predicted(name, **fields), predicted(name, **fields)
    assert {k: (m.values(), m.band) for k, m in first.items()} == {k: (m.values(), m.band) for k, m in second.items()}
    for payload in ("resnet-50", "1 KiB", "64 MiB"):
        times = [first["step_time", t, payload].values()[0] for t in ("zero-copy", "tcp", "grpc-stream", "grpc")]
        assert times == sorted(times)
        for transport in ("zero-copy", "tcp", "grpc-stream", "grpc"):
            low, high = first["step_time", transport, payload].band
            assert low <= first["step_time", transport, payload].values()[0] <= high


def test_a_prediction_has_the_metrics_of_a_run():
    found = predicted("laptop", sizes=["1 MiB"])
    names = {name for name, _, _ in found}
    assert names == {metric.name for metric in ENGINE.metrics() if "payload" in metric.labels}
    assert found["copies", "zero-copy", "1 MiB"].values() == (0.0,)
    assert found["copies", "grpc", "1 MiB"].values() == (5.0,)


OURS = ["zero-copy", "request-driven", "copy", "rpc-over-rdma"]


@pytest.mark.parametrize("name", ["laptop", "rdma-100g-pair", "softroce-2"])
def test_every_transport_over_a_device_is_predicted_and_copies_cost_time(name):
    found = predicted(name, transports=OURS, sizes=["64 MiB"])
    times = [found["step_time", transport, "64 MiB"].values()[0] for transport in OURS]
    assert times == sorted(times)
    assert [found["copies", t, "64 MiB"].values()[0] for t in OURS] == [0, 0, 1, 8]


@pytest.mark.parametrize("name", ["laptop", "rdma-100g-pair"])
def test_not_knowing_the_shape_costs_messages_but_no_copy(name):
    static = predicted(name, transports=["zero-copy"], sizes=["1 KiB", "64 MiB"])
    dynamic = predicted(name, transports=["zero-copy"], sizes=["1 KiB", "64 MiB"], placement="dynamic")
    small, large = ("step_time", "zero-copy", "1 KiB"), ("step_time", "zero-copy", "64 MiB")
    assert dynamic[small].values()[0] > 1.4 * static[small].values()[0]
    assert dynamic[large].values()[0] == pytest.approx(static[large].values()[0], rel=0.05)


def test_a_transport_without_a_cost_model_is_named_and_left_out(capsys):
    found = predicted("laptop", transports=["zero-copy", "nixl", "gloo"], sizes=["1 KiB"])
    assert {transport for _, transport, _ in found} == {"", "zero-copy"}
    assert capsys.readouterr().err == "not predicted, for want of a cost model: nixl, gloo\n"


def test_nothing_to_predict_is_refused():
    with pytest.raises(EnvironmentLacks, match="no cost model for nixl; a prediction needs one of zero-copy, copy"):
        predicted("laptop", transports=["nixl"], sizes=["1 KiB"])


def test_the_provider_is_no_part_of_the_plan_but_is_handed_on():
    plans = [ENGINE.plan(Spec(name="rdma", sizes=["1 KiB"], provider=p), None) for p in ("auto", "shm", "verbs")]
    assert len({plan.digest for plan in plans}) == 1
    assert [plan.provider for plan in plans] == ["auto", "shm", "verbs"]


@pytest.mark.parametrize("change", [{"placement": "dynamic"}, {"signal": "imm"}])
def test_what_goes_over_the_wire_is_part_of_the_plan(change):
    plain, other = (ENGINE.plan(Spec(name="rdma", sizes=["1 KiB"], **fields), None) for fields in ({}, change))
    assert plain.digest != other.digest


def test_a_single_write_costs_post_copy_poll_and_the_same_back():
    software = profile("laptop").hosts[0].software
    one, size = software.one_sided, 64 * 2**20
    copy = (size + 8) / software.memcpy.rate(size)
    tiny = 8 / software.memcpy.rate(8)
    expected = 2 * (one.post.value + one.completion.value) + copy + tiny
    found = predicted("laptop", transports=["zero-copy"], sizes=["64 MiB"])[
        "step_time", "zero-copy", "64 MiB"
    ].values()[0]
    assert found == pytest.approx(expected, rel=0.05)


def test_one_sided_writes_never_beat_the_link():
    found = predicted("rdma-100g-pair", transports=["zero-copy"], sizes=["256 MiB"])
    assert found["bandwidth", "zero-copy", "256 MiB"].values()[0] < 12.5e9


def test_hosts_without_one_sided_writes_are_refused_with_a_way_out():
    with pytest.raises(
        EnvironmentLacks, match=r"'ethernet-10g-pair' has no one-sided writes; leave the transports over a device out"
    ):
        predicted("ethernet-10g-pair", sizes=["1 KiB"])
    assert predicted("ethernet-10g-pair", transports=["grpc", "tcp"], sizes=["1 KiB"])
