"""Allocation-site tracing over eager training: gradients produced in their slots, and what is copied instead."""

from __future__ import annotations

import copy
import re
from functools import partial

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is there

from engines.rdma.analyzer import allocator_hook  # noqa: E402
from engines.rdma.analyzer.allocation import (  # noqa: E402
    AllocationTracer,
    SlotHeld,
    State,
    UnusableSlot,
)
from engines.rdma.analyzer.allocator_hook import HookUnavailable  # noqa: E402
from engines.rdma.copies import CopyLedger  # noqa: E402
from engines.rdma.placement import ShapeChanged  # noqa: E402

needs_hook = pytest.mark.skipif(allocator_hook.compiler() is None, reason="no C++ compiler")


def slots_for(module):
    sizes = {name: parameter.nbytes for name, parameter in module.named_parameters()}
    memory = torch.zeros(64 + sum(-(-size // 64) * 64 for size in sizes.values()), dtype=torch.uint8)
    offset = -memory.data_ptr() % 64
    slots = {}
    for name, size in sizes.items():
        slots[name] = memory[offset : offset + size]
        offset += -(-size // 64) * 64
    return slots


class Job:
    """A module in training beside an untouched twin; every step compares slots with the twin's gradients."""

    def __init__(self, module, make_input):
        self.module, self.twin = module, copy.deepcopy(module)
        self.make_input = make_input
        self.ledger = CopyLedger()
        self.tracer = AllocationTracer(self.ledger)
        self.slots = slots_for(module)
        self.tracer.promote(self.slots)

    def backward(self):
        data = self.make_input()
        for module in (self.twin, self.module):
            module.zero_grad(set_to_none=True)
            with torch.random.fork_rng():
                if module is self.module:
                    with self.tracer.step():
                        module(data).pow(2).sum().backward()
                else:
                    module(data).pow(2).sum().backward()

    def step(self):
        self.backward()
        self.ledger.clear()
        placed = {name: self.tracer.place(name, parameter.grad) for name, parameter in self.module.named_parameters()}
        for name, parameter in self.twin.named_parameters():
            found = self.slots[name].view(parameter.dtype).view(parameter.shape)
            assert torch.equal(found, parameter.grad), name
        return placed

    def states(self):
        return {promotion.name: promotion.state for promotion in self.tracer.report().promotions}


def mlp():
    return nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 4))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(1152, 5)
    )


MODELS = {
    "mlp": (mlp, lambda: torch.randn(6, 8)),
    "convolutional": (convolutional, lambda: torch.randn(2, 3, 16, 16)),
    "gru": (lambda: nn.GRUCell(8, 16), lambda: torch.randn(4, 8)),
}


@needs_hook
@pytest.mark.parametrize("name", MODELS)
def test_from_the_second_step_gradients_are_produced_in_their_slots(name):
    make_module, make_input = MODELS[name]
    job = Job(make_module(), make_input)
    first = job.step()
    assert all(placed.copied for placed in first.values())
    assert job.ledger.nbytes == job.tracer.report().nbytes
    for _ in range(3):
        assert not any(placed.copied for placed in job.step().values())
        assert job.ledger.nbytes == 0
    report = job.tracer.report()
    assert report.zero_copy_share == 1.0
    assert {promotion.zero_copy_steps for promotion in report.promotions} == {3}


@needs_hook
def test_the_batch_may_change_its_size():
    sizes = iter([6, 3, 9])
    job = Job(mlp(), lambda: torch.randn(next(sizes), 8))
    job.step()
    for _ in range(2):
        job.step()
        assert job.ledger.nbytes == 0


@needs_hook
def test_the_forward_pass_may_be_outside():
    module, ledger = mlp(), CopyLedger()
    tracer = AllocationTracer(ledger)
    tracer.promote(slots_for(module))
    for step in range(3):
        module.zero_grad(set_to_none=True)
        loss = module(torch.randn(6, 8)).sum()
        with tracer.step():
            loss.backward()
        ledger.clear()
        copied = [tracer.place(name, parameter.grad).copied for name, parameter in module.named_parameters()]
        # The last bias: its gradient is the sum over an expanded one, and made by an operation all the same.
        assert any(copied) == (step == 0)


class Summed(nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(7))

    def forward(self, data):
        return data + self.bias.sum()


@needs_hook
def test_a_gradient_that_backward_must_copy_is_counted_once():
    job = Job(Summed(), lambda: torch.randn(3))
    job.step()
    for _ in range(2):
        placed = job.step()["bias"]
        assert placed.copied
        assert "backward copies it" in placed.reason
        assert job.ledger.sites == {"allocation: cloned by backward": 28}
    assert job.states() == {"bias": State.CLONED}
    assert job.tracer.report().zero_copy_share == 0.0


def place_made(tracer, name, make):
    """One step whose only tensor is what `make` makes."""
    with tracer.step():
        tensor = make()
    return tracer.place(name, tensor)


@pytest.fixture
def tracer():
    return AllocationTracer(CopyLedger())


def slot(nbytes):
    return slots_for(nn.ParameterList([torch.zeros(nbytes, dtype=torch.uint8).float()]))["0"][:nbytes]


OBSTACLES = {
    "not contiguous": (lambda base: (base + 1).t(), "it is not contiguous"),
    "expanded": (lambda base: base[0, :1].exp().expand(4, 4), "part of a larger buffer|not contiguous"),
    "slice": (lambda base: torch.cat([base, base])[4:], "it is a part of a larger buffer"),
    "older": (lambda base: base.view(16), "no operation of the step allocated its buffer"),
}


@needs_hook
@pytest.mark.parametrize("name", OBSTACLES)
def test_what_cannot_be_promoted_is_copied_every_step_with_the_reason(tracer, name):
    make, reason = OBSTACLES[name]
    base = torch.arange(16.0).view(4, 4)
    memory = slot(64)
    tracer.promote({"x": memory})
    for _ in range(3):
        with tracer.step():
            tensor = make(base)
        tracer.ledger.clear()
        placed = tracer.place("x", tensor)
        assert placed.copied
        assert tracer.ledger.nbytes == 64
        assert torch.equal(memory.view(torch.float32), tensor.contiguous().view(16))
    (promotion,) = tracer.report().promotions
    assert promotion.state is State.DEMOTED
    assert re.search(reason, promotion.reason)
    assert promotion.copied_steps == 3


@needs_hook
def test_two_tensors_of_one_buffer_get_one_promotion(tracer):
    first, second = slot(64), slot(64)
    tracer.promote({"a": first, "b": second})
    for step in range(3):
        with tracer.step():
            tensor = torch.randn(16)
        assert tracer.place("a", tensor).copied == (step == 0)
        assert tracer.place("b", tensor.view(4, 4)).copied
        assert torch.equal(first, second)
        del tensor
    assert "shares its buffer with 'a'" in tracer.report().promotions[1].reason


@needs_hook
def test_a_site_that_moves_once_is_traced_again_and_one_that_keeps_moving_is_demoted(tracer):
    tracer.promote({"x": slot(64)})

    def after(ballast):
        def make():
            for _ in range(ballast):
                torch.ones(3)
            return torch.zeros(16)

        return make

    assert "not known" in place_made(tracer, "x", after(2)).reason
    assert "moved" in place_made(tracer, "x", after(0)).reason
    assert not place_made(tracer, "x", after(0)).copied
    assert "not stable" in place_made(tracer, "x", after(1)).reason
    assert place_made(tracer, "x", after(1)).copied
    assert tracer.report().promotions[0].state is State.DEMOTED


@needs_hook
def test_a_slot_is_not_given_to_another_operation_with_the_same_number(tracer):
    memory = slot(64)
    tracer.promote({"x": memory})
    place_made(tracer, "x", lambda: torch.zeros(16))
    with tracer.step():
        stranger = torch.ones(16)
    assert stranger.data_ptr() != memory.data_ptr()


@needs_hook
def test_a_changed_shape_is_an_error_never_a_truncation(tracer):
    memory = slot(64)
    tracer.promote({"x": memory})
    place_made(tracer, "x", lambda: torch.full((16,), 5.0))
    place_made(tracer, "x", lambda: torch.full((16,), 5.0))
    for count in (15, 17):
        with pytest.raises(ShapeChanged, match=rf"'x': expected 64 bytes, got {count * 4} .*\[{count}\]"):
            place_made(tracer, "x", partial(torch.full, (count,), 6.0))
    assert memory.view(torch.float32).tolist() == [5.0] * 16


@needs_hook
def test_a_live_tensor_is_never_overwritten(tracer):
    memory = slot(64)
    tracer.promote({"x": memory})
    place_made(tracer, "x", lambda: torch.full((16,), 1.0))
    with tracer.step():
        kept = torch.full((16,), 2.0)
    assert not tracer.place("x", kept).copied
    assert tracer.held() == ("x",)
    with pytest.raises(SlotHeld, match="zero_grad"):
        place_made(tracer, "x", lambda: torch.full((16,), 3.0))
    assert kept.tolist() == [2.0] * 16
    del kept
    assert tracer.held() == ()
    assert not place_made(tracer, "x", lambda: torch.full((16,), 4.0)).copied


@needs_hook
def test_gradients_accumulate_inside_the_slot():
    module, ledger = mlp(), CopyLedger()
    tracer = AllocationTracer(ledger)
    slots = slots_for(module)
    tracer.promote(slots)
    for step in range(3):
        module.zero_grad(set_to_none=True)
        for _ in range(2):
            with tracer.step():
                module(torch.randn(6, 8)).sum().backward()
        ledger.clear()
        for name, parameter in module.named_parameters():
            tracer.place(name, parameter.grad)
        assert (ledger.nbytes == 0) == (step > 0)


@needs_hook
def test_slots_may_alternate(tracer):
    buffers = [slot(64), slot(64)]
    for step in range(5):
        tracer.promote({"x": buffers[step % 2]})
        placed = place_made(tracer, "x", partial(torch.full, (16,), 1.0 + step))
        assert placed.copied == (step == 0)
        assert buffers[step % 2].view(torch.float32)[0] == 1.0 + step


@needs_hook
def test_an_exception_in_a_step_leaves_the_next_one_whole(tracer):
    tracer.promote({"x": slot(64)})
    place_made(tracer, "x", lambda: torch.zeros(16))
    with pytest.raises(RuntimeError, match="mat1 and mat2"), tracer.step():
        torch.zeros(3, 4).mm(torch.zeros(3, 4))
    assert not place_made(tracer, "x", lambda: torch.zeros(16)).copied


@needs_hook
def test_models_nest():
    outer, inner = AllocationTracer(CopyLedger()), AllocationTracer(CopyLedger())
    outer.promote({"x": slot(64)})
    inner.promote({"y": slot(64)})
    for step in range(3):
        with outer.step():
            with inner.step():
                y = torch.zeros(16)
            x = torch.zeros(16)
        assert inner.place("y", y).copied == (step == 0)
        assert outer.place("x", x).copied == (step == 0)
        del x, y


def test_steps_of_one_tracer_do_not_nest(tracer):
    with tracer.step(), pytest.raises(Exception, match="do not nest"), tracer.step():
        pass


def test_an_empty_tensor_needs_no_copy(tracer):
    tracer.promote({"x": bytearray()})
    assert not place_made(tracer, "x", lambda: torch.zeros(0)).copied


def test_unusable_slots_are_refused(tracer):
    with pytest.raises(UnusableSlot, match="read-only"):
        tracer.promote({"x": b"\0" * 64})
    with pytest.raises(UnusableSlot, match="multiple of 64"):
        tracer.promote({"x": slot(128)[1:65]})
    with pytest.raises(UnusableSlot, match="uint8"):
        tracer.promote({"x": torch.zeros(16)})
    tracer.promote({"x": slot(64)})
    with pytest.raises(UnusableSlot, match="expected 64 bytes as before, got 32"):
        tracer.promote({"x": slot(32)})
    with pytest.raises(UnusableSlot, match="'y' has no slot"):
        tracer.place("y", torch.zeros(16))


@pytest.fixture
def no_compiler(monkeypatch):
    def missing():
        raise HookUnavailable("no C++ compiler")

    monkeypatch.setattr(allocator_hook, "load", missing)


def test_without_a_compiler_operations_write_into_slots_where_pytorch_lets_them(no_compiler):
    # With a bias the last gradient is a sum, without one all are products of matrices; both have native variants.
    job = Job(mlp(), lambda: torch.randn(6, 8))
    job.step()
    for _ in range(3):
        assert not any(placed.copied for placed in job.step().values())
        assert job.ledger.nbytes == 0
    assert "(no allocator hook: no C++ compiler)" in str(job.tracer.report())
    assert {promotion.site.operation for promotion in job.tracer.report().promotions} == {
        "aten.mm.default",
        "aten.sum.dim_IntList",
    }


def test_without_a_compiler_the_rest_is_a_counted_copy(no_compiler):
    job = Job(convolutional(), lambda: torch.randn(2, 3, 16, 16))
    copied = sum(parameter.nbytes for name, parameter in job.module.named_parameters() if not name.startswith("5."))
    for step in range(3):
        job.step()
        assert job.ledger.nbytes == (copied if step else job.tracer.report().nbytes)
    assert "no operation that can write elsewhere made it" in str(job.tracer.report())


def test_without_a_compiler_operands_of_another_shape_take_the_ordinary_way(no_compiler):
    sizes = iter([6, 6, 3, 6])
    job = Job(mlp(), lambda: torch.randn(next(sizes), 8))
    assert [any(placed.copied for placed in job.step().values()) for _ in range(4)] == [True, False, True, False]


def test_without_a_compiler_a_live_tensor_is_never_overwritten(no_compiler):
    tracer = AllocationTracer(CopyLedger())
    tracer.promote({"x": slot(64)})
    base = torch.ones(4, 4)
    place_made(tracer, "x", lambda: base.mm(base))
    with tracer.step():
        kept = base.mm(base)
    assert not tracer.place("x", kept).copied
    with pytest.raises(SlotHeld):
        place_made(tracer, "x", lambda: (base * 2).mm(base))
    assert kept.tolist() == [[4.0] * 4] * 4
    del kept
    assert not place_made(tracer, "x", lambda: base.mm(base)).copied


def test_the_hook_may_be_required(no_compiler):
    with pytest.raises(HookUnavailable):
        AllocationTracer(CopyLedger(), required=True)


@needs_hook
def test_the_report_reads_as_text_and_json():
    job = Job(mlp(), lambda: torch.randn(6, 8))
    job.step()
    job.step()
    report = job.tracer.report()
    assert str(report).startswith(f"100.0% of {report.nbytes} bytes without a copy after 2 steps")
    value = report.to_json()
    assert value["zero_copy_share"] == 1.0
    assert value["tensors"][0]["site"]["name"] == "aten.mm.default"
