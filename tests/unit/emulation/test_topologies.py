"""Shapes of fabrics against graphs built of their wires, and routes against a search over the whole cluster."""

import math
from itertools import combinations, pairwise

import networkx
import pytest
from pydantic import ValidationError

from emulation.cost.usage import hop_usage, pairwise_usage
from emulation.evaluate import simulate
from emulation.fabric import PROBE_BYTES, Flow
from emulation.graph import Workload
from emulation.profile import Profile
from emulation.topologies import Clos, Flat, Torus
from emulation.topology import Topology


def _figure(value):
    return {"value": value, "grade": "measured", "source": "test"}


WIRE = {"rate": _figure("10 GB/s"), "latency": _figure("1 us")}
TOPOLOGIES = {
    "flat": {"kind": "flat"},
    "leaf-spine": {"kind": "leaf-spine", "leaf_ports": 4, "oversubscription": 2},
    "leaf-spine-few-spines": {"kind": "leaf-spine", "leaf_ports": 4, "spines": 2},
    "rails": {"kind": "fat-tree", "leaf_ports": 2, "rails": True},
    "fat-tree-3": {"kind": "fat-tree", "leaf_ports": 2, "levels": 3, "pod_leaves": 2},
    "rails-3": {"kind": "fat-tree", "leaf_ports": 2, "levels": 3, "pod_leaves": 4, "rails": True},
    "torus-1": {"kind": "torus", "shape": [7]},
    "torus-2": {"kind": "torus", "shape": [2, 3]},
    "torus-3": {"kind": "torus", "shape": [2, 4, 3]},
}
SHAPES = [
    Clos(leaves=7, spines=3, pod=7, cores=0, ports=4, rails=0, bundle=1),
    Clos(leaves=7, spines=3, pod=2, cores=2, ports=4, rails=0, bundle=1),
    Torus((5,)),
    Torus((2, 3)),
    Torus((4, 4)),
    Torus((2, 2, 3)),
]


@pytest.fixture(scope="module")
def cluster(document):
    def build(topology, hosts=6, nics=2, **changes):
        made = document(hosts=hosts, latency="1 us", **changes)
        made["hosts"][0]["nics"][0]["count"] = nics
        fabric = topology if "switches" in topology else {"topology": {"link": WIRE, **topology}}
        return Profile.model_validate({**made, "fabric": fabric})

    return build


def _graph(shape):
    graph = networkx.Graph()
    graph.add_nodes_from(range(sum(tier.switches for tier in shape.tiers)))
    graph.add_edges_from(shape.trunk(number) for number in range(shape.trunks))
    return graph


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_trunk_is_one_wire_and_is_found_from_both_ends(shape):
    ends = [shape.trunk(number) for number in range(shape.trunks)]
    assert len({frozenset(pair) for pair in ends}) == shape.trunks
    assert [shape.joining(*pair) for pair in ends] == [2 * number for number in range(len(ends))]
    assert [shape.joining(*pair[::-1]) for pair in ends] == [2 * number + 1 for number in range(len(ends))]
    graph = _graph(shape)
    apart = [pair for pair in combinations(graph, 2) if not graph.has_edge(*pair)]
    assert [shape.joining(*pair) for pair in apart] == [None] * len(apart)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ways_are_shortest_and_hashing_reaches_every_equal_one(shape):
    graph = _graph(shape)
    assert networkx.is_connected(graph) or isinstance(shape, Clos)
    ends = range(shape.leaves) if isinstance(shape, Clos) else graph
    for one in ends:
        for other in ends:
            found = {tuple(shape.way(one, other, Flow(seed, "a", "b", ""))) for seed in range(60)}
            assert {len(way) - 1 for way in found} == {shape.hops(one, other)}
            assert shape.hops(one, other) == networkx.shortest_path_length(graph, one, other)
            assert all(graph.has_edge(*hop) for way in found for hop in pairwise(way))
            if isinstance(shape, Clos):
                assert found == {tuple(way) for way in networkx.all_shortest_paths(graph, one, other)}


def test_flat_has_one_switch():
    assert Flat().way(0, 0, lambda ways: 0) == [0]


def _reference(topology):
    """Seconds of the probe from each processor to each other, by Dijkstra over all links of the cluster."""
    graph = networkx.DiGraph()
    graph.add_nodes_from(topology.order)
    for link in topology.links:
        if ">" in link.name:
            left, right = link.name.split(">")
            if not graph.has_edge(left, right) or graph[left][right]["link"].capacity < link.capacity:
                graph.add_edge(left, right, link=link)

    def through(src):
        def seconds(left, _, edge):
            forwards = left == src or left not in topology.order or topology.is_host(left)
            return edge["link"].latency / 1e12 + PROBE_BYTES / edge["link"].capacity if forwards else None

        return networkx.single_source_dijkstra_path_length(graph, src, weight=seconds)

    return {src: through(src) for src in topology.order}


def _seconds(topology, route):
    links = [topology.links[number] for number in route.links]
    return sum(link.latency / 1e12 + PROBE_BYTES / link.capacity for link in links)


def _check_routes(topology):
    for src, reference in _reference(topology).items():
        for dst in topology.order:
            route = topology.route(src, dst)
            names = [topology.links[number].name.split(">") for number in route.links]
            assert all(left[1] == right[0] for left, right in pairwise(names))
            assert (names[0][0], names[-1][1]) == (src, dst) if names else src == dst
            assert _seconds(topology, route) == pytest.approx(reference[dst], rel=1e-9)


@pytest.mark.parametrize("kind", TOPOLOGIES)
def test_routes_are_as_short_as_a_search_over_the_whole_cluster_finds(cluster, kind):
    _check_routes(Topology(cluster(TOPOLOGIES[kind]), seed=3))


@pytest.mark.parametrize("name", ["v100x8-nvlink", "a100x8-hdr", "rdma-100g-pair", "laptop"])
def test_routes_of_shipped_profiles_are_shortest(shipped, name):
    _check_routes(Topology(shipped(name)))


def test_routes_over_listed_switches_are_shortest_and_hashed(cluster):
    link = {"kind": "network", **WIRE}
    fabric = {
        "switches": [{"name": "leaf", "count": 3}, {"name": "spine", "count": 2}],
        "links": [
            {"name": "access", "ends": ["nic", "leaf"], "pairing": "block", **link},
            {"name": "trunk", "ends": ["leaf", "spine"], **link},
        ],
    }
    profile = cluster(fabric)
    _check_routes(Topology(profile))
    ways = {Topology(profile, seed).route("host0/gpu0", "host5/gpu0").links for seed in range(20)}
    assert len(ways) == 2


@pytest.mark.parametrize("kind", TOPOLOGIES)
def test_every_link_is_found_by_its_name(cluster, kind):
    topology = Topology(cluster(TOPOLOGIES[kind]))
    names = [link.name for link in topology.links]
    assert len(set(names)) == len(names)
    assert [topology.link_number(name) for name in names] == list(range(len(names)))


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("host0/gpu0>host0/swich0", "host0/gpu0>host0/switch0"),
        ("host0/nic0>fabric/leaf1", "host0/nic0>fabric/leaf0"),
        ("fabric/leaf0>fabric/spine9", "fabric/leaf0>fabric/spine1"),
        ("host9/memory", r"host\d/memory"),
        ("host0/gpv0>host0/switch0", "host0/gpu0>host0/switch0"),
        ("nonsense", r"host\d/memory"),
    ],
)
def test_unknown_link_gets_the_nearest_name(cluster, name, near):
    topology = Topology(cluster(TOPOLOGIES["leaf-spine"]))
    with pytest.raises(ValueError, match=f"no link '{name}'; did you mean '{near}'"):
        topology.link_number(name)


def test_oversubscription_leaves_that_part_of_the_rate_between_leaves(cluster):
    for ratio, spines in ((1, 4), (2, 2), (4, 1)):
        topology = Topology(
            cluster({"kind": "leaf-spine", "leaf_ports": 4, "oversubscription": ratio}, nics=1, hosts=8)
        )
        up = [link for link in topology.links if link.name.startswith("fabric/leaf0>fabric/spine")]
        down = [link for link in topology.links if link.name.startswith("fabric/leaf0>host")]
        assert len(up) == spines
        assert sum(link.capacity for link in down) / sum(link.capacity for link in up) == pytest.approx(ratio)


def test_few_spines_get_wider_trunks(cluster):
    topology = Topology(cluster(TOPOLOGIES["leaf-spine-few-spines"]))
    assert topology.links[topology.link_number("fabric/leaf0>fabric/spine1")].capacity == pytest.approx(2e10)


def test_rails_put_equal_ports_of_a_unit_on_one_leaf(cluster):
    topology = Topology(cluster(TOPOLOGIES["rails"]))
    leaves = [
        [name for name in topology.next_to(f"host{h}/nic{n}") if "leaf" in name] for h in range(6) for n in (0, 1)
    ]
    assert leaves == [[f"fabric/leaf{h // 2 * 2 + n}"] for h in range(6) for n in (0, 1)]


def test_same_seed_same_route_and_no_choice_no_change(cluster):
    pairs = [(f"host{a}/gpu0", f"host{b}/gpu1") for a in range(6) for b in range(6)]

    def routes(kind, seed):
        topology = Topology(cluster(TOPOLOGIES[kind]), seed)
        return [topology.route(*pair).links for pair in pairs]

    assert routes("leaf-spine", 1) == routes("leaf-spine", 1) != routes("leaf-spine", 2)
    assert routes("flat", 1) == routes("flat", 2)


def test_label_of_a_flow_is_part_of_its_choice(cluster):
    topology = Topology(cluster(TOPOLOGIES["leaf-spine"]))
    ways = {topology.route("host0/gpu0", "host5/gpu0", f"flow{n}").links for n in range(20)}
    assert len(ways) == 2


def test_routing_by_destination_is_free_of_contention_for_a_shift(cluster):
    tree = {"kind": "fat-tree", "leaf_ports": 4, "routing": "by-destination"}
    topology = Topology(cluster(tree, hosts=16, nics=1))
    for shift in range(1, 16):
        used = [n for h in range(16) for n in topology.route(f"host{h}/gpu0", f"host{(h + shift) % 16}/gpu0").links]
        assert len(used) == len(set(used))


@pytest.mark.parametrize("kind", ["rails", "fat-tree-3", "rails-3", "torus-1", "torus-2", "torus-3", "leaf-spine"])
def test_flows_spread_over_equal_ways_are_the_mean_over_many_hashes(cluster, kind):
    profile = cluster(TOPOLOGIES[kind])
    exact = Topology(profile)
    hosts = [[f"host{h}/gpu{g}" for g in range(2)] for h in range(6)]
    spread = pairwise_usage(hosts, exact)
    pairs = [(a, b) for ranks in hosts for a in ranks for other in hosts for b in other if a != b]
    mean, seeds = {}, 40
    for seed in range(seeds):
        for number, amount in hop_usage(pairs, 1 / seeds, Topology(profile, seed)).items():
            mean[number] = mean.get(number, 0.0) + amount
    assert set(mean) <= set(spread)
    assert sum(spread.values()) == pytest.approx(sum(mean.values()))
    assert all(spread[n] == pytest.approx(mean.get(n, 0.0), abs=1 + 0.3 * spread[n]) for n in spread)
    once = [n for n in spread if exact.links[n].name.count("fabric") != 2]
    assert [spread[n] for n in once] == pytest.approx([mean[n] for n in once])


def test_flows_over_listed_switches_divide_at_every_fork(cluster):
    link = {"kind": "network", **WIRE}
    access = {"name": "access", "ends": ["nic", "leaf"], "pairing": "block", **link}
    fabric = {
        "switches": [{"name": "leaf", "count": 6}, {"name": "spine", "count": 2}],
        "links": [access, {"name": "trunk", "ends": ["leaf", "spine"], **link}],
    }
    profile = cluster(fabric, nics=1)
    topology = Topology(profile)
    usage = pairwise_usage([[f"host{h}/gpu0"] for h in range(6)], topology)
    named = {topology.links[n].name: amount for n, amount in usage.items()}
    assert {amount for name, amount in named.items() if name.count("fabric") == 2} == {2.5}
    assert len(named) == 6 * 2 * 5


def test_choices_are_spread_evenly():
    counts = [0] * 8
    for src in range(400):
        counts[Flow(0, f"host{src}/gpu0", "host9/gpu0", "")(8)] += 1
    assert sum((count - 50) ** 2 / 50 for count in counts) < 24.3  # chi-square, 7 degrees of freedom, p = 0.001


def test_hosts_of_different_groups_share_a_fabric(document):
    made = document(hosts=2)
    made["hosts"].append({**made["hosts"][0], "name": "node", "count": 3})
    profile = Profile.model_validate({**made, "fabric": {"topology": {"link": WIRE, **TOPOLOGIES["leaf-spine"]}}})
    topology = Topology(profile)
    _check_routes(topology)
    assert topology.links[topology.link_number("node2/gpu0>node2/switch0")].kind == "nvlink"


def test_pinned_route_is_taken(cluster):
    via = [
        "host0/switch0",
        "host0/nic1",
        "fabric/leaf0",
        "fabric/spine1",
        "fabric/leaf2",
        "host5/nic1",
        "host5/switch0",
    ]
    pin = {"from": "host0/gpu0", "to": "host5/gpu0", "via": via}
    topology = Topology(cluster(TOPOLOGIES["leaf-spine"], routes=[pin]))
    links = [topology.links[number].name for number in topology.route("host0/gpu0", "host5/gpu0").links]
    assert links == [f"{a}>{b}" for a, b in pairwise(["host0/gpu0", *via, "host5/gpu0"])]
    assert len(topology.route("host5/gpu0", "host0/gpu0").links) == len(via) + 1


@pytest.mark.parametrize(
    ("pin", "path", "message"),
    [
        ({"from": "host0/gpv0", "to": "host1/gpu0"}, ["from"], "did you mean 'host0/gpu0'"),
        ({"from": "host0/gpu0", "to": "host1/gpu0"}, ["to"], "no link leads from"),
        ({"from": "host0/gpu0", "to": "host1/gpu0", "via": ["host0/swich0"]}, ["via", 0], "mean 'host0/switch0'"),
    ],
    ids=["device", "gap", "hop"],
)
def test_route_over_links_that_do_not_exist_is_refused_at_its_place(cluster, pin, path, message):
    with pytest.raises(ValidationError, match=message) as caught:
        cluster(TOPOLOGIES["leaf-spine"], routes=[pin])
    assert caught.value.errors()[0]["ctx"]["path"] == ["routes", 0, *path]


MISTAKES = [
    ({"kind": "leaf-spine"}, [], "a leaf-spine needs `leaf_ports`"),
    ({"kind": "flat", "leaf_ports": 4}, ["leaf_ports"], "a flat has no `leaf_ports`"),
    ({"kind": "torus", "shape": [2, 2]}, ["shape"], "4 routers, one a host; there are 6 hosts"),
    ({"kind": "torus"}, [], "a torus needs `shape`"),
    ({"kind": "leaf-spine", "leaf_ports": 4, "oversubscription": 3}, ["oversubscription"], "whole number"),
    ({"kind": "leaf-spine", "leaf_ports": 4, "spines": 3}, ["spines"], "do not divide over 3 spines"),
    ({"kind": "fat-tree", "leaf_ports": 4, "levels": 3}, [], "needs `pod_leaves`"),
    ({"kind": "fat-tree", "leaf_ports": 4, "pod_leaves": 2}, ["pod_leaves"], "only a fat tree of three levels"),
    ({"kind": "flat", "ends": "nik"}, ["ends"], "did you mean 'nic'"),
]


@pytest.mark.parametrize(("topology", "path", "message"), MISTAKES, ids=[m[2] for m in MISTAKES])
def test_mistake_in_a_topology_is_refused_at_its_key(cluster, topology, path, message):
    with pytest.raises(ValidationError, match=message) as caught:
        cluster(topology)
    assert caught.value.errors()[0]["ctx"]["path"] == ["fabric", "topology", *path]


def test_topology_and_listed_links_exclude_one_another(cluster):
    with pytest.raises(ValidationError, match="either a `topology` or `switches` and `links`"):
        cluster({"topology": {"kind": "flat", "link": WIRE}, "switches": [{"name": "leaf"}]})


@pytest.mark.parametrize("kind", TOPOLOGIES)
def test_profile_with_a_topology_survives_a_dump(cluster, kind):
    profile = cluster(TOPOLOGIES[kind])
    assert Profile.model_validate(profile.model_dump(mode="json", by_alias=True)) == profile


@pytest.mark.parametrize(
    ("pairing", "gpus", "joined"),
    [
        ("ring", 4, {(0, 1): 1, (1, 2): 1, (2, 3): 1, (0, 3): 1}),
        ("ring", 2, {(0, 1): 1}),
        ("mesh", 3, {(0, 1): 1, (0, 2): 1, (1, 2): 1}),
    ],
)
def test_pairings_within_a_group(document, pairing, gpus, joined):
    topology = Topology(Profile.model_validate(_paired(document, pairing, gpus)))
    lanes = {p: topology.lanes(*(f"host0/gpu{n}" for n in p)) for p in combinations(range(gpus), 2)}
    assert {pair: count for pair, count in lanes.items() if count} == joined


def _paired(document, pairing, gpus):
    made = document(gpus=gpus)
    made["hosts"][0]["links"].append(
        {"name": "direct", "kind": "nvlink", "ends": ["gpu", "gpu"], "pairing": pairing, **WIRE}
    )
    return made


def test_cube_mesh_is_that_of_the_shipped_profile(document, shipped):
    ours = Topology(Profile.model_validate(_paired(document, "cube-mesh", 8)))
    theirs = Topology(shipped("v100x8-nvlink"))
    names = [f"host0/gpu{n}" for n in range(8)]
    assert [ours.lanes(a, b) for a in names for b in names] == [theirs.lanes(a, b) for a in names for b in names]


def test_block_makes_a_pcie_tree(document):
    made = document(gpus=4)
    host = made["hosts"][0]
    host["switches"] = [{"name": "bridge", "count": 2}]
    host["links"] = [
        {"name": "down", "kind": "pcie", "ends": ["gpu", "bridge"], "pairing": "block", **WIRE},
        {"name": "up", "kind": "pcie", "ends": ["bridge", "cpu"], **WIRE},
        {"name": "nic", "kind": "pcie", "ends": ["nic", "cpu"], **WIRE},
    ]
    topology = Topology(Profile.model_validate(made))
    hops = [len(topology.route("host0/gpu0", f"host0/gpu{n}").links) for n in range(1, 4)]
    assert hops == [2, 4, 4]


@pytest.mark.parametrize(
    ("pairing", "gpus", "message"),
    [("cube-mesh", 4, "eight members, not 4"), ("ring", 1, "a ring needs two"), ("block", 3, "for two groups")],
)
def test_pairing_that_does_not_fit_is_refused(document, pairing, gpus, message):
    with pytest.raises(ValidationError, match=message):
        Profile.model_validate(_paired(document, pairing, gpus))


def test_topology_changes_the_result_of_a_transfer_that_shares_it(cluster):
    work = Workload()
    for host in range(4):
        work.transfer(f"host{host}/gpu0", f"host{host + 4}/gpu0", 10**7)
    names = ("flat", "leaf-spine")
    narrow = {"kind": "leaf-spine", "leaf_ports": 4, "oversubscription": 4}
    times = [simulate(work, cluster(t, hosts=8, nics=1)).seconds for t in (*map(TOPOLOGIES.get, names), narrow)]
    assert times[0] < times[2]
    assert times[2] == pytest.approx(4e-3 + 8e-6, rel=1e-9)


def test_a_cluster_of_16384_accelerators_is_made_at_once_and_lazily(cluster):
    tree = {"kind": "fat-tree", "leaf_ports": 32, "levels": 3, "pod_leaves": 32, "rails": True}
    topology = Topology(cluster(tree, hosts=4096, nics=2))
    assert len(topology.order) == 4096 * 5
    before = len(topology.links._made)
    route = topology.route("host0/gpu0", "host4095/gpu3")
    assert len(topology.links._made) - before == len(route.links) == 10
    assert math.isfinite(_seconds(topology, route))
