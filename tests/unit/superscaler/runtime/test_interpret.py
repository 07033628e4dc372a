"""All ranks in one process, against the module on one device."""

import dataclasses

import pytest
import torch

from engines.superscaler.program import Collective, Exchange, Local
from engines.superscaler.projection import project
from engines.superscaler.runtime import reference
from engines.superscaler.runtime.interpret import interpret
from engines.superscaler.runtime.lockstep import Deadlock, Mismatch
from engines.superscaler.runtime.optimizer import Optimizer
from engines.superscaler.runtime.outcome import Disagreement, compare
from engines.superscaler.runtime.traffic import predicted
from harness.api import HarnessError

from .plans import PLANS


def lists(program):
    return {rank: list(project(program, rank)) for rank in program.plan.devices}


def first(instructions, kind):
    return next(n for n, i in enumerate(instructions) if isinstance(i, kind))


def test_trace_as_one_run_is_the_module(graph, module, batches, expected):
    outcome = interpret(reference.whole(graph, 2), module, batches)
    assert compare(outcome, expected, 1e-10).relative < 1e-12


@pytest.mark.parametrize("name", PLANS)
def test_plan_is_the_module_and_moves_the_bytes_its_instructions_say(name, program, module, batches, expected):
    planned = program(name)
    outcome = interpret(planned, module, batches)
    assert compare(outcome, expected, 1e-10).relative < 1e-10
    for rank, instructions in lists(planned).items():
        sent, received = predicted(instructions)
        assert (outcome.sent[rank], outcome.received[rank]) == (2 * sent, 2 * received)
    assert sum(outcome.sent.values()) == sum(outcome.received.values()) > 0


def test_sgd_with_momentum_may_be_split_as_well(program, module, batches):
    optimizer = Optimizer("sgd", learning_rate=0.1, momentum=0.9)
    outcome = interpret(program("zero 3"), module, batches, optimizer=optimizer)
    assert compare(outcome, reference.train(module, batches, optimizer), 1e-10).relative < 1e-12


def test_less_is_alive_where_less_is_kept(program, module, batches):
    peak = {name: interpret(program(name), module, batches).peak[0] for name in ("data", "zero 1", "zero 2")}
    assert peak["data"] > peak["zero 1"] > peak["zero 2"]


def test_weights_gathered_for_a_run_are_not_kept_for_its_backward_pass(program, module, batches):
    """ZeRO-3 frees what it gathered: autograd must not hold on to it."""
    alive = program("zero 3")
    short = interpret(alive, module, batches)
    kept = {
        rank: [i for i in instructions if not (isinstance(i, Local) and i.kind == "free")]
        for rank, instructions in lists(alive).items()
    }
    assert short.peak[0] < interpret(alive, module, batches, lists=kept).peak[0]


def test_a_sum_left_out_is_seen(program, module, batches):
    """Each rank then uses its own gradient: copies of a weight drift apart."""
    planned = program("data")
    broken = lists(planned)
    for instructions in broken.values():
        for number, instruction in enumerate(instructions):
            if isinstance(instruction, Collective) and instruction.source.kind == "gradient":
                instructions[number] = Local("add", (instruction.source,), (instruction.target,))
    with pytest.raises(Disagreement, match="ranks 0 and 1 hold different copies of the gradient of 'layers"):
        interpret(planned, module, batches, lists=broken)


def test_a_wrong_scale_is_named(program, module, batches, expected):
    planned = program("1f1b")
    broken = {
        rank: [
            dataclasses.replace(i, value=1.0) if isinstance(i, Local) and i.kind == "seed" else i for i in instructions
        ]
        for rank, instructions in lists(planned).items()
    }
    outcome = interpret(planned, module, batches, lists=broken)
    with pytest.raises(Disagreement, match=r"gradient of .* is off by .* more than 1e-10"):
        compare(outcome, expected, 1e-10)


def test_who_waits_for_whom_is_said(program, module, batches):
    planned = program("1f1b")
    broken = lists(planned)
    del broken[1][first(broken[1], Exchange)]
    with pytest.raises(
        Deadlock, match=r"rank 0, .* exchange 1 .* for ranks \[1\]\n  rank 1, .* exchange 2 .* for ranks \[0\]"
    ):
        interpret(planned, module, batches, lists=broken)
    broken = lists(planned)
    broken[0] = broken[0][: first(broken[0], Exchange)]
    with pytest.raises(Deadlock, match=r"rank 1, instruction \d+, waits in exchange \d+ of .* for ranks \[0\]"):
        interpret(planned, module, batches, lists=broken)


def test_what_is_read_must_be_there(program, module, batches):
    broken = lists(program("data"))
    del broken[1][first(broken[1], Local)]
    with pytest.raises(
        HarnessError, match=r"rank 1, instruction \d+: reads the value of '.' .* of micro-batch 0, which"
    ):
        interpret(program("data"), module, batches, lists=broken)


def test_members_of_a_group_must_call_one_collective(program, module, batches):
    planned = program("tensor")
    broken = lists(planned)
    place = first(broken[1], Collective)
    broken[1][place] = dataclasses.replace(broken[1][place], kind="reduce-scatter", dim=0)
    with pytest.raises(Mismatch, match=r"ranks 0 and 1 .* all-reduce .* reduce-scatter"):
        interpret(planned, module, batches, lists=broken)
    broken[1][place] = lists(planned)[1][place]
    broken[0] = broken[0][:place]
    with pytest.raises(Deadlock, match=r"rank 1, instruction \d+, waits in all-reduce .* for ranks \[0\]"):
        interpret(planned, module, batches, lists=broken)


def test_a_batch_must_be_what_the_plan_is_for(program, module, batches):
    with pytest.raises(HarnessError, match="the plan has 2 micro-batches, the batch 1"):
        interpret(program("data"), module, [batches[0][:1]])
    with pytest.raises(HarnessError, match="the graph has 2 inputs"):
        interpret(program("data"), module, [[batches[0][0][:1]] * 2])


def test_casts_of_the_module_stay_in_the_dtype_of_the_reference():
    class Casting(torch.nn.Module):
        def forward(self, x):
            return x.float().to(torch.float32).softmax(0, dtype=torch.float32).square().mean()

    x = torch.linspace(0, 1, 7, dtype=torch.float64)
    with reference.AllIn(torch.float64):
        assert Casting()(x) == x.softmax(0).square().mean()
