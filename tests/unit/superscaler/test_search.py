"""The search: exact on its tables, deterministic, and honest about what does not fit."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from emulation.evaluate import simulate
from emulation.graph import Workload
from engines.superscaler import models
from engines.superscaler.cost.abstract import Abstract
from engines.superscaler.cost.live import Live
from engines.superscaler.cost.recorded import Recorded, read
from engines.superscaler.layout import Mesh
from engines.superscaler.precision import Precision
from engines.superscaler.search import compare_presets, ilp, lineage, presets, search
from engines.superscaler.search.constraints import Rule, Space
from engines.superscaler.search.elimination import Problem, reduce
from engines.superscaler.search.intra import fastest
from engines.superscaler.search.mixing import mixed
from engines.superscaler.search.problem import Bench, Setting
from engines.superscaler.trace import trace
from harness.api import PlanError
from harness.hardware import load_profile


@pytest.fixture(scope="module")
def profile():
    return load_profile("v100x8-nvlink")


@pytest.fixture(scope="module")
def gpt():
    module, inputs = models.tiny("gpt")
    return trace(module, inputs, "gpt")


class Small(Abstract):
    """Devices with little memory."""

    room = 100_000

    def memory(self, rank):
        return self.room


def _random(seed: int, edges: list[tuple[str, str]], choices: int = 3) -> Problem:
    draw = np.random.default_rng(seed)
    names = sorted({name for edge in edges for name in edge})
    tables = [((name,), draw.integers(0, 9, choices).astype(float)) for name in names]
    tables += [(edge, draw.integers(0, 9, (choices, choices)).astype(float)) for edge in edges]
    return Problem(dict.fromkeys(names, choices), tables)


DIAMOND = [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"), ("d", "e"), ("a", "e")]


@pytest.mark.parametrize("seed", range(5))
def test_elimination_and_the_integer_program_find_what_trying_everything_finds(seed):
    problem = _random(seed, DIAMOND)
    best = min(
        problem.cost(dict(zip(problem.choices, picks, strict=True))) for picks in itertools.product(range(3), repeat=5)
    )
    reduced = reduce(problem)
    assert not reduced.core.choices
    assert reduced.constant == best == problem.cost(reduced.completed({}))
    picked, bound = ilp.solve(problem)
    assert problem.cost(picked) == best
    assert bound == pytest.approx(best)


def test_a_limit_on_memory_is_a_row_of_the_program():
    problem = _random(1, DIAMOND)
    nbytes = {name: np.array([3.0, 2.0, 1.0]) for name in problem.choices}
    picked, bound = ilp.solve(problem, 7.0, nbytes)
    allowed = [picks for picks in itertools.product(range(3), repeat=5) if sum(3 - pick for pick in picks) <= 7]
    best = min(problem.cost(dict(zip(problem.choices, picks, strict=True))) for picks in allowed)
    assert problem.cost(picked) == best >= bound - 1e-9
    with pytest.raises(PlanError, match="memory limit"):
        ilp.solve(problem, 4.0, nbytes)


def test_equal_layers_are_solved_as_the_whole_program_is(gpt, profile):
    bench = Bench(gpt, Abstract(profile), Space(), Precision())
    tables = bench.tables(Mesh((0, 1), (2,)))
    problem = tables.problem([op.name for op in gpt.ops], Setting())
    found = fastest(tables, [op.name for op in gpt.ops], Setting())
    picked, _ = ilp.solve(problem)
    assert found.objective == pytest.approx(problem.cost(picked), rel=1e-6)
    assert found.objective == pytest.approx(found.bound, rel=1e-9)
    steps = sum(unit.forward + unit.backward + unit.once for unit in found.units.values())
    assert steps == pytest.approx(found.objective)


def test_units_are_layers_and_what_lies_between_them(gpt):
    units = lineage.units(gpt)
    assert [(unit.name, unit.is_layer) for unit in units] == [
        ("", False),
        ("layers.0", True),
        ("layers.1", True),
        ("", False),
    ]
    assert [op for unit in units for op in unit.ops] == [op.name for op in gpt.ops]


def test_collectives_cost_what_the_emulator_says(profile):
    mesh = Mesh(tuple(range(8)), (2, 4))
    work = Workload()
    for group in mesh.groups((1,)):
        work.collective("all-reduce", [f"host0/gpu{rank}" for rank in group], 2**24)
    price = Abstract(profile).collective("all-reduce", mesh, (1,), 2**24)
    assert price == pytest.approx(simulate(work, profile).seconds, rel=0.02)


def test_equal_searches_find_equal_plans(gpt, profile):
    one, two = (search(gpt, profile, devices=4, micro_batches=2, retime=None) for _ in range(2))
    assert one.plan == two.plan
    assert one.plan.origin["costs_digest"] == profile.digest
    assert one.plan.devices == (0, 1, 2, 3)


def test_the_emulator_has_the_last_word(gpt, profile):
    found = search(gpt, profile, devices=2, space="spmd")
    guess = search(gpt, profile, devices=2, space="spmd", retime=None)
    assert found.plan.stages == guess.plan.stages
    assert found.seconds == pytest.approx(guess.seconds, rel=0.25)
    assert not found.refused


def test_data_parallel_splits_every_operator_on_the_batch_alone(gpt, profile):
    plan = search(gpt, profile, devices=4, space="dp", retime=None).plan
    batch = lineage.batch(gpt)
    assert {op: split for stage in plan.stages for op, split in stage.splits.items()} == {
        op.name: (batch[op.name],) for op in gpt.ops
    }


def test_rules_bind(gpt, profile):
    rule = Rule("*.feed_forward.up", identifiers=("n",), replica=False)
    space = presets.space("spmd").with_rules([rule])
    plan = search(gpt, profile, devices=2, space=space, retime=None).plan
    assert {plan.stages[0].splits[f"layers.{layer}.feed_forward.up"] for layer in range(2)} == {("n",)}
    nowhere = replace(rule, identifiers=())
    with pytest.raises(PlanError, match=r"'layers.0.feed_forward.up': space 'spmd' leaves no split"):
        search(gpt, profile, devices=2, space=presets.space("spmd").with_rules([nowhere]), retime=None)


def test_unknown_keys_of_a_space_are_refused_with_the_nearest():
    with pytest.raises(PlanError, match="'recompute'"):
        Space.from_json({"recomputed": ["none"]})
    with pytest.raises(PlanError, match="'megatron-3d'"):
        presets.space("megatron3d")


def test_ours_is_never_behind_a_preset(gpt, profile):
    found = compare_presets(gpt, profile, devices=4, micro_batches=2, names=("dp", "zero-3", "alpa-like"), retime=None)
    assert all(ratio is not None and ratio >= 1.0 for ratio in found.ratios.values())


def test_what_does_not_fit_says_how_much_is_lacking(gpt, profile):
    costs = Small(profile)
    with pytest.raises(PlanError, match=r"needs .* on each device, .* bytes\) more than"):
        search(gpt, profile, devices=2, costs=costs, retime=None)


def test_what_is_timed_here_is_a_recorded_profile_afterwards(gpt, profile, tmp_path):
    path = tmp_path / "costs.json"
    live = Live(path, Abstract(profile))
    op = gpt.by_name["layers.0.feed_forward.up"]
    half = live.operator(gpt, op, {"n": 2})
    assert half.forward > 0
    assert half.backward > 0
    assert half.saved == live.operator(gpt, op, {"n": 2}).saved
    assert set(half.saved) <= {*op.inputs, *op.outputs}
    recorded = live.save()
    assert recorded.operator(gpt, gpt.by_name["layers.1.feed_forward.up"], {"n": 2}).forward == half.forward
    assert recorded.digest == Recorded(read(path), Abstract(profile)).digest != profile.digest
    with pytest.raises(PlanError, match=r"no figure for operator 'layers.0.feed_forward.up'"):
        recorded.operator(gpt, op, {"n": 4})


def test_a_damaged_record_is_refused(tmp_path):
    path = tmp_path / "costs.json"
    path.write_text("{}")
    with pytest.raises(PlanError, match="does not hold recorded costs"):
        read(path)


def test_constraints_that_the_search_cannot_keep_are_refused(gpt, profile):
    with pytest.raises(PlanError, match="constrains devices, stage or recompute"):
        search(gpt, profile, devices=2, space=Space(rules=(Rule("linear", stage=0),)), retime=None)
    with pytest.raises(PlanError, match="constrains order"):
        search(gpt, profile, devices=2, space=Space(order=(("a", 0, "b", 1),)), retime=None)


class Recycled(torch.nn.Module):
    """Two layers, applied twice, of which the first time has no gradient."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(
            torch.nn.Sequential(*(one for _ in range(4) for one in (torch.nn.Linear(8, 8), torch.nn.ReLU())))
            for _ in range(2)
        )

    def forward(self, x):
        with torch.no_grad():
            y = self.layers[1](self.layers[0](x)).detach()
        return self.layers[1](self.layers[0](x + y)).square().mean()


@pytest.fixture(scope="module")
def recycled():
    return trace(Recycled(), (torch.ones(8, 8),), "recycled")


def test_what_has_no_gradient_is_neither_kept_nor_computed_again(recycled, profile):
    bench = Bench(recycled, Abstract(profile), Space(), Precision())
    first, last = (next(n for n, unit in reversed(list(enumerate(bench.units[:stop])))) for stop in (2, None))
    assert bench.units[first].name == bench.units[last].name == "layers.1"
    ops = [op.name for op in recycled.ops]
    units = fastest(bench.tables(Mesh((0,), (1,))), ops, Setting(recompute=True)).units
    # Its parameters' gradients are added up once, and what the second time starts from is kept: nothing else.
    assert units[first].backward < units[first].forward
    assert units[0].kept == 0
    assert sum(unit.kept for unit in units.values()) > 0
    assert units[last].backward > units[last].forward


def test_stages_without_a_backward_pass_are_planned(recycled, profile):
    for schedule in ("1f1b", "gpipe", "zero-bubble"):
        space = Space("passes", families=("pipeline",), schedules=(schedule,), stages=(2, 2))
        plan = search(recycled, profile, devices=2, micro_batches=4, space=space, retime=None).plan
        assert {block.stage for block in plan.order if block.what == "B"} == {1}


def test_presets_keep_a_layer_that_is_applied_twice_in_one_stage(recycled, profile):
    plan = search(recycled, profile, devices=2, micro_batches=4, space="alpa-like", retime=None).plan
    assert len(plan.stages) == 1
    two = replace(presets.space("alpa-like"), stages=(2, 2))
    with pytest.raises(PlanError, match="nothing fits"):
        search(recycled, profile, devices=2, micro_batches=4, space=two, retime=None)


def test_a_mesh_that_divides_no_batch_rules_out_no_other(profile):
    module, inputs = models.build("gpt", batch=2)
    plan = search(trace(module, inputs, "gpt"), profile, devices=4, space="megatron-3d", retime=None).plan
    assert len(plan.devices) == 4
    assert {stage.mesh.shape for stage in plan.stages} <= {(1, 4), (2, 2), (1, 2), (2, 1), (1, 1)}


def test_stages_go_around_the_devices_in_an_interleaved_schedule(gpt, profile):
    space = Space("rounds", families=("pipeline",), schedules=("interleaved",), stages=(2, 2))
    plan = search(gpt, profile, devices=2, micro_batches=4, space=space, retime=None).plan
    assert [stage.mesh.devices for stage in plan.stages] == [(0,), (1,), (0,), (1,)]
    with pytest.raises(PlanError, match="schedules of a plan space has no 'modulo'"):
        Space.from_json({"schedules": ["modulo"]})


def test_a_mix_recomputes_some_layers_and_costs_what_lies_between(gpt, profile):
    bench = Bench(gpt, Abstract(profile), Space(), Precision())
    ops = [op.name for op in gpt.ops]
    all_of_them = fastest(bench.tables(Mesh((0, 1), (2,))), ops, Setting(recompute=True))
    (half,) = mixed(all_of_them, (0.5,))
    assert [unit for unit, groups in half.groups.items() if groups == ()] == [1]
    assert half.units[2] == all_of_them.units[2]
    assert half.units[1].backward < all_of_them.units[1].backward
    assert half.units[1].kept > all_of_them.units[1].kept
    space = Space("mixed", recompute=("mixed",), families=("pipeline",))
    assert search(gpt, profile, devices=2, space=space, retime=None).seconds < all_of_them.objective


def test_no_preset_can_be_beaten_by_more_than_its_time_over_the_floor(gpt, profile):
    found = compare_presets(gpt, profile, devices=2, micro_batches=2, names=("dp",), retime=None)
    assert 0 < found.floor < found.ours.seconds
