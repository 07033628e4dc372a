"""GPT-3 175B on a thousand and on sixteen thousand emulated GPUs: one step of all ranks, by each evaluator.

Each round does everything from the profile to the step time. The peer, in the same run, is the obvious way: SimPy on a
graph with a node for every rank, on a cluster small enough for it.
"""

import time

import pytest

from emulation.evaluate.events import Run
from emulation.evaluate.folding import Folded
from emulation.evaluate.groups import Pricing
from emulation.evaluate.ranks import RankSweep
from emulation.evaluate.sweep import Sweep
from emulation.evaluate.tasks import Tasks
from emulation.topology import Topology
from emulation.workloads.training import Plan, training_step
from emulation.workloads.transformer import Decoder
from harness.hardware import load_profile

GPT3 = Decoder(hidden=12288, layers=96, heads=96, sequence=2048)
MICRO_BATCHES = 96


def plan(replicas, micro_batches=MICRO_BATCHES):
    return Plan(tensor=8, pipeline=8, data=replicas, batch=micro_batches * replicas, micro_batch=1)


def by_ranks(profile, how):
    topology = Topology(profile)
    sweep = RankSweep(Pricing(training_step(GPT3, how, profile), topology))
    sweep.go()
    return sweep.picoseconds


def folded(profile, how, evaluator):
    run = evaluator(Folded(training_step(GPT3, how, profile), Topology(profile)).tasks)
    run.go()
    return max(run.end)


def expanded(profile, how):
    run = Run(Tasks(training_step(GPT3, how, profile).expand(), Topology(profile)))
    run.go()
    return max(run.end)


@pytest.mark.parametrize("hosts", [128, 2048], ids=["1024 GPUs", "16384 GPUs"])
@pytest.mark.parametrize("evaluator", ["all ranks", "folded sweep", "folded SimPy"])
def test_one_step_of_gpt3(benchmark, hosts, evaluator):
    profile = load_profile(f"a100x8-hdr@{hosts}")
    how = plan(hosts // 8)
    ways = {
        "all ranks": lambda: by_ranks(profile, how),
        "folded sweep": lambda: folded(profile, how, Sweep),
        "folded SimPy": lambda: folded(profile, how, Run),
    }
    found = benchmark.pedantic(ways[evaluator], rounds=1 if hosts > 128 else 3)
    assert found == folded(profile, how, Sweep)


def test_folding_is_twenty_times_as_fast_as_a_node_for_every_rank(benchmark):
    profile, how = load_profile("a100x8-hdr@16"), plan(replicas=2, micro_batches=8)
    start = time.perf_counter()
    slow = expanded(profile, how)
    peer = time.perf_counter() - start
    assert benchmark.pedantic(lambda: folded(profile, how, Run), rounds=3) == slow
    assert peer >= 20 * benchmark.stats.stats.median
