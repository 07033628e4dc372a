"""Plans replayed over simulated adapters, beside the flow-level models of the same transports."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from emulation.evaluate import simulate
from emulation.profile import Profile
from engines.rdma import replay
from engines.rdma.executor import Executor, interleave
from engines.rdma.lowering import Lowering
from engines.rdma.production import Producer
from engines.rdma.providers.sim.adapter import Adapter
from engines.rdma.providers.sim.cluster import Cluster
from engines.rdma.providers.sim.fabric import Fabric, Wire
from engines.rdma.spec import Spec
from engines.rdma.tensors import Payload, Tensor
from engines.rdma.transports import ON_DEVICE, capacity, receiving_end, sending_end
from engines.rdma.transports.base import Setting
from harness.api import EnvironmentLacks, HarnessError, Plan, Repeat

HARDWARE = Path(__file__).parents[3] / "specs" / "hardware"


def profile_of(name, hosts=0):
    value = yaml.safe_load((HARDWARE / f"{name}.yaml").read_text(encoding="utf-8"))
    if hosts:
        value["hosts"][0]["count"] = hosts
    return Profile.model_validate(value)


@pytest.fixture(scope="module")
def pair():
    return profile_of("rdma-100g-pair")


def payload_of(*sizes):
    tensors = tuple(Tensor(f"t{n}", (size // 4,), "float32") for n, size in enumerate(sizes))
    return Payload(f"{len(sizes)} tensors of {sum(sizes)} B", tensors)


def step(pair, transport, payload, *, placement="static", signal="auto", wire=None):
    cluster = Cluster(pair, 2)
    fabric = Fabric(wire or Wire(cluster.propagation), timeline=True)
    found = replay.replay(transport, payload, Setting((payload,), placement, signal), cluster, fabric)
    return found, fabric


TRANSPORTS = [("zero-copy", "static"), ("zero-copy", "dynamic"), ("copy", "static"), ("copy", "dynamic"),
              ("request-driven", "static")]  # fmt: skip


MANY = (2**22, 4096, 2**20, 64, 2**21)


@pytest.mark.parametrize(("transport", "placement"), TRANSPORTS)
@pytest.mark.parametrize(("sizes", "within"), [((1024,), 0.06), ((2**20,), 0.02)])
def test_steps_take_what_the_flow_level_model_says(pair, transport, placement, sizes, within):
    """Two models of one machine, made independently: packets and queues here, fluid flows there."""
    payload = payload_of(*sizes)
    model = simulate(Lowering(pair).step(transport, payload, placement), pair, seed=0)
    found, _ = step(pair, transport, payload, placement=placement)
    assert found.seconds == pytest.approx(model.seconds, rel=within)


@pytest.mark.parametrize("transport", ["zero-copy", "copy", "request-driven"])
def test_so_do_steps_of_many_tensors(pair, transport):
    payload = payload_of(*MANY)
    model = simulate(Lowering(pair).step(transport, payload, "static"), pair, seed=0)
    found, _ = step(pair, transport, payload)
    assert found.seconds == pytest.approx(model.seconds, rel=0.02)


@pytest.mark.parametrize(("transport", "copied"), [("zero-copy", 0), ("copy", MANY[0])])
def test_tensors_placed_dynamically_keep_the_wire_busy_from_the_first_one_on(pair, transport, copied):
    """The rest is copied while the first is under way, and small tensors do not hold it up."""
    costs = Cluster(pair, 2).costs[0]
    found, _ = step(pair, transport, payload_of(*MANY), placement="dynamic")
    least = copied / costs.memcpy(copied) + sum(MANY) / costs.wire_rate
    assert least < found.seconds < least + 25e-6


@pytest.mark.parametrize("signal", ["tail", "imm", "debug"])
def test_every_signal_mode_moves_every_byte(pair, signal):
    found, _ = step(pair, "zero-copy", payload_of(2**18, 12, 2**16), signal=signal)
    assert found.seconds > 0


@pytest.mark.parametrize("transport", ON_DEVICE)
def test_payload_copies_are_counted_on_both_ranks(pair, transport):
    payload = payload_of(2**16, 2**17)
    found, _ = step(pair, transport, payload)
    expected = {"zero-copy": 0, "copy": 1, "request-driven": 0, "rpc-over-rdma": 8}[transport]
    assert found.copied == expected * payload.nbytes


@pytest.mark.parametrize("transport", ON_DEVICE)
def test_a_lossy_or_adaptive_fabric_costs_time_and_no_byte(pair, transport):
    payload = payload_of(2**21, 2**20)
    plain, _ = step(pair, transport, payload)
    lossy, _ = step(pair, transport, payload, wire=Wire(loss=0.01))
    step(pair, transport, payload, wire=Wire(reorder=0.1))
    assert lossy.seconds > plain.seconds


def test_equal_seeds_replay_equally(pair):
    payload = payload_of(2**20)
    found = [step(pair, "zero-copy", payload, wire=Wire(loss=0.02))[0] for _ in range(2)]
    assert found[0] == found[1]


def test_a_wrong_byte_is_found(pair, monkeypatch):
    write = Adapter._write

    def wrong(self, entry, address, data, ends):
        flipped = data[:100] + bytes([data[100] ^ 1]) + data[101:] if len(data) > 4096 else data
        write(self, entry, address, flipped, ends)

    monkeypatch.setattr(Adapter, "_write", wrong)
    with pytest.raises(HarnessError, match="offset 100 of"):
        step(pair, "zero-copy", payload_of(2**15))


@dataclass
class Context:
    """Of an emulated run, as far as a prediction uses it."""

    profile: Profile
    artifacts: Path
    repeat: Repeat

    def simulate(self, workload, *, name=""):
        return simulate(workload, self.profile, seed=0)


def plan_of(*transports, sizes=("1 MiB",)):
    from engines.rdma.engine import ENGINE

    spec = Spec(name="rdma", transports=list(transports), sizes=list(sizes))
    plan = ENGINE.plan(spec, profile_of("rdma-100g-pair"))
    return Plan(plan.payload)


def test_a_prediction_has_the_metrics_of_a_run_and_leaves_timelines(pair, tmp_path):
    context = Context(pair, tmp_path, Repeat())
    found = list(replay.predict(plan_of("zero-copy", "grpc", "copy"), context))

    metrics = {metric.name: metric for metric in Spec.METRICS}
    assert not [problem for one in found if (problem := one.problem(metrics))]
    times = {one.labels["transport"]: one for one in found if one.name == "step_time"}
    assert set(times) == {"zero-copy", "grpc", "copy"}
    assert times["zero-copy"].samples < times["copy"].samples < times["grpc"].samples
    for one in times.values():
        low, high = one.band
        assert low < one.samples < high
    assert sum(one.name == "memcpy_bandwidth" for one in found) == 1
    copies = {one.labels["transport"]: one.samples for one in found if one.name == "copies"}
    assert (copies["zero-copy"], copies["copy"]) == (0, 1)
    trace = json.loads((tmp_path / "zero-copy-1-MiB-sim.trace.json").read_text())
    names = {event["args"]["name"] for event in trace["traceEvents"] if event["name"] == "thread_name"}
    assert {"processor", "wire", "memory", "acknowledgements"} <= names


def test_without_other_transports_the_bound_is_predicted_all_the_same(pair, tmp_path):
    found = list(replay.predict(plan_of("zero-copy"), Context(pair, tmp_path, Repeat())))
    assert sum(one.name == "memcpy_bandwidth" for one in found) == 1


def test_what_has_neither_adapter_nor_model_is_named_and_left_out(pair, tmp_path, capsys):
    found = list(replay.predict(plan_of("zero-copy", "gloo"), Context(pair, tmp_path, Repeat())))
    assert {one.labels.get("transport", "zero-copy") for one in found} == {"zero-copy"}
    assert "gloo" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "why"), [("laptop", "has 1 host"), ("ethernet-10g-pair", "no one-sided writes")])
def test_hosts_without_adapters_cannot_be_replayed(tmp_path, name, why):
    with pytest.raises(EnvironmentLacks, match=why):
        list(replay.predict(plan_of("zero-copy"), Context(profile_of(name), tmp_path, Repeat())))


def test_every_worker_of_a_parameter_server_waits_for_the_servers_port():
    """Workers that send to one host at once get its port in turns, and all of them the whole of their own."""
    profile = profile_of("rdma-100g-pair", hosts=4)
    workers, payload = 3, payload_of(2**21, 2**20)
    setting = Setting((payload,))
    times = {}
    for grain in ("auto", "burst"):
        cluster = Cluster(profile, 1 + workers)
        fabric = Fabric(Wire(cluster.propagation), grain=grain)
        sizes = [workers * capacity(["zero-copy"], setting, rank=1)]
        sizes += [capacity(["zero-copy"], setting, rank=0)] * workers
        server, *others = cluster.open(sizes, fabric)
        executors = [Executor(device, timeout=60.0) for device in (server, *others)]
        for executor, device in zip(executors[1:], others, strict=True):
            sender, receiver = sending_end("zero-copy", device, setting), receiving_end("zero-copy", server, setting)
            sources = Producer(device, setting).sources(payload)
            sender.channel.connect(receiver.channel.address())
            receiver.channel.connect(sender.channel.address())
            offers = sender.offer(payload, sources), receiver.offer(payload)
            sender.accept(offers[1])
            receiver.accept(offers[0])
            executor.submit(sender.step_operation(1))
            executors[0].submit(receiver.step_operation(1))
        start = max(device.clock() for device in (server, *others))
        for device in (server, *others):
            device.wait_until(start)
        interleave(executors)
        times[grain] = server.clock() - start
    least = workers * payload.nbytes / Cluster(profile, 2).costs[0].wire_rate
    for seconds in times.values():
        assert least < seconds < 1.1 * least
    assert times["auto"] == pytest.approx(times["burst"], rel=0.03)
