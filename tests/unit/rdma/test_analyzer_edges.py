"""Capturing a graph, placing its nodes, and the edges between machines."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is there

from engines.rdma.analyzer.capture import Phase, Role, UnsupportedGraph, forward, joint, tag  # noqa: E402
from engines.rdma.analyzer.edges import Protocol  # noqa: E402
from engines.rdma.analyzer.partition import UnplacedNodes, parameter_server, pipeline  # noqa: E402
from engines.rdma.analyzer.plan import analyze  # noqa: E402


def export(module, *data, batch=None):
    shapes = None if batch is None else tuple({0: batch} for _ in data)
    return torch.export.export(module, data, dynamic_shapes=shapes)


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, data):
        return self.second(torch.relu(self.first(data)))


def squares(output):
    return output.pow(2).sum()


STAGES = {"first": "a", "second": "b"}


def crossing(plan):
    return [(edge.source, edge.target, edge.dtype, edge.shape, str(edge.protocol)) for edge in plan.edges]


def test_a_pipeline_cut_of_the_forward_pass_has_one_edge():
    program = forward(export(TwoLayers(), torch.randn(6, 8)))
    plan = analyze(program, pipeline(program, STAGES))
    assert crossing(plan) == [("a", "b", "float32", (6, 16), "static")]
    assert plan.edges[0].nbytes == 6 * 16 * 4
    assert plan.edges[0].producer == "relu"
    assert plan.results == {"output:0": "b"}
    assert plan.machines == ("a", "b")


def test_a_dynamic_batch_makes_the_edge_dynamic_and_keeps_its_rank():
    program = forward(export(TwoLayers(), torch.randn(6, 8), batch=torch.export.Dim("batch", min=2)))
    (edge,) = analyze(program, pipeline(program, STAGES)).edges
    assert edge.protocol is Protocol.DYNAMIC
    assert edge.nbytes is None
    assert isinstance(edge.shape[0], str)
    assert edge.shape[1:] == (16,)


def test_the_backward_pass_follows_the_modules_that_it_differentiates():
    program = joint(export(TwoLayers(), torch.randn(6, 8)), squares)
    plan = analyze(program, pipeline(program, STAGES))
    assert crossing(plan) == [
        ("a", "b", "float32", (6, 16), "static"),
        ("b", "a", "float32", (6, 16), "static"),
    ]
    assert plan.results["grad:first.weight"] == "a"
    assert plan.results["grad:second.weight"] == plan.results["loss"] == "b"


def test_parameter_server_edges_are_parameters_and_gradients():
    module = TwoLayers()
    program = joint(export(module, torch.randn(6, 8)), squares, replicas=2)
    plan = analyze(program, parameter_server(program))
    size = sum(parameter.nbytes for parameter in module.parameters())
    for worker in ("worker0", "worker1"):
        assert sum(edge.nbytes for edge in plan.received_by(worker)) == size
        assert sum(edge.nbytes for edge in plan.sent_by(worker)) == size
    assert plan.results["grad:first.bias"] == "server"
    assert plan.results["loss@1"] == "worker1"


def test_with_a_dynamic_batch_parameters_and_gradients_stay_static():
    exported = export(TwoLayers(), torch.randn(6, 8), batch=torch.export.Dim("batch", min=2))
    program = joint(exported, squares)
    gradients = {name: "server" for name in program.outputs if name.startswith("grad:")}
    plan = analyze(program, parameter_server(program), results=gradients)
    assert len(plan.edges) == 8
    assert {edge.protocol for edge in plan.edges} == {Protocol.STATIC}


def test_consumers_on_one_machine_share_an_edge_and_a_slot_serves_all_machines():
    class Fan(nn.Module):
        def forward(self, data):
            shared = data.exp()
            return shared.sin(), shared.cos(), shared.tan()

    program = forward(export(Fan(), torch.randn(3)))
    where = {"sin": "b", "cos": "b", "tan": "c"}
    plan = analyze(program, lambda node: where.get(node.name, "a"))
    assert [(edge.target, edge.consumers) for edge in plan.edges] == [("b", ("sin", "cos")), ("c", ("tan",))]
    (targets, (edge,)) = next(iter(plan.slot_groups("a").items()))
    assert targets == ("b", "c")
    assert edge.producer == "exp"


def test_a_result_may_be_wanted_elsewhere():
    program = forward(export(TwoLayers(), torch.randn(6, 8)))
    plan = analyze(program, lambda _: "a", results={"output:0": "b"})
    assert [(edge.target, edge.consumers) for edge in plan.edges] == [("b", ("output",))]
    with pytest.raises(UnsupportedGraph, match=r"no outputs output:7; there are output:0"):
        analyze(program, lambda _: "a", results={"output:7": "b"})


def test_unplaced_nodes_are_named():
    program = forward(export(TwoLayers(), torch.randn(6, 8)))
    with pytest.raises(UnplacedNodes, match=r"no machine for relu, addmm_1$"):
        analyze(program, lambda node: None if node.name in ("relu", "addmm_1") else "a")


def test_parts_of_a_result_are_where_the_result_is():
    class Split(nn.Module):
        def forward(self, data):
            smallest, largest = torch.aminmax(data)
            return smallest + largest

    program = forward(export(Split(), torch.randn(5)))
    plan = analyze(program, lambda node: "b" if node.name == "add" else "a")
    assert [edge.producer for edge in plan.edges] == ["getitem", "getitem_1"]


def test_what_is_changed_in_place_may_not_cross():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    program = joint(export(module, torch.randn(2, 3, 5, 5)), squares)
    buffers = {each.node for each in program.inputs if each.role is Role.BUFFER}
    with pytest.raises(
        UnsupportedGraph, match=r"sent from 'far' to 'near' and changed in place by 'native_batch_norm'"
    ):
        analyze(program, lambda node: "far" if node.name in buffers and "add_" not in str(node.users) else "near")


def test_transposed_and_expanded_tensors_travel_as_they_lie():
    class Shapes(nn.Module):
        def forward(self, data):
            made = data.exp()
            return made.t().sin(), made[:1].expand(4, 6).cos()

    program = forward(export(Shapes(), torch.randn(3, 6)))
    plan = analyze(program, lambda node: "b" if node.name in ("sin", "cos") else "a")
    transposed, expanded = plan.edges
    assert (transposed.shape, transposed.wire_shape) == ((6, 3), (3, 6))
    assert expanded.shape == (4, 6)
    assert expanded.nbytes == 6 * 4
    base = torch.randn(3, 6)
    for edge, value in ((transposed, base.t()), (expanded, base[:1].expand(4, 6))):
        wire = edge.to_wire(value)
        assert wire.is_contiguous()
        assert wire.nbytes == edge.nbytes
        back = edge.from_wire(wire.clone())
        assert torch.equal(back, value)
        assert back.stride() == value.stride()


def test_numbers_cross_as_eight_bytes():
    class Sized(nn.Module):
        def forward(self, data):
            return data.exp(), torch.zeros(data.shape[0])

    program = forward(export(Sized(), torch.randn(6, 8), batch=torch.export.Dim("batch", min=2)))
    plan = analyze(program, lambda node: "b" if node.name == "zeros" else "a")
    (edge,) = plan.edges
    assert (edge.scalar, edge.dtype, edge.nbytes, edge.protocol) == (True, "int64", 8, Protocol.STATIC)


def test_nodes_know_where_they_come_from():
    program = joint(export(TwoLayers(), torch.randn(6, 8)), squares)
    tags = {node.name: tag(node) for node in program.nodes}
    assert tags["addmm_1"].module == "second"
    assert tags["addmm_1"].phase is Phase.FORWARD
    assert tags["mm"].module == "second"
    assert tags["mm"].phase is Phase.BACKWARD
    assert tags["sum_1"].phase is Phase.LOSS


def test_a_joint_graph_is_the_gradient():
    module, data = TwoLayers(), torch.randn(6, 8)
    program = joint(export(module, data), squares)
    values = [program.state.get(each.name, data) for each in program.inputs]
    found = dict(zip(program.outputs, program.module(*values), strict=True))
    squares(module(data)).backward()
    for name, parameter in module.named_parameters():
        assert torch.equal(found[f"grad:{name}"], parameter.grad), name


def test_replicas_average_their_gradients():
    module, halves = TwoLayers(), [torch.randn(6, 8), torch.randn(6, 8)]
    program = joint(export(module, halves[0]), squares, replicas=2)
    inputs = {f"data@{replica}": half for replica, half in enumerate(halves)}
    values = [program.state[each.name] if each.name in program.state else inputs[each.name] for each in program.inputs]
    found = dict(zip(program.outputs, program.module(*values), strict=True))
    for half in halves:
        (squares(module(half)) / 2).backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(found[f"grad:{name}"], parameter.grad)


def test_unsupported_graphs_are_refused():
    exported = export(TwoLayers(), torch.randn(6, 8))
    with pytest.raises(UnsupportedGraph, match=r"a loss must be a scalar, got shape \[6, 4\]"):
        joint(exported)
    with pytest.raises(UnsupportedGraph, match="needs parameters"):
        joint(export(nn.ReLU(), torch.randn(3)), squares)
    dynamic = export(TwoLayers(), torch.randn(6, 8), batch=torch.export.Dim("batch", min=2))
    with pytest.raises(UnsupportedGraph, match="fixed batch"):
        joint(dynamic, squares, replicas=2)


def test_a_plan_reads_as_text_and_json():
    program = forward(export(TwoLayers(), torch.randn(6, 8)))
    plan = analyze(program, pipeline(program, STAGES))
    assert str(plan).splitlines() == [
        "1 edges between a, b",
        "  relu float32[6, 16], 384 B, static: a -> b (addmm_1)",
    ]
    assert plan.to_json()["edges"][0]["bytes"] == 384
