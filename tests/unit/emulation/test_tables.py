import math
from itertools import pairwise

import pytest
from pydantic import ValidationError

from emulation.collectives import CollectiveTable
from emulation.cost import tables
from emulation.cost.collectives import collective, idle_time
from emulation.evaluate import simulate
from emulation.graph import Workload
from emulation.topology import Topology


def table(points, ranks=4, op="all-reduce", hosts=1, link="nvlink", grade="measured"):
    """A table from {bytes: microseconds}."""
    rows = [{"bytes": f"{size} B", "time": f"{time} us"} for size, time in points.items()]
    head = {"op": op, "ranks": ranks, "hosts": hosts, "link": link, "grade": grade, "source": "test"}
    return CollectiveTable.model_validate(head | {"points": rows})


def document(*made):
    return [one.model_dump(mode="json") for one in made]


def ring(ranks, step=2.0, base=10.0, rate=10.0, sizes=(1000, 10_000, 100_000, 10**6)):
    """What a ring takes: base + 2(n-1) steps + 2(n-1)/n S / rate (bytes per microsecond / 1000)."""
    return table({s: base + 2 * (ranks - 1) * step + 2 * (ranks - 1) / ranks * s / (rate * 1000) for s in sizes}, ranks)


def test_reading_at_the_knots_and_on_the_chords_between_them():
    made = table({1000: 10, 2000: 12, 8000: 30})
    assert [tables.at(made, size) for size in (1000, 2000, 8000)] == pytest.approx([10e-6, 12e-6, 30e-6], rel=1e-15)
    assert tables.at(made, 5000) == pytest.approx(21e-6)


def test_below_and_above_the_knots_the_wide_chords_go_on():
    made = table({1000: 10, 2000: 10, 4000: 16, 8000: 30})
    # From 1000 to 4000: 2 us per 1000 bytes; from 2000 to 8000: 20 us in 6000 bytes.
    assert tables.latency(made) == pytest.approx(8e-6)
    assert tables.at(made, 500) == pytest.approx(9e-6)
    assert tables.at(made, 14_000) == pytest.approx(50e-6)


def test_a_chord_that_meets_zero_early_leaves_no_negative_latency():
    made = table({1000: 1, 4000: 10})
    assert tables.latency(made) == 0
    assert tables.at(made, 500) == pytest.approx(0.5e-6)


def test_one_point_is_a_rate():
    made = table({1000: 10})
    assert tables.at(made, 500) == pytest.approx(5e-6)
    assert tables.at(made, 3000) == pytest.approx(30e-6)


@pytest.mark.parametrize("ranks", [2, 3, 4, 6, 8, 16])
@pytest.mark.parametrize("known", [(2, 8), (4, 8), (2, 4)])
def test_two_group_sizes_of_a_ring_tell_every_other(known, ranks):
    # Leaving ranks away saves steps too, but no more is believed than their share of the traffic.
    sizes = (1000, 10**6)
    read = [
        tables.read([ring(n) for n in known], "all-reduce", (ranks, 1), "nvlink", size, step=2e-6) for size in sizes
    ]
    exact = [tables.at(ring(ranks), size) for size in sizes]
    within = min(known) <= ranks <= max(known)
    if within or ranks > max(known):
        assert [reading.seconds for reading in read] == pytest.approx(exact, rel=1e-9)
    else:
        assert all(reading.seconds >= e * (1 - 1e-9) for reading, e in zip(read, exact, strict=True))


def test_what_an_unseen_group_size_may_take_is_bounded():
    # Measured times that fall with n: the two say nothing of steps or traffic.
    odd = [table({1000: 50, 4000: 60}, 4), table({1000: 40, 4000: 50}, 8)]
    times = [tables.read(odd, "all-reduce", (n, 1), "nvlink", 1000).seconds for n in (2, 4, 6, 8, 16)]
    assert times[0] == pytest.approx(50e-6)
    assert times[2] == pytest.approx(40e-6, rel=0.3)
    assert times[4] == pytest.approx(40e-6)


def test_readings_that_are_not_of_the_timed_thing_are_worth_less():
    made = [ring(2), ring(8)]
    grades = [tables.read(made, "all-reduce", (2, 1), "nvlink", size).grade for size in (10, 1000, 10**6, 10**7)]
    assert grades == ["prior", "measured", "measured", "prior"]
    assert tables.read(made, "all-reduce", (4, 1), "nvlink", 1000).grade == "prior"
    assert tables.read(made, "all-reduce", (4, 1), "nvlink", 1000).method == "tables of 2 and 8 ranks"


@pytest.mark.parametrize(
    ("op", "shape", "link"),
    [("all-gather", (4, 1), "nvlink"), ("all-reduce", (4, 1), "pcie"), ("all-reduce", (4, 2), "nvlink")],
)
def test_tables_of_other_things_are_not_used(op, shape, link):
    assert tables.read([ring(4), ring(2)], op, shape, link, 1000) is None


def test_one_table_says_nothing_of_other_group_sizes():
    assert tables.read([ring(4)], "all-reduce", (8, 1), "nvlink", 1000) is None


def test_groups_across_hosts_read_from_groups_of_as_many_ranks_a_host():
    made = [table({1000: 10}, 4, hosts=2, link="network"), table({1000: 20}, 16, hosts=8, link="network")]
    assert tables.read(made, "all-reduce", (8, 4), "network", 1000) is not None
    assert tables.read(made, "all-reduce", (8, 2), "network", 1000) is None


def test_a_collective_takes_exactly_the_tables_time(small):
    made = table({10**6: 300, 10**7: 2000})
    profile = small(collective_tables=document(made))
    for size, picoseconds in ((10**6, 300 * 10**6), (10**7, 2000 * 10**6), (4 * 10**6, 866_666_667)):
        work = Workload()
        node = work.collective("all-reduce", [f"host0/gpu{n}" for n in range(4)], size)
        result = simulate(work, profile)
        assert result.picoseconds == pytest.approx(picoseconds, abs=1)
        assert result.method(node) == "table"
        assert result.grade == "measured"


def test_a_table_faster_than_the_links_is_believed(small):
    profile = small(rate="1 MB/s", collective_tables=document(table({10**6: 300, 10**7: 2000})))
    work = Workload()
    work.collective("all-reduce", [f"host0/gpu{n}" for n in range(4)], 10**7)
    assert simulate(work, profile).picoseconds == pytest.approx(2000 * 10**6, abs=1)


def test_two_collectives_from_a_table_share_their_links(small):
    # Half of the links' capacity is used by one; three together need half as much again as there is.
    made = table({10**6: 310, 10**7: 3010})
    profile = small(collective_tables=document(made))
    seconds = []
    for count in (1, 2, 3):
        work = Workload()
        for index in range(count):
            work.collective("all-reduce", [f"host0/gpu{n}" for n in range(4)], 10**7, stream=str(index))
        seconds.append(simulate(work, profile).seconds)
    assert seconds[0] == pytest.approx(3010e-6)
    assert seconds[1] == pytest.approx(3010e-6)
    assert seconds[2] == pytest.approx(10e-6 + 1.5 * 3000e-6)


def test_no_bytes_cost_the_tables_latency(small):
    profile = small(collective_tables=document(table({10**6: 300, 10**7: 2100})))
    work = Workload()
    work.collective("all-reduce", [f"host0/gpu{n}" for n in range(4)], 0)
    assert simulate(work, profile).picoseconds == 100 * 10**6


def test_groups_without_a_table_keep_to_the_librarys_options(small):
    profile = small(collective_tables=document(table({10**6: 300, 10**7: 2000})))
    work = Workload()
    work.collective("all-reduce", ["host0/gpu0", "host0/gpu1"], 10**6)
    assert collective(work.nodes[0], Topology(profile)).method == "ring"


def test_directly_linked_groups_read_their_own_table_only(shipped):
    profile = shipped("v100x8-nvlink")
    sources = profile.sources | {"test": "test"}
    profile = profile.model_copy(update={"collective_tables": [ring(2), ring(8)], "sources": sources})
    topology = Topology(profile)
    work = Workload()
    for ranks in (2, 4, 8):
        work.collective("all-reduce", [f"host0/gpu{n}" for n in range(ranks)], 10**5)
    methods = [collective(node, topology).method for node in work.nodes]
    assert methods[0] == methods[2] == "table"
    assert methods[1] in {option.name for option in profile.collectives}


RESIDUALS = [
    {"least": 1000.0, "most": 4000.0, "q10": -0.2, "q90": 0.3, "count": 9},
    {"least": 5000.0, "most": 10_000.0, "q10": -0.02, "q90": 0.03, "count": 90},
]


def with_residuals(points, ranks=4):
    return CollectiveTable.model_validate({**table(points, ranks).model_dump(mode="json"), "residuals": RESIDUALS})


@pytest.mark.parametrize(
    ("nbytes", "spread"),
    [(1000, (0.2, 0.3)), (4500, (0.02, 0.03)), (10_000, (0.02, 0.03)), (999, (0.4, 0.6)), (10_001, (0.04, 0.06))],
)
def test_a_band_is_what_the_table_was_off_by_at_that_size(nbytes, spread):
    made = with_residuals({1000: 10, 10_000: 40})
    assert tables.read([made], "all-reduce", (4, 1), "nvlink", nbytes).spread == pytest.approx(spread)


def test_a_table_without_residuals_claims_its_grades_band(small):
    assert tables.read([ring(4)], "all-reduce", (4, 1), "nvlink", 1000).spread is None


def test_the_band_of_an_unseen_group_size_reaches_over_other_assumptions():
    made = [with_residuals({1000: 10, 10_000: 40}, 2), with_residuals({1000: 40, 10_000: 160}, 8)]
    read = tables.read(made, "all-reduce", (4, 1), "nvlink", 8000)
    low, high = (tables.at(one, 8000) for one in made)
    # Time geometric in log n is the lowest of the alternatives, the reading itself the highest.
    geometric = math.sqrt(low * high)
    assert read.spread[0] == pytest.approx(math.hypot(math.log(read.seconds / geometric), 0.02, 0.02))
    assert read.spread[1] == pytest.approx(math.hypot(0.03, 0.03))


def test_a_workloads_band_is_that_of_the_table_it_reads(small):
    profile = small(collective_tables=document(with_residuals({1000: 10, 10_000: 40})))
    work = Workload()
    work.collective("all-reduce", [f"host0/gpu{n}" for n in range(4)], 8000)
    result = simulate(work, profile)
    assert [end / result.seconds for end in result.band()] == pytest.approx([math.exp(-0.02), math.exp(0.03)])


def test_more_bytes_never_take_less_time(small):
    made = document(table({1000: 20, 4000: 20, 10**6: 90}, 2), table({1000: 30, 10**6: 200}, 4))
    topology = Topology(small(gpus=8, collective_tables=made))
    for ranks in (2, 3, 4, 8):
        work = Workload()
        for size in (0, 10, 999, 1001, 3000, 10**5, 10**6, 10**8):
            work.collective("all-reduce", [f"host0/gpu{n}" for n in range(ranks)], size)
        times = [idle_time(collective(node, topology)) for node in work.nodes]
        assert all(a <= b for a, b in pairwise(times))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": [{"bytes": "2 B", "time": "1 us"}, {"bytes": "2 B", "time": "1 us"}]}, "rising, distinct `bytes`"),
        ({"points": [{"bytes": "2 B", "time": "2 us"}, {"bytes": "4 B", "time": "1 us"}]}, "cannot take less time"),
        ({"hosts": 3}, "4 ranks cannot be spread equally over 3 hosts"),
    ],
)
def test_mistakes_in_a_table_are_named(small, change, message):
    (made,) = document(table({1000: 10}))
    with pytest.raises(ValidationError, match=message):
        small(collective_tables=[made | change])


def test_two_tables_of_one_thing_are_refused(small):
    with pytest.raises(ValidationError, match="there are two tables of all-reduce over 4 ranks"):
        small(collective_tables=document(table({1000: 10}), table({2000: 10})))
