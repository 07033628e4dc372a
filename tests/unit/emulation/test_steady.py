import pytest

from emulation.evaluate import simulate
from emulation.evaluate.steady import extrapolate
from emulation.program import Mesh, Part, Program

FORWARD, BACKWARD = 7e9, 15e9


def pipeline(profile, stages, micro_batches, slow=1.0):
    """GPipe: all forward passes, then all backward passes; one stage may be slower than the others."""
    mesh = Mesh.over(profile, {"pp": stages})
    program, ready = Program(mesh), {}
    blocks = [mesh.block(pp=stage) for stage in range(stages)]
    for flops, order in ((FORWARD, range(stages)), (BACKWARD, reversed(range(stages)))):
        order = list(order)
        for batch in range(micro_batches):
            for place, stage in enumerate(order):
                after = [ready[batch]] if batch in ready and place else []
                work = flops * (slow if stage == 1 else 1.0)
                done = program.chain(blocks[stage], [Part.compute(work)], after=after)
                if place + 1 < stages:
                    done = program.transfer(blocks[stage], blocks[order[place + 1]], 10**6, after=[done])
                ready[batch] = done
    return program


@pytest.mark.parametrize(("stages", "slow"), [(2, 1.0), (4, 1.0), (4, 1.7)])
def test_many_micro_batches_follow_from_few(small, stages, slow):
    profile = small(gpus=stages)
    evaluated = extrapolate(lambda n: simulate(pipeline(profile, stages, n, slow), profile).picoseconds, 64)
    assert evaluated.evaluated < 16
    assert evaluated.picoseconds == simulate(pipeline(profile, stages, 64, slow), profile).picoseconds


def test_increments_that_alternate_are_followed():
    assert extrapolate(lambda n: 10 * n + n % 2, 101) == (1011, 7, 2)


def test_what_never_repeats_is_evaluated_to_the_end():
    assert extrapolate(lambda n: n * n, 12) == (144, 12, 0)


def test_fewer_rounds_than_to_begin_with_are_evaluated_as_they_are():
    assert extrapolate(lambda n: 5 * n, 2, first=4) == (10, 2, 0)
