"""Each fault against what one can work out on paper."""

import json
import math

import pytest

from emulation.evaluate import simulate
from emulation.faults import FAULTS, FaultError
from emulation.graph import Workload
from emulation.profile import Profile
from emulation.scenario import Scenario
from emulation.topology import Topology

GPUS = [f"host0/gpu{n}" for n in range(4)]
MS = 10**9
"""Picoseconds."""


def faults(*items):
    return FAULTS.validate_json(json.dumps(items))


def run(work, profile, *items, **options):
    return simulate(work, profile, faults=faults(*items), **options)


def kernels(count=1, devices=("host0/gpu0",)):
    """Kernels of 1 ms each, one after another on each device."""
    work = Workload()
    for device in devices:
        for _ in range(count):
            work.compute(device, 1e9)
    return work


def message(nbytes=10**7, src="host0/gpu0", dst="host0/gpu1"):
    """1 ms at 10 GB/s."""
    work = Workload()
    work.transfer(src, dst, nbytes)
    return work


# slow ranks


def test_slow_rank_takes_its_factor_longer_and_the_others_do_not(small):
    work = kernels(devices=GPUS)
    result = run(work, small(), {"kind": "slow-rank", "device": "host0/gpu2", "factor": 1.5})
    assert [result.finish(n) for n in range(4)] == [1e-3, 1e-3, 1.5e-3, 1e-3]


def test_rank_counts_accelerators_in_order(small):
    result = run(kernels(devices=GPUS), small(), {"kind": "slow-rank", "rank": 3, "factor": 2})
    assert [result.finish(n) for n in range(4)] == [1e-3, 1e-3, 1e-3, 2e-3]


def test_slow_for_a_while_slows_the_part_that_falls_into_it(small):
    # 1 ms at full pace, then 1 ms at half pace is half a kernel, then full pace again.
    slow = {"kind": "slow-rank", "device": "host0/gpu0", "factor": 2, "from": "1 ms", "to": "2 ms"}
    result = run(kernels(2), small(), slow)
    assert result.picoseconds == 2.5 * MS


def test_overlapping_faults_multiply(small):
    slow = {"kind": "slow-rank", "device": "host0/gpu*", "factor": 2}
    window = slow | {"factor": 3, "from": "0 s", "to": "1 h"}
    assert run(kernels(), small(), slow, slow).picoseconds == 4 * MS
    assert run(kernels(), small(), slow, window).picoseconds == 6 * MS


@pytest.mark.parametrize("window", [{}, {"from": "0 s", "to": "1 h"}], ids=["throughout", "for a while"])
def test_slow_process_gets_its_share_of_the_cores_and_makes_less_of_it(document, window):
    # Three single-threaded processes on two cores: 3 core-ms in 1.5 ms. The one that is twice as slow has 1 of its 2
    # core-ms by then, and a core to itself for the other.
    profile = Profile.model_validate(_processes(document, 3))
    work = kernels(devices=[f"host0/proc{n}" for n in range(3)])
    assert simulate(work, profile).picoseconds == 1.5 * MS
    result = run(work, profile, {"kind": "slow-rank", "device": "host0/proc0", "factor": 2, **window})
    assert [result.finish(n) for n in range(3)] == [2.5e-3, 1.5e-3, 1.5e-3]


# jitter


def test_jitter_spreads_kernels_lognormally_around_their_time(small):
    result = run(kernels(2000), small(), {"kind": "jitter", "sigma": 0.1})
    logs = [math.log((result.finish(n) - result.start(n)) / 1e-3) for n in range(2000)]
    mean = sum(logs) / len(logs)
    assert abs(mean) < 0.01
    assert math.sqrt(sum((x - mean) ** 2 for x in logs) / len(logs)) == pytest.approx(0.1, rel=0.05)


def test_another_rank_or_another_seed(small):
    jitter = {"kind": "jitter", "sigma": 0.2}
    alone, together = (run(kernels(5, devices), small(), jitter) for devices in (GPUS[:1], GPUS[:2]))
    assert [alone.finish(n) for n in range(5)] == [together.finish(n) for n in range(5)]
    assert together.finish(9) != together.finish(4)
    assert run(kernels(5), small(), jitter, seed=1).picoseconds != alone.picoseconds


def test_jitter_of_one_family_leaves_the_others(small):
    work = Workload()
    work.compute("host0/gpu0", 1e9, family="matmul")
    work.compute("host0/gpu1", 1e9, family="attention")
    result = run(work, small(), {"kind": "jitter", "sigma": 0.2, "family": "matmul"})
    assert result.finish(0) != 1e-3
    assert result.finish(1) == 1e-3


# links


@pytest.mark.parametrize(
    "name",
    ["host0/gpu0>host0/switch0", "host0/gpu0>*", "nvlink", "host0/gpu0"],
    ids=["name", "pattern", "kind and name in the profile", "port"],
)
def test_slow_link_has_part_of_its_capacity_by_any_of_its_names(small, name):
    result = run(message(), small(), {"kind": "slow-link", "link": name, "factor": 0.25})
    assert result.picoseconds == 4 * MS


def test_a_link_of_the_profile_is_named_by_its_own_name(small):
    work = message(src="host0/gpu0", dst="host1/gpu0")
    result = run(work, small(hosts=2), {"kind": "slow-link", "link": "wire", "factor": 0.5})
    assert result.picoseconds == 2 * MS


def test_other_direction_is_not_slow(small):
    assert run(message(), small(), {"kind": "slow-link", "link": "host0/gpu1>*", "factor": 0.25}).picoseconds == MS


def test_slow_link_for_a_while(small):
    # 0.5 ms full: half is through; 1 ms at a quarter: another quarter; the last quarter takes 0.25 ms.
    slow = {"kind": "slow-link", "link": "host0/gpu0>*", "factor": 0.25, "from": "0.5 ms", "to": "1.5 ms"}
    assert run(message(), small(), slow).picoseconds == 1.75 * MS


def test_slow_link_slows_a_ring_by_its_factor(small):
    work = Workload()
    work.collective("all-reduce", GPUS, 10**7)
    clean = simulate(work, small())
    slow = run(work, small(), {"kind": "slow-link", "link": "host0/gpu3>*", "factor": 0.5})
    # 1 us and six steps of 2 us of latency; 1.5 times the bytes over each link.
    assert clean.picoseconds == 13 * 10**6 + 1.5 * MS
    assert slow.picoseconds == 13 * 10**6 + 3 * MS


def test_slow_link_slows_only_its_phase_of_a_two_level_all_reduce(small, document):
    option = document()["collectives"][0] | {"name": "two-level", "algorithm": "two-level"}
    profile = small(hosts=2, collectives=[option])
    work = Workload()
    work.collective("all-reduce", [f"host{h}/gpu{g}" for h in (0, 1) for g in range(4)], 10**7)
    clean = simulate(work, profile).picoseconds
    slow = run(work, profile, {"kind": "slow-link", "link": "wire", "factor": 0.5}).picoseconds
    # Across hosts: four rails of S/4 each share one adapter.
    assert slow - clean == pytest.approx(1 * MS, rel=1e-9)


def test_loss_is_first_order_go_back_n(small):
    # Round trip between the processors on both sides: twice 1 us on each of two links; 10 GB/s x 4 us / 1000 B = 40.
    lossy = {"kind": "loss", "link": "host0/gpu0>host0/switch0", "p": 0.05, "mtu": "1000 B"}
    result = run(message(), small(latency="1 us"), lossy)
    assert result.seconds == pytest.approx(2e-6 + 1e-3 * (1 + 0.05 * 40), rel=1e-9)
    known = lossy | {"round_trip": "10 us"}
    assert run(message(), small(), known).seconds == pytest.approx(1e-3 * (1 + 0.05 * 100), rel=1e-9)


def test_extra_latency_is_paid_once_by_a_message_and_at_each_step_by_a_ring(small):
    late = {"kind": "extra-latency", "link": "host0/gpu0>host0/switch0", "latency": "10 us"}
    assert run(message(), small(), late).picoseconds == MS + 10**7
    work = Workload()
    work.collective("all-reduce", GPUS, 10**7)
    # Six steps; in the mean one of the ring's four hops is late.
    assert run(work, small(), late).picoseconds - simulate(work, small()).picoseconds == 6 * 10**7 / 4


def test_latency_varies_within_its_jitter_and_with_the_seed(small):
    late = {"kind": "extra-latency", "link": "host0/gpu0>*", "latency": "10 us", "jitter": "4 us"}
    work = Workload()
    for _ in range(200):
        work.transfer("host0/gpu0", "host0/gpu1", 0, stream="one")
    result = run(work, small(), late)
    times = [result.finish(n) - result.start(n) for n in range(200)]
    assert 6e-6 <= min(times) < 6.5e-6
    assert 13.5e-6 < max(times) <= 14e-6
    assert run(work, small(), late, seed=1).picoseconds != result.picoseconds


# links that are down


def test_flow_waits_for_a_link_that_comes_back(small):
    down = {"kind": "link-down", "link": "host0/gpu0", "at": "0.5 ms", "until": "3 ms", "detection": "1 ms"}
    result = run(message(), small(), down)
    assert result.picoseconds == 3.5 * MS
    assert result.outcome.state == "completed"


def test_link_that_stays_down_aborts_when_it_is_detected_and_names_itself(small):
    down = {"kind": "link-down", "link": "host0/gpu0>host0/switch0", "at": "0.5 ms", "detection": "1 ms"}
    work = message()
    work.compute("host0/gpu2", 1e9, after=[0])
    done = work.compute("host0/gpu3", 1e9)
    result = run(work, small(), down)
    assert result.outcome.state == "aborted"
    assert result.outcome.at == 1.5e-3
    assert "host0/gpu0>host0/switch0" in result.outcome.reason
    assert result.seconds == 1.5e-3
    assert result.finish(0) == result.finish(1) == math.inf
    assert result.finish(done) == 1e-3


def test_what_changes_elsewhere_later_does_not_put_the_end_off(small):
    down = {"kind": "link-down", "link": "host0/gpu0", "at": "0 s", "detection": "1 ms"}
    later = {"kind": "slow-rank", "rank": 3, "factor": 2, "from": "1 h"}
    assert run(message(), small(), down, later).outcome.at == 1e-3


def test_down_wins_over_slow(small):
    down = {"kind": "link-down", "link": "host0/gpu0", "at": "0 s", "until": "1 ms", "detection": "0 s"}
    slow = {"kind": "slow-link", "link": "host0/gpu0", "factor": 0.5}
    assert run(message(), small(), down, slow).picoseconds == 3 * MS


def _two_ways(document, second="5 GB/s"):
    """GPUs behind two switches, of which the second is slower."""
    found = document()
    host = found["hosts"][0]
    host["switches"].append({"name": "spare"})
    other = {"ends": ["gpu", "spare"], "name": "spare", "kind": "nvlink"}
    rate = {"value": second, "grade": "measured", "source": "test"}
    host["links"].append(host["links"][0] | other | {"rate": rate})
    return Profile.model_validate(found)


def test_flow_goes_another_way_once_the_link_is_known_to_be_down(document):
    # Half of it is through at 0.5 ms; nothing moves until 1.5 ms; the rest takes 1 ms at half the rate.
    down = {"kind": "link-down", "link": "host0/switch0", "at": "0.5 ms", "detection": "1 ms"}
    result = run(message(), _two_ways(document), down)
    assert result.picoseconds == 2.5 * MS
    assert result.outcome.state == "completed"


def test_flow_that_starts_after_detection_takes_the_other_way_at_once_and_goes_back_later(document):
    down = {"kind": "link-down", "link": "host0/switch0", "at": "0 s", "until": "2 ms", "detection": "0.5 ms"}
    work = message(0)
    wait = work.host("host0/gpu0", 1e-3)
    work.transfer("host0/gpu0", "host0/gpu1", 10**7, after=[wait])
    # From 1 ms to 2 ms at 5 GB/s, the other half at 10 GB/s.
    assert run(work, _two_ways(document), down).picoseconds == 2.5 * MS


# deaths of hosts


def _step(count=10):
    return kernels(count, ("host0/gpu0", "host1/gpu0"))


def test_death_aborts_when_it_is_detected_and_the_others_go_on_until_then(small):
    result = run(_step(), small(hosts=2), {"kind": "node-death", "host": "host1", "at": "2.5 ms", "detection": "3 ms"})
    assert result.outcome.state == "aborted"
    assert result.outcome.at == 5.5e-3
    assert "host1 died at 2.5 ms" in result.outcome.reason
    assert [result.finish(n) < math.inf for n in range(10)] == [True] * 5 + [False] * 5
    assert [result.finish(n) < math.inf for n in range(10, 20)] == [True] * 2 + [False] * 8


def test_death_after_the_end_or_of_an_idle_host_changes_nothing(small):
    late = {"kind": "node-death", "host": "host1", "at": "11 ms", "detection": "1 ms"}
    assert run(_step(), small(hosts=2), late).outcome.state == "completed"
    early = late | {"at": "1 ms"}
    idle = run(kernels(10), small(hosts=2), early)
    assert (idle.outcome.state, idle.picoseconds) == ("completed", 10 * MS)


def test_flow_of_a_dead_host_leaves_its_bandwidth_to_the_others(small):
    work = Workload()
    work.transfer("host0/gpu0", "host2/gpu0", 10**7)
    other = work.transfer("host1/gpu0", "host2/gpu1", 10**7)
    death = {"kind": "node-death", "host": "host0", "at": "1 ms", "detection": "10 ms"}
    result = run(work, small(hosts=3), death)
    # They share host2's adapter for 1 ms; the other half then flows at full rate.
    assert result.finish(other) == 1.5e-3
    assert result.outcome.at == 11e-3


def test_restart_repeats_what_was_done_since_the_checkpoint(small):
    policy = {
        "kind": "restart",
        "checkpoint_interval": "2 ms",
        "checkpoint_cost": "0.1 ms",
        "restart_cost": "4 ms",
    }
    death = {"kind": "node-death", "host": "host1", "at": "5 ms", "detection": "1 ms", "policy": policy}
    result = run(_step(), small(hosts=2), death)
    # Checkpoints at 2.1 and 4.2 ms; 0.8 ms are lost; on at 10 ms with 6 ms of work and two more checkpoints.
    assert result.picoseconds == 16.2 * MS
    assert result.outcome.state == "restarted"
    assert result.outcome.restarts == 1
    assert result.outcome.lost == pytest.approx(5.8e-3)
    assert result.finish(1) == 2e-3
    assert result.finish(3) == 4.1e-3
    assert result.start(4) == 10e-3


def test_death_while_a_checkpoint_is_written_loses_it(small):
    policy = {"kind": "restart", "checkpoint_interval": "2 ms", "checkpoint_cost": "1 ms", "restart_cost": "0 s"}
    death = {"kind": "node-death", "host": "host1", "at": "2.5 ms", "detection": "0 s", "policy": policy}
    # From the beginning again at 2.5 ms: 10 ms of work, four checkpoints.
    assert run(_step(), small(hosts=2), death).picoseconds == 16.5 * MS


def test_elastic_goes_on_with_fewer_hosts_and_loses_nothing(small):
    policy = {"kind": "elastic", "remaining": 1, "reconfiguration": "2 ms"}
    death = {"kind": "node-death", "host": "host1", "at": "4 ms", "detection": "1 ms", "policy": policy}
    result = run(_step(), small(hosts=2), death)
    assert result.picoseconds == (4 + 1 + 2 + 2 * 6) * MS
    assert result.outcome.lost == pytest.approx(3e-3)


# memory


def test_memory_pressure_leaves_less_and_the_verdict_says_when_it_was_too_little(small):
    work = kernels()
    work.alloc("host0/gpu0", 5 * 10**8, after=[0], name="activations")
    pressure = {"kind": "memory-pressure", "device": "host0/gpu0", "bytes": "500 MB"}
    assert simulate(work, small()).outcome.state == "completed"
    result = run(work, small(), pressure)
    assert result.outcome.state == "out of memory"
    assert result.outcome.at == 1e-3
    assert "host0/gpu0" in result.outcome.reason
    use = result.peak_memory["host0/gpu0"]
    assert (use.capacity, use.fits) == (5 * 10**8, False)
    assert run(work, small(), pressure | {"bytes": "100 MB"}).outcome.state == "completed"


# what all of them have in common

NOTHING = [
    {"kind": "slow-rank", "device": "*", "factor": 1},
    {"kind": "slow-rank", "device": "*", "factor": 5, "from": "1 us", "to": "1 us"},
    {"kind": "jitter", "sigma": 0},
    {"kind": "slow-link", "link": "nvlink", "factor": 1},
    {"kind": "link-down", "link": "nvlink", "at": "1 us", "until": "1 us", "detection": "0 s"},
    {"kind": "loss", "link": "network", "p": 0},
    {"kind": "extra-latency", "link": "network", "latency": "0 s"},
    {"kind": "memory-pressure", "device": "host0/gpu0", "bytes": "0 B"},
]


@pytest.mark.parametrize("fault", NOTHING, ids=lambda fault: fault["kind"])
def test_a_fault_that_changes_nothing_changes_no_bit(small, fault):
    work = _step(3)
    work.collective("all-reduce", ["host0/gpu0", "host1/gpu0"], 12345678, after=[2, 5])
    work.transfer("host0/gpu1", "host1/gpu1", 3333333)
    work.alloc("host0/gpu0", 1000)
    profile = small(hosts=2, latency="1.7 us")
    plain = json.dumps(simulate(work, profile).summary())
    assert json.dumps(run(work, profile, fault).summary()) == plain
    events = json.dumps(simulate(work, profile, evaluator="events").summary())
    assert json.dumps(run(work, profile, fault, evaluator="events").summary()) == events


@pytest.mark.parametrize(
    ("fault", "blamed", "text"),
    [
        ({"kind": "slow-rank", "device": "host0/gpu9", "factor": 2}, (0, "device"), "did you mean 'host0/gpu"),
        ({"kind": "slow-rank", "rank": 4, "factor": 2}, (0, "rank"), "ranks 0 to 3"),
        ({"kind": "jitter", "sigma": 0.1, "devices": ["host0/gpu0", "gpu"]}, (0, "devices", 1), "no device 'gpu'"),
        ({"kind": "slow-link", "link": "host0/gpu0>switch0", "factor": 0.5}, (0, "link"), "mean 'host0/gpu0>host0/swi"),
        ({"kind": "loss", "link": "nvlnk", "p": 0.1}, (0, "link"), "did you mean 'nvlink'"),
        ({"kind": "slow-link", "link": "host0/cores", "factor": 0.5}, (0, "link"), "no link 'host0/cores'"),
        ({"kind": "node-death", "host": "host1", "at": "0 s", "detection": "0 s"}, (0, "host"), "mean 'host0'"),
    ],
)
def test_a_name_the_cluster_does_not_have_is_refused_before_the_run(small, fault, blamed, text):
    with pytest.raises(FaultError, match=text) as caught:
        run(kernels(), small(), fault)
    assert caught.value.path == blamed


def test_all_deaths_need_one_policy_and_somebody_has_to_remain(small):
    death = {"kind": "node-death", "host": "host1", "at": "1 s", "detection": "0 s"}
    elastic = death | {"policy": {"kind": "elastic", "remaining": 2, "reconfiguration": "0 s"}}
    with pytest.raises(FaultError, match="the same policy"):
        run(
            kernels(),
            small(hosts=2),
            death,
            death | {"policy": {"kind": "elastic", "remaining": 1, "reconfiguration": "0 s"}},
        )
    with pytest.raises(FaultError, match="2 of 2 hosts cannot remain"):
        run(kernels(), small(hosts=2), elastic)


def test_a_scenario_says_whom_it_touches(small):
    topology = Topology(small(hosts=2))
    items = faults(
        {"kind": "slow-rank", "device": "host0/gpu1", "factor": 2},
        {"kind": "slow-link", "link": "host1/nic0>*", "factor": 0.5},
        {"kind": "extra-latency", "link": "wire", "latency": "1 us"},
    )
    scenario = Scenario(items, topology)
    assert scenario.is_static
    assert scenario.compute_factor("host0/gpu1") == 2
    assert scenario.compute_factor("host0/gpu2") == 1
    assert scenario.link_factor("host1/nic0>fabric/leaf0") == 0.5
    assert scenario.link_factor("host0/nic0>fabric/leaf0") == 1
    assert scenario.extra_latency(topology.route("host0/gpu0", "host1/gpu0")) == 2e-6
    assert scenario.touched_devices() == {"host0/gpu1"}
    assert "host1/nic0>fabric/leaf0" in scenario.touched_links()


def test_static_faults_are_swept_and_agree_with_the_events(small):
    work = _step(3)
    work.collective("all-reduce", ["host0/gpu0", "host1/gpu0"], 12345678, after=[2, 5])
    items = faults(
        {"kind": "slow-rank", "rank": 4, "factor": 1.7},
        {"kind": "slow-link", "link": "wire", "factor": 0.3},
        {"kind": "loss", "link": "wire", "p": 0.001},
        {"kind": "extra-latency", "link": "wire", "latency": "3 us", "jitter": "1 us"},
        {"kind": "jitter", "sigma": 0.1},
    )
    swept, driven = (simulate(work, small(hosts=2), faults=items, evaluator=e) for e in ("sweep", "events"))
    assert swept.events == 0
    assert swept.picoseconds == driven.picoseconds


# cores and overlap


def _processes(document, count, cores=2, launch="0 s"):
    found = document()
    host = found["hosts"][0] | {"cores": cores, "devices": [{"name": "proc", "model": "cpu", "count": count}]}
    host["links"] = [host["links"][0] | {"ends": ["proc", "switch"]}, *host["links"][1:]]
    found["models"]["cpu"]["launch"] = {"value": launch, "grade": "measured", "source": "test"}
    return found | {"hosts": [host]}


@pytest.mark.parametrize(
    ("processes", "cores", "milliseconds"), [(1, 2, 1), (2, 2, 1), (3, 2, 1.5), (4, 2, 2), (4, 3, 4 / 3)]
)
def test_processes_share_cores_and_none_gets_more_than_one(document, processes, cores, milliseconds):
    profile = Profile.model_validate(_processes(document, processes, cores))
    result = simulate(kernels(devices=[f"host0/proc{n}" for n in range(processes)]), profile)
    assert result.picoseconds == round(milliseconds * MS)


def test_streams_of_one_processor_share_its_cores(small):
    work = Workload()
    for stream in "abc":
        work.compute("host0/cpu", 1e9, stream=stream)
    assert simulate(work, small()).picoseconds == 1.5 * MS


def test_launching_takes_a_core_as_well_and_a_lone_kernel_takes_what_it_takes(document):
    profile = Profile.model_validate(_processes(document, 3, launch="7 us"))
    work = kernels(devices=[f"host0/proc{n}" for n in range(3)])
    assert simulate(work, profile).picoseconds == 1.5 * (7 * 10**6 + MS)
    work = Workload()
    last = work.compute("host0/proc0", 1234567890.123)
    for n in (1, 2):
        last = work.compute(f"host0/proc{n}", 1234567890.123, after=[last])
    roomy = Profile.model_validate(_processes(document, 3, cores=3, launch="7 us"))
    assert simulate(work, profile).picoseconds == simulate(work, roomy).picoseconds == 3 * (7 * 10**6 + 1234567890)


@pytest.mark.parametrize(("processes", "milliseconds"), [(1, 1), (2, 1.25), (4, 2.5)])
def test_kernels_that_slow_one_another_down_take_more_than_a_core_each(document, processes, milliseconds):
    found = _processes(document, processes)
    contention = {"contention": {"value": 1.25, "grade": "measured", "source": "test"}}
    found["models"]["cpu"]["compute"]["fp32"]["families"] = {"matmul": contention}
    work = Workload()
    for n in range(processes):
        work.compute(f"host0/proc{n}", 1e9, family="matmul")
    assert simulate(work, Profile.model_validate(found)).picoseconds == round(milliseconds * MS)


@pytest.mark.parametrize("computing", [0, 1, 2])
def test_collective_between_processes_needs_cores_that_others_compute_on(document, computing):
    found = _processes(document, 4)
    points = [{"bytes": "1 B", "time": "1 ms"}, {"bytes": "1 MB", "time": "2 ms"}]
    table = {"op": "all-reduce", "ranks": 2, "link": "nvlink", "grade": "measured", "source": "test"}
    profile = Profile.model_validate(found | {"collective_tables": [table | {"points": points, "processor": 0.75}]})
    work = Workload()
    both = work.collective("all-reduce", ["host0/proc0", "host0/proc1"], 10**6)
    for n in (0, 1, 2, 3):
        # Enough processes that compute at some time for cores to be short; how many at once is the case.
        after = [] if n >= 4 - computing else [both]
        work.compute(f"host0/proc{n}", 1e10 if n >= 4 - computing else 1e6, after=after)
    # 1.5 cores for the ranks; with one more the progress is max-min fair: 2 / (1.5 + 1) for each, with two 2 / 3.5.
    rate = min(1.0, 2 / (1.5 + computing))
    assert simulate(work, profile).finish(both) == pytest.approx(2e-3 / rate, rel=1e-9)


def _overlapping(document, **parts):
    found = document()
    found["models"]["gpu"]["overlap"] = {
        kind: {"value": value, "grade": "prior", "source": "test"} for kind, value in parts.items()
    }
    return Profile.model_validate(found)


def test_kernel_slows_down_for_as_long_as_its_device_communicates(document):
    profile = _overlapping(document, nvlink=0.25, network=0.02)
    work = kernels(2, GPUS[:2])
    work.transfer("host0/gpu0", "host0/gpu2", 10**7)
    result = simulate(work, profile)
    # In the first millisecond 0.8 ms of work is done.
    assert result.finish(1) == 2.2e-3
    assert result.finish(3) == 2e-3
    assert result.grade == "prior"


def test_communication_on_links_without_a_figure_slows_nobody(document):
    work = kernels(2)
    work.transfer("host0/gpu0", "host0/gpu2", 10**7)
    result = simulate(work, _overlapping(document, network=0.5))
    assert (result.picoseconds, result.grade) == (2 * MS, "measured")


def test_two_communications_slow_down_as_the_worst_of_them(document):
    work = kernels(1)
    for peer in GPUS[1:3]:
        work.transfer("host0/gpu0", peer, 10**8)
    assert simulate(work, _overlapping(document, nvlink=0.25)).finish(0) == 1.25e-3


def test_slow_rank_and_overlap_multiply(document):
    work = kernels(1)
    work.transfer("host0/gpu0", "host0/gpu1", 10**8)
    slow = {"kind": "slow-rank", "device": "host0/gpu0", "factor": 2, "from": "0 s", "to": "1 h"}
    assert run(work, _overlapping(document, nvlink=0.25), slow).finish(0) == 2.5e-3


def test_sweep_is_refused_where_time_feeds_back(document):
    work = kernels(1)
    work.transfer("host0/gpu0", "host0/gpu1", 10**8)
    with pytest.raises(ValueError, match="changes while it runs"):
        simulate(work, _overlapping(document, nvlink=0.25), evaluator="sweep")


EVERY = [
    {"kind": "slow-rank", "rank": 0, "factor": 2, "from": "1 us", "to": "2 us", "name": "hot"},
    {"kind": "jitter", "sigma": 0.1, "devices": ["host0/gpu0"]},
    {"kind": "slow-link", "link": "wire", "factor": 0.5},
    {"kind": "link-down", "link": "wire", "at": "1 us", "detection": "2 us"},
    {"kind": "loss", "link": "wire", "p": "1 %"},
    {"kind": "extra-latency", "link": "wire", "latency": "3 us", "jitter": "1 us"},
    {"kind": "node-death", "host": "host0", "at": "1 s", "detection": "2 s"},
    {"kind": "memory-pressure", "device": "*", "bytes": "1 GiB"},
    {"kind": "mtbf", "host": "1 d", "checkpoint_cost": "1 s", "restart_cost": "1 min", "job": "1 d"},
    {
        "kind": "mtbf",
        "device": "1 d",
        "checkpoint_interval": "90 s",
        "checkpoint_cost": "1 s",
        "restart_cost": "1 s",
        "job": "1 d",
    },
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("fault", EVERY, ids=lambda fault: fault["kind"])
def test_a_fault_survives_being_written_down(fault):
    (read,) = faults(fault)
    assert faults(read.model_dump(mode="json", by_alias=True)) == [read]


# ways around, on fabrics


def _leaf_spine(document):
    wire = {"kind": "network", "rate": _figure("10 GB/s"), "latency": _figure("0 s")}
    topology = {"kind": "leaf-spine", "leaf_ports": 2, "spines": 2, "ends": "nic", "link": wire}
    return Profile.model_validate(document(hosts=4, gpus=1) | {"fabric": {"topology": topology}})


def _figure(value):
    return {"value": value, "grade": "measured", "source": "test"}


def test_flow_between_leaves_takes_the_other_spine(document):
    profile = _leaf_spine(document)
    topology = Topology(profile)
    usual = topology.route("host0/gpu0", "host2/gpu0").links
    spine = next(name for n in usual if "spine" in (name := topology.links[n].name).split(">")[1])
    down = {"kind": "link-down", "link": spine, "at": "0.25 ms", "detection": "0.5 ms"}
    result = run(message(src="host0/gpu0", dst="host2/gpu0"), profile, down)
    assert result.outcome.state == "completed"
    assert result.picoseconds == 1.5 * MS
    (stage,) = Scenario(faults(down), topology).stages[2:]
    around = stage.topology.route("host0/gpu0", "host2/gpu0").links
    assert len(around) == len(usual)
    assert not set(around) & stage.avoided


def test_collective_goes_on_around_a_dead_link_and_only_what_crossed_it_moves(document):
    profile = _leaf_spine(document)
    work = Workload()
    group = [f"host{n}/gpu0" for n in range(4)]
    work.collective("all-reduce", group, 10**7)
    clean = simulate(work, profile).picoseconds
    topology = Topology(profile)
    usual = topology.route("host1/gpu0", "host2/gpu0").links
    spine = next(name for n in usual if "spine" in (name := topology.links[n].name).split(">")[1])
    down = {"kind": "link-down", "link": spine, "at": "0.5 ms", "detection": "0 s"}
    assert run(work, profile, down).picoseconds == clean
    late = run(work, profile, down | {"detection": "2 ms"}).picoseconds
    assert late == clean + 2 * MS


def test_accelerators_and_third_hosts_are_no_way_around(small):
    down = {"kind": "link-down", "link": "host0/nic0", "at": "0 s", "detection": "0 s"}
    result = run(message(src="host0/gpu0", dst="host1/gpu0"), small(hosts=3), down)
    assert result.outcome.state == "aborted"
    assert "host0/nic0>fabric/leaf0" in result.outcome.reason
