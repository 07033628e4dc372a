from itertools import pairwise

import pytest
from pydantic import ValidationError

from emulation.cost.collectives import bus_factor, collective, idle_time
from emulation.cost.compute import kernel
from emulation.cost.rings import rings
from emulation.cost.usage import by_host, hop_usage, pairwise_usage
from emulation.evaluate import simulate
from emulation.graph import Workload, WorkloadError
from emulation.processors import Throughput
from emulation.topology import Topology

A, B = "host0/gpu0", "host0/gpu1"
CLUSTERS = ["v100x8-nvlink", "a100x8-hdr", "h100x8-ndr", "rdma-100g-pair", "ethernet-10g-pair"]
OPS = ["all-reduce", "reduce-scatter", "all-gather", "broadcast", "reduce", "all-to-all"]


def _cost(profile, op, group, nbytes):
    work = Workload()
    work.collective(op, group, nbytes)
    return collective(work.nodes[0], Topology(profile))


def _gpus(count, hosts=1):
    return [f"host{h}/gpu{g}" for h in range(hosts) for g in range(count)]


def _workers(profile):
    order = list(Topology(profile).order)
    return [name for name in order if "gpu" in name] or order


@pytest.mark.parametrize(
    ("flops", "nbytes", "seconds"),
    [(2e12, 0, 2.0), (0, 3 * 10**11, 3.0), (1e12, 5 * 10**11, 5.0), (0, 0, 0.0)],
    ids=["arithmetic", "memory", "memory-bound", "nothing"],
)
def test_roofline_takes_the_slower_of_arithmetic_and_memory(small, flops, nbytes, seconds):
    work = Workload()
    work.compute(A, flops, nbytes)
    assert simulate(work, small()).seconds == seconds


@pytest.mark.parametrize(
    ("shape", "part"),
    [
        ((), 0.5),
        ((100, 10**9, 10**9), 0.25),
        ((10**9, 20, 10**9), 0.25),
        ((10**9, 10**9, 20), 0.25),
        ((100, 20, 20), 0.125),
    ],
)
def test_a_small_product_reaches_the_part_that_its_half_sizes_say(small, shape, part):
    half = {"rows": 100.0, "columns": 20.0, "grade": "measured", "source": "test"}
    flops = {"grade": "measured", "source": "test", "points": [{"at": "1 FLOP", "value": 0.5}]}
    peak = {"value": "1 TFLOP/s", "grade": "measured", "source": "test"}
    profile = small()
    throughput = Throughput.model_validate({"peak": peak, "families": {"matmul": {"flops": flops, "half": half}}})
    gpu = profile.models["gpu"].model_copy(update={"compute": {"fp16": throughput}})
    work = Workload()
    work.compute(A, 1e12, dtype="fp16", family="matmul", shape=shape)
    assert kernel(work.nodes[0], gpu).fixed == pytest.approx(1e12 / part, rel=1e-6)


@pytest.mark.parametrize(
    ("op", "steps", "factor"),
    [
        ("all-reduce", 6, 1.5),
        ("reduce-scatter", 3, 0.75),
        ("all-gather", 3, 0.75),
        ("broadcast", 3, 1.0),
        ("reduce", 3, 1.0),
        ("all-to-all", 3, 0.75),
    ],
)
def test_ring_of_four_is_its_closed_form(small, op, steps, factor):
    cost = _cost(small(), op, _gpus(4), 10**8)
    assert cost.fixed == (1 + 2 * steps) * 10**6
    assert idle_time(cost) == pytest.approx(cost.fixed / 1e12 + factor * 1e8 / 1e10, rel=1e-12)


def test_one_more_gpu_in_a_ring_adds_two_steps(small):
    fixed = [_cost(small(gpus=8), "all-reduce", _gpus(n), 10**6).fixed for n in range(2, 9)]
    assert {b - a for a, b in pairwise(fixed)} == {2 * 2 * 10**6}


def test_ring_over_hosts_pays_the_network_step_for_the_hops_between_them(small):
    cost = _cost(small(gpus=4, hosts=2), "all-reduce", _gpus(4, 2), 10**6)
    assert cost.fixed == (1 + 12 * 2 + 2 * 5) * 10**6


@pytest.mark.parametrize("op", OPS)
def test_collective_of_one_rank_costs_nothing(small, op):
    work = Workload()
    work.collective(op, [A], 10**9)
    result = simulate(work, small())
    assert (result.picoseconds, result.links) == (0, ())


def test_no_bytes_cost_the_latency_alone(small):
    work = Workload()
    work.collective("all-reduce", _gpus(4), 0)
    assert simulate(work, small()).picoseconds == 13 * 10**6


@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.parametrize("op", OPS)
def test_busbw_never_exceeds_the_links_and_nears_them_for_large_buffers(shipped, cluster, op):
    profile = shipped(cluster)
    group = _workers(profile)
    topology = Topology(profile)
    out = {n: sum(link.capacity for link in topology.links if link.name.startswith(f"{n}>")) for n in group}
    for nbytes in (2**10, 2**20, 2**26, 2**32):
        busbw = nbytes / idle_time(_cost(profile, op, group, nbytes)) * bus_factor(op, len(group))
        assert busbw <= min(out.values())


def test_busbw_of_a_full_a100_node_is_that_of_its_links(shipped):
    profile = shipped("a100x8-hdr")
    seconds = idle_time(_cost(profile, "all-reduce", _gpus(8), 2**32))
    assert 2**32 / seconds * 1.75 == pytest.approx(240e9, rel=0.01)


def test_cube_mesh_has_three_disjoint_cycles_in_both_directions(shipped):
    topology = Topology(shipped("v100x8-nvlink"))
    orders = rings(_gpus(8), topology)
    assert len(orders) == 6
    used = {}
    for order in orders:
        for hop in zip(order, [*order[1:], order[0]], strict=True):
            used[hop] = used.get(hop, 0) + 1
    assert all(count <= topology.lanes(*hop) for hop, count in used.items())


def test_rails_let_every_adapter_carry_its_part(shipped):
    profile = shipped("a100x8-hdr")
    work = Workload()
    work.collective("all-reduce", _gpus(8, 2), 2**30)
    carried = [use.bytes for use in simulate(work, profile).links if ">fabric/" in use.name]
    assert len(carried) == 16
    assert carried == pytest.approx([2 * 15 / 16 * 2**30 / 8] * 16)


def test_latency_choice_follows_the_size(shipped):
    profile = shipped("a100x8-hdr")
    methods = [_cost(profile, "all-reduce", _gpus(8), size).method for size in (2**10, 2**32)]
    assert methods == ["tree-ll", "ring-simple"]


def test_two_level_all_reduce_adds_its_three_phases(small, document):
    option = document()["collectives"][0] | {"algorithm": "two-level", "name": "two-level"}
    profile = small(gpus=4, hosts=2, collectives=[option])
    cost = _cost(profile, "all-reduce", _gpus(4, 2), 10**8)
    assert cost.fixed == (1 + 6 * 2 + 2 * 5) * 10**6
    # Each host has one adapter: the four rails of S/4 share it.
    phases = (2 * 0.75 + 2 * 0.5) * 1e8 / 1e10
    assert idle_time(cost) == pytest.approx(cost.fixed / 1e12 + phases, rel=1e-12)


def test_halving_doubling_moves_what_a_ring_moves_in_fewer_steps(small, document):
    option = document()["collectives"][0] | {"algorithm": "halving-doubling", "name": "hd"}
    profile = small(gpus=8, collectives=[option])
    cost = _cost(profile, "all-reduce", _gpus(8), 10**8)
    assert cost.fixed == (1 + 6 * 2) * 10**6
    assert idle_time(cost) == pytest.approx(cost.fixed / 1e12 + 1.75 * 1e8 / 1e10, rel=1e-12)
    with pytest.raises(WorkloadError, match="lists no collective that can do it"):
        _cost(profile, "all-reduce", _gpus(7), 10**8)


def test_binary_tree_takes_twice_what_a_double_one_does(small, document):
    def of(algorithm):
        option = document()["collectives"][0] | {"algorithm": algorithm, "name": algorithm}
        return _cost(small(gpus=8, collectives=[option]), "all-reduce", _gpus(8), 10**8)

    single, double = of("binary-tree"), of("tree")
    assert single.fixed == double.fixed == (1 + 6 * 2) * 10**6
    # An inner rank of the single tree takes S from each of two children, sends S up, and the same down.
    assert 1e8 / single.cap == pytest.approx(3 * 1e8 / 1e10)
    assert 1e8 / double.cap <= 2.1 * 1e8 / 1e10


@pytest.mark.parametrize(("op", "up", "down"), [("all-reduce", 9, 9), ("reduce-scatter", 8, 1), ("all-gather", 1, 8)])
def test_nvls_sends_own_data_once_and_receives_sums(small, document, op, up, down):
    option = document()["collectives"][0] | {"algorithm": "nvls", "name": "nvls", "bandwidth": 0.85}
    profile = small(gpus=8, hosts=2, collectives=[option])
    cost = _cost(profile, op, _gpus(8), 8 * 10**7)
    topology = Topology(profile)
    carried = {topology.links[number].name: amount for number, amount in cost.traffic}
    assert carried["host0/gpu3>host0/switch0"] == pytest.approx(up * 10**7)
    assert carried["host0/switch0>host0/gpu3"] == pytest.approx(down * 10**7)
    assert len(carried) == 16
    assert cost.fixed == 3 * 10**6
    assert cost.work / cost.cap == pytest.approx(max(up, down) * 1e7 / 1e10 / 0.85)
    for other, group in (("broadcast", _gpus(8)), (op, _gpus(8, 2))):
        with pytest.raises(WorkloadError, match="lists no collective"):
            _cost(profile, other, group, 10**8)


@pytest.mark.parametrize(("op", "passes"), [("reduce-scatter", 1), ("all-gather", 1)])
def test_two_level_halves_are_half_of_an_all_reduce(small, document, op, passes):
    option = document()["collectives"][0] | {"algorithm": "two-level", "name": "two-level"}
    profile = small(gpus=4, hosts=2, collectives=[option])
    cost = _cost(profile, op, _gpus(4, 2), 10**8)
    assert cost.fixed == (1 + 3 * 2 + 1 * 5) * 10**6
    assert cost.work / cost.cap == pytest.approx((0.75 + 0.5) * 1e8 / 1e10, rel=1e-12)


def test_prior_is_the_tuner_written_out(shipped, document, small):
    ours = [(o.name, o.base, o.step["nvlink"], o.bandwidth, o.grade) for o in shipped("a100x8-hdr").collectives]
    assert ("ring-ll128", 14e-6, 1.9e-6, 0.92, "prior") in ours
    names = [o.name for o in shipped("h100x8-ndr").collectives]
    assert names == [name for name, *_ in ours] + ["nvls"]
    with pytest.raises(ValidationError, match="Input should be 'volta'") as caught:
        small(collectives={"prior": "nccl", "generation": "amper", "source": "test"})
    assert caught.value.errors()[0]["ctx"]["path"] == ["generation"]


def test_large_all_reduce_on_hopper_lets_the_switch_add(shipped):
    costs = [_cost(shipped("h100x8-ndr"), "all-reduce", _gpus(8), size) for size in (2**10, 2**32)]
    assert [cost.method for cost in costs] == ["tree-ll", "nvls"]


def test_all_to_all_by_counting_is_the_sum_over_all_pairs(small):
    profile = small(gpus=4, hosts=3)
    group = [*_gpus(4, 2), "host2/gpu1"]
    topology = Topology(profile)
    expected = hop_usage(((a, b) for a in group for b in group if a != b), 1.0, topology)
    found = pairwise_usage(by_host(group, topology), topology)
    assert found == pytest.approx(expected)


def test_transfer_pays_latency_then_the_slowest_link(small):
    work = Workload()
    work.transfer(A, B, 10**7, seconds=4e-6)
    assert simulate(work, small(latency="1 us")).picoseconds == (4 + 2) * 10**6 + 10**9


def test_transfer_rate_is_bounded_by_its_software(small):
    work = Workload()
    work.transfer(A, B, 10**7, cap=1e9)
    assert simulate(work, small()).seconds == pytest.approx(0.01)


def test_protocol_headers_take_the_network_links_alone(small):
    work = Workload()
    work.transfer("host0/gpu0", "host1/gpu0", 9 * 10**6, efficiency=0.9)
    result = simulate(work, small(hosts=2))
    assert result.seconds == pytest.approx(1e-3)
    assert sorted({round(use.bytes) for use in result.links}) == [9 * 10**6, 10**7]


def test_processes_of_one_host_move_bytes_through_its_memory(shipped):
    work = Workload()
    node = work.transfer("host0/cpu", "host0/cpu", 2**20)
    laptop = shipped("laptop")
    result = simulate(work, laptop)
    assert result.finish(node) == pytest.approx(2**20 / laptop.host("host0").software.memcpy.rate(2**20))
    assert [(use.name, use.bytes) for use in result.links] == [("host0/memory", 2 * 2**20)]


def test_copies_on_both_cores_share_the_memory(shipped):
    alone, both = Workload(), Workload()
    alone.copy("host0/cpu", "host0/cpu", 2**28, stream="one")
    for stream in ("one", "two"):
        both.copy("host0/cpu", "host0/cpu", 2**28, stream=stream)
    laptop = shipped("laptop")
    assert simulate(both, laptop).seconds > 1.5 * simulate(alone, laptop).seconds


def test_accelerators_do_not_forward_for_others(shipped):
    topology = Topology(shipped("v100x8-nvlink"))
    names = [topology.links[n].name for n in topology.route("host0/gpu0", "host0/gpu5").links]
    assert names == ["host0/gpu0>host0/cpu", "host0/cpu>host0/gpu5"]


def test_topology_change_with_communication_changes_the_result(small):
    work = Workload()
    work.collective("all-reduce", ["host0/gpu0", "host0/gpu1"], 10**7)
    across = Workload()
    across.collective("all-reduce", ["host0/gpu0", "host1/gpu0"], 10**7)
    profile = small(hosts=2)
    assert simulate(across, profile).picoseconds != simulate(work, profile).picoseconds
