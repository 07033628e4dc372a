"""Divided graphs, run by machines that never block."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is there

from engines.rdma.analyzer import allocator_hook  # noqa: E402
from engines.rdma.analyzer.allocation import SlotHeld  # noqa: E402
from engines.rdma.analyzer.allocator_hook import HookUnavailable  # noqa: E402
from engines.rdma.analyzer.capture import UnsupportedGraph, forward, joint  # noqa: E402
from engines.rdma.analyzer.graph_executor import GraphExecutor, take_turns  # noqa: E402
from engines.rdma.analyzer.partition import parameter_server, pipeline  # noqa: E402
from engines.rdma.analyzer.plan import analyze, judge  # noqa: E402
from engines.rdma.analyzer.ports import Memory, Overwritten  # noqa: E402
from engines.rdma.copies import CopyLedger  # noqa: E402
from engines.rdma.placement import ShapeChanged  # noqa: E402
from harness.api import HarnessError  # noqa: E402

needs_hook = pytest.mark.skipif(allocator_hook.compiler() is None, reason="no C++ compiler")


class Machines:
    """All machines of a plan in this process."""

    def __init__(self, plan, **memory):
        self.plan, self.memory = plan, Memory(plan, **memory)
        self.ledgers = {machine: CopyLedger() for machine in plan.machines}
        self.executors = {
            machine: GraphExecutor(plan, machine, self.memory.port(machine), self.ledgers[machine])
            for machine in plan.machines
        }

    def step(self, **inputs):
        for ledger in self.ledgers.values():
            ledger.clear()
        found = take_turns(
            {
                machine: executor.step({name: inputs[name] for name in executor.inputs})
                for machine, executor in self.executors.items()
            }
        )
        return {name: value for results in found.values() for name, value in results.items()}

    @property
    def copied(self):
        return sum(ledger.nbytes for ledger in self.ledgers.values())

    def report(self):
        return judge(self.plan, {name: executor.tracer.report() for name, executor in self.executors.items()})


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, data):
        return self.second(torch.relu(self.first(data)))


def squares(output):
    return output.pow(2).sum()


def cut(module, data, stages, **shapes):
    program = joint(torch.export.export(module, (data,), **shapes), squares)
    return program, analyze(program, pipeline(program, stages))


def whole(program, inputs):
    values = [program.state[each.name] if each.name in program.state else inputs[each.name] for each in program.inputs]
    with torch.set_grad_enabled(program.grad_mode):
        return dict(zip(program.outputs, program.module(*values), strict=True))


@needs_hook
def test_a_pipeline_equals_the_whole_and_copies_nothing_from_the_second_step():
    program, plan = cut(TwoLayers(), torch.randn(6, 8), {"first": "a", "second": "b"})
    machines = Machines(plan)
    for step in range(4):
        data = torch.randn(6, 8)
        found, expected = machines.step(data=data), whole(program, {"data": data})
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value), name
        assert machines.copied == (2 * 6 * 16 * 4 if step == 0 else 0)
        del found
    assert machines.report().zero_copy_share == 1.0


@needs_hook
def test_a_parameter_server_trains_without_copies():
    module = TwoLayers()
    program = joint(torch.export.export(module, (torch.randn(6, 8),)), squares, replicas=2)
    machines = Machines(analyze(program, parameter_server(program)))
    server = machines.executors["server"]
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    for step in range(4):
        halves = torch.randn(6, 8), torch.randn(6, 8)
        found = machines.step(**{"data@0": halves[0], "data@1": halves[1]})
        assert (machines.copied == 0) == (step > 0)
        for name, _ in module.named_parameters():
            server.state[name].sub_(0.01 * found[f"grad:{name}"])
        del found
        optimizer.zero_grad()
        (sum(squares(module(half)) for half in halves) / 2).backward()
        optimizer.step()
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(server.state[name], parameter)
    assert machines.report().zero_copy_share == 1.0


def test_without_a_compiler_a_pipeline_equals_the_whole(monkeypatch):
    def missing():
        raise HookUnavailable("no C++ compiler")

    monkeypatch.setattr(allocator_hook, "load", missing)
    program, plan = cut(TwoLayers(), torch.randn(6, 8), {"first": "a", "second": "b"})
    machines = Machines(plan)
    for step in range(3):
        data = torch.randn(6, 8)
        found, expected = machines.step(data=data), whole(program, {"data": data})
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        # The gradient is a product of matrices, and may be written anywhere; relu has no variant of its own.
        assert machines.copied == (2 if step == 0 else 1) * 6 * 16 * 4
        del found


def test_a_dynamic_batch_may_change_at_every_step():
    batch = {"dynamic_shapes": ({0: torch.export.Dim("batch", min=2)},)}
    program, plan = cut(TwoLayers(), torch.randn(6, 8), {"first": "a", "second": "b"}, **batch)
    machines = Machines(plan)
    for size in (6, 3, 9):
        data = torch.randn(size, 8)
        found, expected = machines.step(data=data), whole(program, {"data": data})
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        del found


@needs_hook
def test_a_static_edge_refuses_another_shape():
    program = forward(torch.export.export(TwoLayers(), (torch.randn(6, 8),)))
    plan = analyze(program, pipeline(program, {"first": "a", "second": "b"}))
    for size in (5, 7):
        machines = Machines(plan)
        machines.step(data=torch.randn(6, 8))
        with pytest.raises(ShapeChanged, match=rf"'relu': expected float32\[6, 16\], got float32\[{size}, 16\]"):
            machines.step(data=torch.randn(size, 8))
        with pytest.raises(HarnessError, match="step 2 failed"):
            machines.step(data=torch.randn(6, 8))


@needs_hook
def test_an_input_is_copied_and_the_report_says_why():
    program = forward(torch.export.export(nn.ReLU(), (torch.randn(5),)))
    machines = Machines(analyze(program, lambda node: "a" if node.op == "placeholder" else "b"))
    for _ in range(3):
        machines.step(input=torch.randn(5))
        assert machines.copied == 20
    report = machines.report()
    assert report.zero_copy_share == 0.0
    assert "copied: no operation of the step allocated its buffer" in str(report)
    assert report.to_json()["edges"][0]["zero_copy"] is False


@needs_hook
def test_a_slice_is_copied_and_the_report_says_why():
    class Slice(nn.Module):
        def forward(self, data):
            return data.exp()[:, :2].sin()

    program = forward(torch.export.export(Slice(), (torch.randn(4, 6),)))
    machines = Machines(analyze(program, lambda node: "b" if node.name == "sin" else "a"))
    for _ in range(3):
        data = torch.randn(4, 6)
        assert torch.equal(machines.step(data=data)["output:0"], data.exp()[:, :2].sin())
        assert machines.copied == 32
    assert "a part of a larger buffer" in str(machines.report())


@needs_hook
def test_in_place_operations_pass_the_buffer_through():
    class InPlace(nn.Module):
        def forward(self, data):
            return data.mm(data.t()).relu_().mul_(3).view(16).sin()

    program = forward(torch.export.export(InPlace(), (torch.randn(4, 6),)))
    machines = Machines(analyze(program, lambda node: "b" if node.name == "sin" else "a"))
    with torch.no_grad():
        for step in range(3):
            data = torch.randn(4, 6)
            assert torch.equal(machines.step(data=data)["output:0"], InPlace()(data))
            assert machines.copied == (0 if step else 64)
    assert "aten.mm" in str(machines.report())


@needs_hook
def test_a_kept_result_is_never_overwritten():
    class Both(nn.Module):
        def forward(self, data):
            made = data.exp()
            return made, made.sin()

    program = forward(torch.export.export(Both(), (torch.randn(5),)))
    machines = Machines(analyze(program, lambda node: "b" if node.name == "sin" else "a"))
    machines.step(data=torch.randn(5))
    kept = machines.step(data=torch.ones(5))
    with pytest.raises(SlotHeld):
        machines.step(data=torch.zeros(5))
    assert torch.equal(kept["output:0"], torch.ones(5).exp())


def test_received_results_last_until_the_next_step():
    program = forward(torch.export.export(nn.Tanh(), (torch.randn(5),)))
    machines = Machines(analyze(program, lambda _: "a", results={"output:0": "b"}))
    for _ in range(3):
        data = torch.randn(5)
        assert torch.equal(machines.step(input=data)["output:0"], data.tanh())
    assert machines.memory.released[0] == 2
    machines.executors["b"].release()
    assert machines.memory.released[0] == 3


@needs_hook
def test_state_that_passes_through_to_a_result_is_copied_out_and_may_be_changed():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, data):
            return data * self.scale, self.scale.view(2, 2)

    program = forward(torch.export.export(Scale(), (torch.randn(4),)))
    machines = Machines(analyze(program, parameter_server(program)))
    state = machines.executors["server"].state["scale"]
    for step in range(3):
        found = machines.step(data=torch.ones(4))
        assert found["output:1"].tolist() == [[1.0 + step] * 2] * 2
        assert machines.ledgers["worker0"].sites == {"result: out of a slot": 16}
        state.add_(1)


def test_a_step_is_not_over_before_the_state_that_it_sent_was_taken():
    program = forward(torch.export.export(nn.Linear(4, 2), (torch.randn(3, 4),)))
    machines = Machines(analyze(program, parameter_server(program)))
    server, worker = machines.executors["server"].step({}), machines.executors["worker0"]
    waits = [next(server) for _ in range(20)]
    assert waits[-1].startswith("server: release of ")
    take_turns({"server": server, "worker0": worker.step({"input": torch.randn(3, 4)})})


def test_a_machine_computes_on_what_it_has_while_it_waits():
    class Join(nn.Module):
        def forward(self, slow, near):
            return slow.exp() + near.sin().cos().tan()

    program = forward(torch.export.export(Join(), (torch.randn(5), torch.randn(5))))
    plan = analyze(program, lambda node: "a" if node.name in ("arg0_1", "exp") else "b")
    machines = Machines(plan, delay=lambda _edge, _step: 50)
    executor = machines.executors["b"]
    step = executor.step({"near": torch.randn(5)})
    for _ in range(10):
        next(step)
    ran = list(executor.tracer._names.values())
    assert [name.split()[0] for name in ran] == ["sin", "cos", "tan"]


@needs_hook
def test_a_producer_waits_until_its_slot_is_released():
    program = forward(torch.export.export(nn.Tanh(), (torch.randn(5),)))
    machines = Machines(analyze(program, lambda _: "a", results={"output:0": "b"}))
    for value in (2.0, 3.0):
        machines.step(input=torch.full((5,), value))
    slot = machines.executors["a"]._slots["tanh"].view(torch.float32)
    ahead = machines.executors["a"].step({"input": torch.full((5,), 4.0)})
    waits = [next(ahead) for _ in range(20)]
    assert "release of tanh" in waits[-1][0]
    assert torch.equal(slot, torch.full((5,), 3.0).tanh()), "what may still be on the wire"
    machines.executors["b"].release()
    assert take_turns({"a": ahead}) == {"a": {}}
    assert torch.equal(slot, torch.full((5,), 4.0).tanh())


def test_the_memory_port_refuses_to_overwrite():
    program = forward(torch.export.export(nn.Tanh(), (torch.randn(5),)))
    plan = analyze(program, lambda _: "a", results={"output:0": "b"})
    port = Memory(plan).port("a")
    with pytest.raises(Overwritten, match="tanh: step 2 would overwrite step 1"):
        port.post(plan.edges[0], 2)


def test_random_numbers_keep_their_order():
    class Noisy(nn.Module):
        def forward(self, late, early):
            return torch.rand_like(late.exp()), torch.rand_like(early)

    program = forward(torch.export.export(Noisy(), (torch.randn(5), torch.randn(5))))
    plan = analyze(program, lambda node: "a" if node.name in ("arg0_1", "exp") else "b")
    machines = Machines(plan, delay=lambda _edge, _step: 9)
    inputs = {"late": torch.randn(5), "early": torch.randn(5)}
    torch.manual_seed(3)
    found = machines.step(**inputs)
    torch.manual_seed(3)
    expected = whole(program, inputs)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_change_in_place_waits_for_those_who_read_before():
    class Late(nn.Module):
        def forward(self, slow, data):
            made = data.sin()
            before = made * slow.exp()
            return before, made.add_(1)

    program = forward(torch.export.export(Late(), (torch.randn(5), torch.randn(5))))
    plan = analyze(program, lambda node: "a" if node.name in ("arg0_1", "exp") else "b")
    machines = Machines(plan, delay=lambda _edge, _step: 9)
    inputs = {"slow": torch.randn(5), "data": torch.randn(5)}
    found, expected = machines.step(**inputs), whole(program, inputs)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_changes_in_place_keep_their_order():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    program, plan = cut(module, torch.randn(2, 3, 5, 5), {"0": "a", "1": "b", "2": "b", "3": "a"})
    machines = Machines(plan)
    reference = {name: value.clone() for name, value in program.state.items()}
    for _ in range(3):
        data = torch.randn(2, 3, 5, 5)
        machines.step(input=data)
        values = [reference.get(each.name, data) for each in program.inputs]
        program.module(*values)
        state = machines.executors["b"].state
        assert torch.equal(state["1.running_var"], reference["1.running_var"])
        assert torch.equal(state["1.num_batches_tracked"], reference["1.num_batches_tracked"])


def test_machines_that_wait_for_one_another_are_told():
    program = forward(torch.export.export(nn.Tanh(), (torch.randn(5),)))
    machines = Machines(analyze(program, lambda _: "a", results={"output:0": "b"}))
    with pytest.raises(HarnessError, match="no machine gets on: b: tanh"):
        take_turns({"b": machines.executors["b"].step({})})


def test_misuse_is_refused():
    program = forward(torch.export.export(nn.Tanh(), (torch.randn(5),)))
    plan = analyze(program, lambda _: "a")
    with pytest.raises(UnsupportedGraph, match="no machine 'z' in the plan; there are a"):
        GraphExecutor(plan, "z", Memory(plan).port("a"), CopyLedger())
    executor = GraphExecutor(plan, "a", Memory(plan).port("a"), CopyLedger())
    with pytest.raises(HarnessError, match="machine 'a' needs the inputs input"):
        next(executor.step({}))
