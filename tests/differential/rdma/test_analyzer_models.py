"""Divided and traced models against PyTorch itself: the same bits, and no payload copy from the second step."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is there

from engines.rdma.analyzer import allocator_hook  # noqa: E402
from engines.rdma.analyzer.allocation import AllocationTracer  # noqa: E402
from engines.rdma.analyzer.capture import joint  # noqa: E402
from engines.rdma.analyzer.edges import Protocol  # noqa: E402
from engines.rdma.analyzer.graph_executor import GraphExecutor, take_turns  # noqa: E402
from engines.rdma.analyzer.partition import parameter_server, pipeline  # noqa: E402
from engines.rdma.analyzer.plan import analyze, judge  # noqa: E402
from engines.rdma.analyzer.ports import Memory, aligned  # noqa: E402
from engines.rdma.copies import CopyLedger  # noqa: E402

# torch.export says this of every LSTM, and means its cached list of weights.
pytestmark = pytest.mark.filterwarnings("ignore:The tensor attributes .*_flat_weights:UserWarning")
needs_hook = pytest.mark.skipif(allocator_hook.compiler() is None, reason="no C++ compiler")


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        self.body = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        self.head = nn.Linear(64, 10)

    def forward(self, images):
        return self.head(self.body(self.stem(images)).flatten(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.lstm = nn.LSTM(16, 32, 2, batch_first=True)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 50)

    def forward(self, tokens):
        return self.head(self.norm(self.lstm(self.embedding(tokens))[0]))


class Tied(nn.Module):
    """A transformer whose output layer is its embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 50)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.block(self.embedding(tokens)))


class Bert(nn.Module):
    def __init__(self):
        super().__init__()
        from transformers import BertConfig, BertModel

        sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
        self.bert = BertModel(BertConfig(vocab_size=100, attn_implementation="eager", **sizes))

    def forward(self, tokens):
        return self.bert(tokens).last_hidden_state


def tokens():
    return torch.randint(0, 50, (4, 7))


MODELS = {
    "convolutional": (Convolutional, lambda: torch.randn(4, 3, 12, 12), {"stem": "a", "body": "b", "head": "c"}),
    "recurrent": (Recurrent, tokens, {"embedding": "a", "lstm": "b", "norm": "c", "head": "c"}),
    "transformer": (Tied, tokens, {"embedding": "a", "block": "b", "head": "a"}),
    "bert": (Bert, tokens, {"bert.embeddings": "a", "bert.encoder.layer.0": "a", "bert.encoder.layer.1": "b", "": "b"}),
}


@pytest.fixture(params=MODELS)
def model(request):
    if request.param == "bert":
        pytest.importorskip("transformers")
    make_module, make_input, stages = MODELS[request.param]
    torch.manual_seed(5)
    return make_module().train(), make_input, stages


def squares(output):
    return output.pow(2).mean()


class Machines:
    def __init__(self, plan):
        memory = Memory(plan)
        self.plan, self.ledgers = plan, {name: CopyLedger() for name in plan.machines}
        self.executors = {
            name: GraphExecutor(plan, name, memory.port(name), self.ledgers[name]) for name in plan.machines
        }

    def step(self, inputs):
        for ledger in self.ledgers.values():
            ledger.clear()
        found = take_turns(
            {name: each.step({key: inputs[key] for key in each.inputs}) for name, each in self.executors.items()}
        )
        return {name: value for results in found.values() for name, value in results.items()}

    def copied(self):
        return {name: ledger.sites for name, ledger in self.ledgers.items() if ledger.sites}


@needs_hook
def test_gradients_of_the_unmodified_module_are_produced_in_their_slots(model):
    module, make_input, _ = model
    twin = copy.deepcopy(module)
    ledger = CopyLedger()
    tracer = AllocationTracer(ledger)
    slots = {
        name: aligned(parameter.nbytes) for name, parameter in module.named_parameters() if parameter.requires_grad
    }
    unused = set()
    tracer.promote(slots)
    for step in range(4):
        data = make_input()
        module.zero_grad(set_to_none=True)
        twin.zero_grad(set_to_none=True)
        torch.manual_seed(step)
        squares(twin(data)).backward()
        torch.manual_seed(step)
        with tracer.step():
            squares(module(data)).backward()
        ledger.clear()
        for name, parameter in module.named_parameters():
            if parameter.grad is None:
                unused.add(name)
                continue
            tracer.place(name, parameter.grad)
            expected = dict(twin.named_parameters())[name].grad
            assert torch.equal(slots[name].view(expected.dtype).view(expected.shape), expected), name
        assert (ledger.nbytes == 0) == (step > 0), ledger.sites
    # A pooler whose output the loss does not see.
    assert all("pooler" in name for name in unused)


@needs_hook
def test_a_parameter_server_gets_the_same_gradients_without_copies(model):
    module, make_input, _ = model
    program = joint(torch.export.export(module, (make_input(),)), squares)
    gradients = {name: "server" for name in program.outputs if name.startswith("grad:")}
    plan = analyze(program, parameter_server(program), results=gradients)
    assert {edge.protocol for edge in plan.edges} == {Protocol.STATIC}
    machines = Machines(plan)
    (data_name,) = machines.executors["worker0"].inputs
    for step in range(4):
        data = make_input()
        module.zero_grad(set_to_none=True)
        torch.manual_seed(step)
        loss = squares(module(data))
        loss.backward()
        torch.manual_seed(step)
        found = machines.step({data_name: data})
        assert torch.equal(found["loss"], loss)
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                assert torch.equal(found[f"grad:{name}"], parameter.grad), name
        assert (machines.copied() == {}) == (step > 0), machines.copied()
        del found


@needs_hook
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_a_pipeline_computes_the_same_bits_as_the_whole(model, dynamic):
    module, make_input, stages = model
    shapes = ({0: torch.export.Dim("batch", min=2, max=64)},) if dynamic else None
    program = joint(torch.export.export(module, (make_input(),), dynamic_shapes=shapes), squares)
    plan = analyze(program, pipeline(program, stages))
    kinds = {edge.protocol for edge in plan.edges if edge.shape}
    assert (Protocol.DYNAMIC in kinds) == dynamic
    machines = Machines(plan)
    reference = {name: value.clone() for name, value in program.state.items()}
    data_name = next(each.name for each in program.inputs if each.name not in reference)
    draws = any(torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) for node in program.nodes)
    for step in range(3):
        data = make_input()
        if dynamic and step:
            data = data[: 1 + step]
        torch.manual_seed(step)
        values = [reference.get(each.name, data) for each in program.inputs]
        with torch.set_grad_enabled(program.grad_mode):
            expected = dict(zip(program.outputs, program.module(*values), strict=True))
        torch.manual_seed(step)
        found = machines.step({data_name: data})
        assert found.keys() == expected.keys()
        if not draws or len({plan.machine_of[node] for node in plan.machine_of}) == 1:
            for name, value in expected.items():
                assert torch.equal(found[name], value), name
        static = {name: sites.get("allocation: to slot", 0) for name, sites in machines.copied().items()}
        if step:
            report = judge(plan, {name: each.tracer.report() for name, each in machines.executors.items()})
            assert not any(static.values()), str(report)
        del found
