"""What must hold for every collective, on every topology and at every size."""

import math
from collections import Counter
from functools import cache
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulation.cost.collectives import bus_factor, collective, idle_time
from emulation.evaluate import simulate
from emulation.graph import Workload
from emulation.profile import Profile
from emulation.topology import Topology
from harness.hardware import load_profile

quickly = settings(deadline=None, max_examples=40)
WIRE = {
    "rate": {"value": "10 GB/s", "grade": "measured", "source": "test"},
    "latency": {"value": "1 us", "grade": "measured", "source": "test"},
}
FABRICS = {
    "flat": {"kind": "flat"},
    "leaf-spine-6to1": {"kind": "leaf-spine", "leaf_ports": 6, "oversubscription": 6},
    "rails": {"kind": "fat-tree", "leaf_ports": 2, "rails": True},
    "fat-tree-3": {"kind": "fat-tree", "leaf_ports": 2, "levels": 3, "pod_leaves": 4, "rails": True},
    "torus": {"kind": "torus", "shape": [2, 2]},
}
INSIDE = ("nvswitch", "ring", "cube-mesh", "pcie-tree")
OPS = ("all-reduce", "reduce-scatter", "all-gather", "broadcast", "reduce", "all-to-all")
ALGORITHMS = ("ring", "tree", "binary-tree", "halving-doubling", "two-level", "nvls")
GPUS, HOSTS = 8, 4


def _links(inside):
    link = {"kind": "nvlink", **WIRE}
    tree = [
        {**link, "name": "bridge", "kind": "pcie", "ends": ["gpu", "bridge"], "pairing": "block"},
        {**link, "name": "pcie", "kind": "pcie", "ends": ["bridge", "cpu"]},
        {**link, "name": "nic", "kind": "pcie", "ends": ["nic", "bridge"], "pairing": "block"},
    ]
    nvlink = {
        "nvswitch": [{**link, "name": "nvlink", "ends": ["gpu", "nvswitch"]}],
        "pcie-tree": [],
    }
    return nvlink.get(inside, [{**link, "name": "nvlink", "ends": ["gpu", "gpu"], "pairing": inside}]) + tree


@pytest.fixture(scope="module")
def build(document):
    @cache
    def make(fabric, inside, algorithm="", rate="10 GB/s", seed=0, free=False, scale=1.0):
        made = document(gpus=GPUS, hosts=HOSTS, scale=scale)
        host = made["hosts"][0]
        host["switches"] = [{"name": "bridge", "count": 2}, *([{"name": "nvswitch"}] if inside == "nvswitch" else [])]
        host["nics"][0]["count"] = 2
        host["links"] = _links(inside)
        made["fabric"] = {"topology": {**FABRICS[fabric], "link": dict(WIRE)}}
        option = made["collectives"][0]
        if free:
            option = {**option, "base": "0 s", "step": dict.fromkeys(option["step"], "0 s")}
        names = [algorithm] if algorithm else ALGORITHMS
        made["collectives"] = [{**option, "name": name, "algorithm": name} for name in names]
        made = _with_rate(made, rate)
        return Profile.model_validate(made)

    return make


def _with_rate(value, rate):
    """The document with every link at this rate."""
    if isinstance(value, list):
        return [_with_rate(item, rate) for item in value]
    if isinstance(value, dict):
        return {
            key: {**item, "value": rate} if key == "rate" else _with_rate(item, rate) for key, item in value.items()
        }
    return value


def _group(hosts, gpus):
    return [f"host{h}/gpu{g}" for h in range(hosts) for g in range(gpus)]


def _offers(profile, op, group, nbytes, seed=0):
    """The cost by every algorithm that can do it."""
    topology = Topology(profile, seed)
    work = Workload()
    work.collective(op, group, nbytes)
    for option in profile.collectives:
        alone = profile.model_copy(update={"collectives": [option]})
        topology.profile = alone
        try:
            yield option.name, collective(work.nodes[0], topology), topology
        except ValueError:
            continue


groups = st.tuples(st.integers(1, HOSTS), st.integers(1, GPUS)).filter(lambda shape: math.prod(shape) > 1)


everywhere = pytest.mark.parametrize(("fabric", "inside"), list(product(FABRICS, INSIDE)))
SHAPES = [(1, 2), (2, 1), (1, 3), (1, 8), (2, 2), (3, 5), (4, 1), (4, 8)]


def _every_offer(profile, nbytes, seed=0):
    for op, shape in product(OPS, SHAPES):
        for name, cost, topology in _offers(profile, op, _group(*shape), nbytes, seed):
            yield op, name, _group(*shape), cost, topology


@everywhere
@pytest.mark.parametrize("nbytes", [10, 10**6, 10**10])
def test_busbw_never_exceeds_the_links_of_a_rank(build, fabric, inside, nbytes):
    for op, name, group, cost, topology in _every_offer(build(fabric, inside), nbytes):
        size = len(group)
        out, into = Counter(), Counter()
        for number, _ in cost.weights:
            left, right = topology.links[number].name.split(">")
            out[left] += topology.links[number].capacity
            into[right] += topology.links[number].capacity
        # Links of a rank on average: the leaves of a tree have less to send than its root, on fewer links.
        used = [[side[rank] for rank in group if side[rank]] for side in (out, into)]
        rate = max(sum(side) / len(side) for side in used)
        busbw = nbytes / idle_time(cost) * bus_factor(op, size)
        # A switch that adds sends each byte on once: a rank's links carry (n+1)/n S and not 2(n-1)/n S.
        gain = 2 * (size - 1) / (size + 1) if name == "nvls" else 1
        assert busbw <= gain * rate * (1 + 1e-9), (op, name, group)


@everywhere
def test_bytes_that_leave_ranks_are_the_closed_form(build, fabric, inside):
    nbytes = 10**6
    for op, name, group, cost, topology in _every_offer(build(fabric, inside), nbytes, seed=1):
        size = len(group)
        rounds = math.log2(size)
        sent, received = Counter(), Counter()
        for number, amount in cost.traffic:
            left, right = topology.links[number].name.split(">")
            sent[left] += amount
            received[right] += amount
        passes = 2 if op == "all-reduce" else 1
        each = {
            "ring": bus_factor(op, size),
            "halving-doubling": passes * (1 - 1 / 2**rounds),
            "two-level": passes * (1 - 1 / size),
            "tree": passes * (size - 1) / size,
            "binary-tree": passes * (size - 1) / size,
            "nvls": {"all-reduce": 1 + 1 / size, "reduce-scatter": 1.0, "all-gather": 1 / size}.get(op),
        }[name]
        total = sum(sent[rank] for rank in group)
        assert total == pytest.approx(size * each * nbytes), name
        if name != "nvls":
            assert sum(received[rank] for rank in group) == pytest.approx(total)
        # Whatever is neither a rank nor a memory hands on all that it gets.
        for member in sent.keys() | received.keys() - set(group):
            if member not in group and not (name == "nvls" and "nvswitch" in member):
                assert sent[member] == pytest.approx(received[member]), (name, member)


@given(
    st.sampled_from(sorted(FABRICS)),
    st.sampled_from(INSIDE),
    st.sampled_from(OPS),
    st.permutations(range(GPUS)),
    st.permutations(range(HOSTS)),
)
@quickly
def test_order_in_which_ranks_are_named_changes_nothing(build, fabric, inside, op, gpus, hosts):
    profile = build(fabric, inside)
    named = [f"host{h}/gpu{g}" for h in hosts for g in gpus]
    work, again = Workload(), Workload()
    work.collective(op, _group(HOSTS, GPUS), 10**7)
    again.collective(op, named, 10**7)
    assert simulate(work, profile).summary() == simulate(again, profile).summary()


@given(st.sampled_from(["flat", "rails"]), st.sampled_from(OPS), st.permutations(range(HOSTS)), st.integers(1, HOSTS))
@quickly
def test_which_hosts_of_a_symmetric_topology_take_part_changes_no_time(build, fabric, op, order, count):
    # On rails of two hosts a unit, any host is as far from one of its own unit as from another only on `flat`.
    hosts = order[:count] if fabric == "flat" else sorted(order[0] // 2 * 2 + n for n in range(2))
    profile = build(fabric, "nvswitch")
    work, first = Workload(), Workload()
    work.collective(op, [f"host{h}/gpu{g}" for h in hosts for g in range(GPUS)], 10**7)
    first.collective(op, _group(len(hosts), GPUS), 10**7)
    assert simulate(work, profile).picoseconds == simulate(first, profile).picoseconds


@given(st.sampled_from(sorted(FABRICS)), st.sampled_from(INSIDE), st.sampled_from(OPS), groups)
@quickly
def test_halving_every_rate_doubles_the_bandwidth_term_exactly(build, fabric, inside, op, shape):
    half = dict(_named(_offers(build(fabric, inside, rate="4 GB/s"), op, _group(*shape), 10**8)))
    full = dict(_named(_offers(build(fabric, inside, rate="8 GB/s"), op, _group(*shape), 10**8)))
    assert half.keys() == full.keys()
    for name, cost in full.items():
        assert half[name].cap * 2 == cost.cap
        assert half[name].fixed == cost.fixed


def _named(offers):
    return ((name, cost) for name, cost, _ in offers)


@given(st.sampled_from(sorted(FABRICS)), st.sampled_from(INSIDE), st.sampled_from(OPS), groups, st.integers(0, 10**9))
@quickly
def test_more_bandwidth_never_slows_a_collective(build, fabric, inside, op, shape, nbytes):
    # One at a time: where several share, a faster link may let a rival through first (Graham's anomalies).
    work = Workload()
    work.collective(op, _group(*shape), nbytes)
    slow, fast = (simulate(work, build(fabric, inside, rate=rate)) for rate in ("10 GB/s", "20 GB/s"))
    assert fast.picoseconds <= slow.picoseconds


@given(st.integers(2, 7), st.sampled_from([("nvswitch", 2), ("pcie-tree", 3)]))
@quickly
def test_one_more_rank_in_a_ring_adds_two_steps(build, ranks, inside):
    kind, microseconds = inside
    profile = build("flat", kind, "ring")
    small, large = (next(_offers(profile, "all-reduce", _group(1, n), 10**6))[1] for n in (ranks, ranks + 1))
    assert large.fixed - small.fixed == 2 * microseconds * 10**6


@given(st.sampled_from(OPS), st.integers(0, 10**9), st.sampled_from(sorted(FABRICS)))
@quickly
def test_one_rank_is_free_and_no_bytes_cost_steps_alone(build, op, nbytes, fabric):
    profile = build(fabric, "nvswitch")
    alone, empty = Workload(), Workload()
    alone.collective(op, ["host1/gpu3"], nbytes)
    assert simulate(alone, profile).picoseconds == 0
    empty.collective(op, _group(2, 4), 0)
    assert simulate(empty, profile).picoseconds == min(c.fixed for _, c, _ in _offers(profile, op, _group(2, 4), 0))
    assert simulate(empty, profile).links == ()


def test_topology_matters_wherever_there_is_communication(build):
    def seconds(fabric, inside):
        work = Workload()
        work.collective("all-to-all", _group(HOSTS, GPUS), 10**9)
        return simulate(work, build(fabric, inside)).seconds

    flat, narrow, torus = (seconds(name, "nvswitch") for name in ("flat", "leaf-spine-6to1", "torus"))
    assert flat < narrow
    assert flat < torus
    assert seconds("flat", "pcie-tree") > flat


def test_all_to_all_over_a_narrow_fabric_takes_what_its_bisection_gives(build):
    work = Workload()
    work.collective("all-to-all", _group(HOSTS, GPUS), 32 * 10**8)
    profile = build("leaf-spine-6to1", "nvswitch", "ring", free=True)
    # 8 ports on leaves of 6: 24 ranks are on one leaf and 8 on the other, which is reached over one uplink.
    crossing = 24 * 8 * 10**8
    assert simulate(work, profile).seconds == pytest.approx(crossing / 1e10, rel=1e-9)


@given(st.integers(0, 2**63 - 1))
@quickly
def test_seed_changes_nothing_where_there_is_no_choice(build, seed):
    work = Workload()
    for h in range(HOSTS):
        work.transfer(f"host{h}/gpu0", f"host{(h + 1) % HOSTS}/gpu1", 10**6)
    profile = build("flat", "nvswitch")
    assert simulate(work, profile, seed=seed).summary() == simulate(work, profile).summary()


@pytest.mark.parametrize("name", ["a100x8-hdr-rails", "h100x8-ndr-rails"])
@pytest.mark.parametrize("op", ["all-reduce", "all-gather", "all-to-all"])
def test_a_thousand_ranks_on_rails_are_bound_by_their_adapters(name, op):
    profile = load_profile(f"{name}@128")
    topology = Topology(profile)
    work = Workload()
    work.collective(op, _group(128, 8), 2**30)
    cost = collective(work.nodes[0], topology)
    carried = {topology.links[number].name: amount for number, amount in cost.traffic}
    adapters = [
        carried[f"host{h}/nic{n}>fabric/leaf{h // leaf_hosts(profile) * 8 + n}"] for h in (0, 127) for n in range(8)
    ]
    assert adapters == pytest.approx([adapters[0]] * 16)
    # Routing by destination on a full fat tree: nowhere is more to be carried than by an adapter.
    assert max(amount for link, amount in carried.items() if "fabric" in link) == pytest.approx(adapters[0])
    ring = bus_factor(op, 1024) * 2**30 / 8 if op != "all-to-all" else 2**30 * (1024 - 8) / 1024
    assert adapters[0] == pytest.approx(ring)


def leaf_hosts(profile):
    return profile.fabric.topology.leaf_ports
