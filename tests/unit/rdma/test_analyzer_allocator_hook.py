"""The allocator hook: numbering, serving, and leaving everybody else alone."""

from __future__ import annotations

import gc
import threading

import pytest

torch = pytest.importorskip("torch")

from engines.rdma.analyzer import allocator_hook  # noqa: E402 - after the check that torch is there
from engines.rdma.analyzer.allocator_hook import HookUnavailable, Origin, Trace  # noqa: E402

pytestmark = pytest.mark.skipif(allocator_hook.compiler() is None, reason="no C++ compiler")


@pytest.fixture
def trace():
    return Trace()


def slot(nbytes):
    memory = torch.zeros(nbytes + 64, dtype=torch.uint8)
    start = -memory.data_ptr() % 64
    return memory[start : start + nbytes]


def test_an_allocation_is_known_by_operation_and_ordinal(trace):
    with trace.entered():
        trace.operation(3)
        first, second = torch.empty(4), torch.empty(5)
        trace.operation(7)
        third = torch.empty(6)
    assert trace.origin(first.data_ptr()) == Origin(3, 0, 16)
    assert trace.origin(second.data_ptr()) == Origin(3, 1, 20)
    assert trace.origin(third.data_ptr()) == Origin(7, 0, 24)


def test_a_freed_buffer_has_no_origin(trace):
    with trace.entered():
        trace.operation(0)
        tensor = torch.empty(1000)
    address = tensor.data_ptr()
    del tensor
    assert trace.origin(address) is None


def test_views_and_in_place_operations_keep_the_buffer(trace):
    with trace.entered():
        trace.operation(0)
        tensor = torch.ones(4, 6)
        trace.operation(1)
        passed = tensor.t().add_(tensor.t()).view(6, 4).detach()
        trace.operation(2)
        copied = passed.reshape(24)
    assert trace.origin(passed.data_ptr()) == Origin(0, 0, 96)
    assert trace.origin(copied.data_ptr()) == Origin(2, 0, 96), "reshape of a transposed tensor copies"


def test_a_bound_allocation_is_answered_from_the_slot(trace):
    memory = slot(16)
    trace.bind(Origin(2, 1, 16), memory)
    with trace.entered():
        trace.operation(2)
        tensors = [torch.full((4,), float(value)) for value in range(3)]
    assert [tensor.data_ptr() == memory.data_ptr() for tensor in tensors] == [False, True, False]
    assert memory.view(torch.float32).tolist() == [1.0] * 4
    assert trace.served == 1
    assert trace.allocations == 3


def test_a_slot_that_is_too_small_is_refused(trace):
    with pytest.raises(ValueError, match="a slot of 8 bytes for an allocation of 16"):
        trace.bind(Origin(0, 0, 16), slot(8))


def test_another_size_is_never_served(trace):
    memory = slot(64)
    trace.bind(Origin(0, 0, 16), memory)
    with trace.entered():
        for count in (3, 5):
            trace.operation(0)
            assert torch.zeros(count).data_ptr() != memory.data_ptr()
    assert trace.served == 0


def test_a_slot_that_a_tensor_holds_is_not_lent_again(trace):
    memory = slot(16)
    trace.bind(Origin(0, 0, 16), memory)
    with trace.entered():
        trace.operation(0)
        held = torch.ones(4)
        trace.operation(0)
        other = torch.zeros(4)
        assert trace.is_lent(memory.data_ptr())
        assert held.tolist() == [1.0] * 4
        assert other.data_ptr() != memory.data_ptr()
        del held
        assert not trace.is_lent(memory.data_ptr())
        trace.operation(0)
        assert torch.zeros(4).data_ptr() == memory.data_ptr()


def test_what_grows_moves_out_of_the_slot(trace):
    memory = slot(16)
    trace.bind(Origin(0, 0, 16), memory)
    with trace.entered():
        trace.operation(0)
        tensor = torch.ones(4)
    tensor.resize_(64)
    assert tensor[:4].tolist() == [1.0] * 4
    assert tensor.data_ptr() != memory.data_ptr()
    assert not trace.is_lent(memory.data_ptr())


def test_outside_a_trace_nothing_is_numbered_or_served(trace):
    memory = slot(16)
    trace.bind(Origin(0, 0, 16), memory)
    trace.operation(0)
    tensor = torch.zeros(4)
    assert tensor.data_ptr() != memory.data_ptr()
    assert trace.origin(tensor.data_ptr()) is None
    assert trace.allocations == 0


def test_an_exception_takes_the_trace_out_of_charge(trace):
    with pytest.raises(ZeroDivisionError), trace.entered():
        _ = 1 // 0
    assert trace.origin(torch.zeros(4).data_ptr()) is None


def test_the_outer_trace_is_back_in_charge_after_the_inner(trace):
    inner = Trace()
    with trace.entered():
        trace.operation(5)
        before = torch.zeros(4)
        with inner.entered():
            inner.operation(0)
            inside = torch.zeros(4)
        after = torch.zeros(4)
    assert trace.origin(before.data_ptr()) == Origin(5, 0, 16)
    assert trace.origin(inside.data_ptr()) is None
    assert inner.origin(inside.data_ptr()) == Origin(0, 0, 16)
    assert trace.origin(after.data_ptr()) == Origin(5, 1, 16)


def test_other_threads_are_left_alone(trace):
    made = []
    with trace.entered():
        trace.operation(0)
        thread = threading.Thread(target=lambda: made.append(torch.zeros(4)))
        thread.start()
        thread.join()
        mine = torch.zeros(4)
    assert trace.origin(made[0].data_ptr()) is None
    assert trace.origin(mine.data_ptr()) == Origin(0, 0, 16)


def test_another_thread_may_free_a_slot(trace):
    memory = slot(16)
    trace.bind(Origin(0, 0, 16), memory)
    with trace.entered():
        trace.operation(0)
        tensors = [torch.zeros(4)]
    thread = threading.Thread(target=tensors.clear)
    thread.start()
    thread.join()
    assert not trace.is_lent(memory.data_ptr())


def test_a_tensor_may_outlive_its_trace():
    trace = Trace()
    memory = slot(16)
    trace.bind(Origin(0, 0, 16), memory)
    with trace.entered():
        trace.operation(0)
        tensor, other = torch.ones(4), torch.ones(5)
    del trace
    gc.collect()
    assert tensor.tolist() == [1.0] * 4
    del tensor, other
    assert not Trace().is_lent(memory.data_ptr())


def test_allocations_and_frees_balance(trace):
    memory = slot(4 * 32)
    trace.bind(Origin(1, 0, 4 * 32), memory)
    gc.collect()
    before = allocator_hook.balance()
    for _ in range(20):
        with trace.entered():
            trace.operation(0)
            weight = torch.randn(8, 32, requires_grad=True)
            trace.operation(1)
            torch.randn(4, 8).mm(weight).exp().sum().backward()
            torch.empty(0)
        weight.grad.numpy().sum()
        del weight
    gc.collect()
    assert allocator_hook.balance() == before


def test_no_compiler_is_a_typed_error(monkeypatch, tmp_path):
    monkeypatch.setattr(allocator_hook, "compiler", lambda: None)
    with pytest.raises(HookUnavailable, match=r"no C\+\+ compiler"):
        allocator_hook.build(tmp_path)


def test_a_compiler_that_fails_is_quoted(monkeypatch, tmp_path):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'no such header' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(HookUnavailable, match=r"could not compile allocator_hook\.cpp: no such header"):
        allocator_hook.build(tmp_path / "cache")


def test_the_library_is_compiled_once(monkeypatch, tmp_path):
    fake = tmp_path / "fake"
    # Counts its calls, and writes what -o names.
    fake.write_text('#!/bin/sh\necho x >> "$0.calls"\nwhile [ "$1" != -o ]; do shift; done\necho built > "$2"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    first, second = allocator_hook.build(tmp_path / "cache"), allocator_hook.build(tmp_path / "cache")
    assert first == second
    assert first.read_text() == "built\n"
    assert (tmp_path / "fake.calls").read_text() == "x\n"
