"""A long step from short ones: the time of all micro-batches, to the picosecond, and as much memory."""

from __future__ import annotations

import pytest

from emulation.evaluate import simulate
from engines.superscaler import emulate, memory, named
from engines.superscaler.dependency import preserve
from engines.superscaler.precision import Precision
from engines.superscaler.search import retiming, steady
from harness.api import PlanError
from harness.hardware import load_profile

from .perceptrons import perceptron

MICRO_BATCHES = 14


@pytest.fixture(scope="module")
def profile():
    return load_profile("a100x8-hdr@1")


def program_of(name, **options):
    graph = perceptron(layers=4, batch=64, hidden=512, inner=768)
    return preserve(graph, named.build(name, graph, tuple(range(8)), micro_batches=MICRO_BATCHES, **options))


@pytest.mark.parametrize(("name", "options"), [("1f1b", {"pipeline": 4}), ("zero-bubble", {"pipeline": 2})])
def test_few_micro_batches_tell_what_all_take(profile, name, options):
    program = program_of(name, data=8 // options["pipeline"], **options)
    short = steady.enough(program.graph, program.plan)
    assert short <= options["pipeline"] + steady.SETTLED < MICRO_BATCHES
    timed = []

    def picoseconds(own):
        timed.append(own.plan.micro_batches)
        return simulate(emulate.workload(own, profile).work, profile).picoseconds

    assert steady.extrapolated(program, short, picoseconds) == picoseconds(program)
    assert timed == [short, short - 1, MICRO_BATCHES]


def test_a_shorter_program_is_that_of_a_shorter_plan(profile):
    program = program_of("1f1b", pipeline=4, data=2)
    short = steady.shorter(program, 6)
    made = preserve(program.graph, short.plan)
    assert emulate.seconds(short, profile).seconds == emulate.seconds(made, profile).seconds
    assert short.losses == made.losses


def test_as_many_micro_batches_in_flight_need_as_much_memory():
    program = program_of("1f1b", pipeline=4, data=2)
    short = steady.shorter(program, steady.enough(program.graph, program.plan))
    assert steady.keeps_as_much(program, short)
    losses = 4 * (MICRO_BATCHES - short.plan.micro_batches)
    whole, part = memory.peak(program), memory.peak(short)
    assert all(whole[device].total - part[device].total in (0, losses) for device in whole)
    everything = program_of("gpipe", pipeline=4, data=2)
    assert not steady.keeps_as_much(everything, steady.shorter(everything, 7))


def test_what_does_not_fit_is_not_emulated(profile, monkeypatch):
    monkeypatch.setattr(emulate, "seconds", lambda *_, **__: pytest.fail("it was emulated"))
    graph = perceptron()
    plan = named.build("dp", graph, (0, 1), micro_batches=1)
    with pytest.raises(PlanError, match="on a device that has 10"):
        retiming.emulated(profile, Precision(), 10)(graph, plan)
