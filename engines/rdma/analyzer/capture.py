"""A model's data-flow graph: captured by `torch.export`, and differentiated.

`torch.export` gives the forward pass as a graph of ATen operations, with dynamic dimensions where the user declared
them. `forward` and `joint` run that graph once more on its own fake tensors under `make_fx`, `joint` with a loss and
its gradients behind it, so that every node of the result is one kernel call and carries its value's shape, strides and
element type. (`torch.export` itself captures no backward pass; `aot_export_module` does, but takes a module instead of
an exported program, and loses its dynamic dimensions.)

Every node carries a `Tag` in `node.meta[TAG]`: from which exported operation and module it comes, and to which part of
a training step it belongs, so that a machine can be chosen for it.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from harness.api import HarnessError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch
    from torch.export import ExportedProgram
    from torch.fx import Graph, GraphModule, Node

TAG = "rdma_tag"
"""Key of a node's `Tag` in `node.meta`."""


class UnsupportedGraph(HarnessError):
    """A graph that cannot be captured or divided; the error names the nodes."""


class Role(StrEnum):
    """What an input of a graph is."""

    PARAMETER = "parameter"
    BUFFER = "buffer"
    CONSTANT = "constant"
    INPUT = "input"


class Phase(StrEnum):
    """Which part of a training step a node belongs to."""

    INPUT = "input"
    FORWARD = "forward"
    LOSS = "loss"
    BACKWARD = "backward"
    REDUCE = "reduce"
    """The sum of replicas' gradients."""


@dataclass(frozen=True)
class Tag:
    """Where a node comes from."""

    phase: Phase
    replica: int = 0
    module: str = ""
    """Path of the module whose forward pass the node belongs to, or differentiates."""
    operation: str = ""
    """Name of the exported node."""


@dataclass(frozen=True)
class Input:
    """A placeholder of a captured graph, in order."""

    node: str
    role: Role
    name: str
    """Of a parameter or buffer, its path in the module; of an input, its name in the signature, `@` and the replica
    behind it where there are several."""


@dataclass(frozen=True)
class Program:
    """A captured graph with its signature."""

    module: GraphModule
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    """Names of what it returns, in order: `loss`, `grad:<parameter>`, `output:<i>`."""
    state: dict[str, torch.Tensor]
    """Initial values of parameters, buffers and constants by `Input.name`."""
    grad_mode: bool
    """Whether gradients were enabled at capture; some kernels (LSTM) do another thing then, so it must be so again."""

    @property
    def nodes(self) -> list[Node]:
        """In execution order."""
        return list(self.module.graph.nodes)


def tag(node: Node) -> Tag | None:
    """Where a node comes from, if its graph was captured here."""
    return node.meta.get(TAG)


def forward(exported: ExportedProgram) -> Program:
    """The forward pass, one node a kernel; returns `output:0`, ...

    Raises:
        UnsupportedGraph: the program has inputs other than tensors.
    """
    return _capture(exported, None, 1)


def joint(exported: ExportedProgram, loss: Callable[..., torch.Tensor] | None = None, *, replicas: int = 1) -> Program:
    """A data-parallel training step: forward and backward pass of every replica, and the mean of the gradients.

    Args:
        exported: the model, exported in training mode.
        loss: makes a scalar of the model's outputs; default: the first output is the loss.
        replicas: how many; each has its own inputs and buffers, all share the parameters.

    Returns:
        A program that returns `loss` (`loss@r` where there are several replicas) and `grad:<name>` for every parameter.

    Raises:
        UnsupportedGraph: inputs other than tensors, no parameters, a loss that is no scalar, or replicas with dynamic
            dimensions.
    """
    return _capture(exported, loss or (lambda first, *_: first), replicas)


class _Tagger:
    """Tags the nodes of the graph under capture with the part of the step that makes them."""

    def __init__(self) -> None:
        self._current = Tag(Phase.INPUT)

    def enter(self, following: Tag) -> None:
        """What was made up to here belongs to the part before; what is made from now on to `following`."""
        from torch.fx.experimental.proxy_tensor import get_proxy_mode

        mode = get_proxy_mode()
        assert mode is not None
        self.finish(mode.tracer.graph)
        self._current = following

    def finish(self, graph: Graph) -> None:
        """Tag what has no tag yet."""
        for node in reversed(graph.nodes):
            if TAG in node.meta:
                break
            node.meta[TAG] = self._current


def _module_path(node: Node) -> str:
    """The innermost module of an exported node."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()))[0] if stack else ""
    return path.removeprefix("L['self'].").removeprefix("L['self']")


def _capture(exported: ExportedProgram, loss: Callable[..., torch.Tensor] | None, replicas: int) -> Program:
    import torch
    from torch._dispatch.python import enable_python_dispatcher
    from torch.fx.experimental.proxy_tensor import make_fx

    signature = _signature(exported)
    roles = [role for role, _ in signature]
    own = [index for index, role in enumerate(roles) if role in (Role.INPUT, Role.BUFFER)]
    placeholders = [node for node in exported.graph_module.graph.nodes if node.op == "placeholder"]
    fakes = [node.meta["val"] for node in placeholders]
    for node, fake in zip(placeholders, fakes, strict=True):
        if not isinstance(fake, torch.Tensor):
            raise UnsupportedGraph(f"input {node.name!r}: expected a tensor, got {type(fake).__name__}")
    dynamic = any(isinstance(size, torch.SymInt) for fake in fakes for size in fake.shape)
    if dynamic and replicas > 1:
        raise UnsupportedGraph("replicas would share their dynamic dimensions: export the model with a fixed batch")
    first = _first_of_tied(exported, signature)
    parameters = [
        index for index, (role, _) in enumerate(signature) if role is Role.PARAMETER and first[index] == index
    ]
    if loss and not parameters:
        raise UnsupportedGraph("a joint graph needs parameters, and the program has none")
    shared = [index for index in range(len(signature)) if index not in own and first[index] == index]
    order = [(index, 0) for index in shared] + [(index, replica) for replica in range(replicas) for index in own]
    tagger = _Tagger()

    def step(*values: torch.Tensor) -> list[torch.Tensor]:
        by_place = dict(zip(order, values, strict=True))
        losses, gradients = [], []
        for replica in range(replicas):
            tagger.enter(Tag(Phase.FORWARD, replica))
            arguments = [by_place[first[index], replica if index in own else 0] for index in range(len(signature))]
            if loss is None:
                return list(_run(exported.graph_module, arguments, tagger, replica))
            leaves = {index: arguments[index].detach().requires_grad_() for index in parameters}
            arguments = [leaves.get(first[index], value) for index, value in enumerate(arguments)]
            results = _run(exported.graph_module, arguments, tagger, replica)
            tagger.enter(Tag(Phase.LOSS, replica))
            value = loss(*results)
            if value.dim():
                raise UnsupportedGraph(f"a loss must be a scalar, got shape {list(value.shape)}")
            gradients.append(torch.autograd.grad(value, list(leaves.values()), materialize_grads=True))
            tagger.enter(Tag(Phase.LOSS, replica))
            losses.append(value.detach())
        if replicas == 1:
            return [*losses, *gradients[0]]
        tagger.enter(Tag(Phase.REDUCE))
        return [*losses, *(sum(each[1:], each[0]) / replicas for each in zip(*gradients, strict=True))]

    with ExitStack() as modes:
        modes.enter_context(torch.enable_grad() if loss else torch.no_grad())
        modes.enter_context(fakes[0].fake_mode)
        if dynamic:
            # Some composite kernels (LSTM) cannot take symbolic sizes; their Python counterparts can.
            modes.enter_context(enable_python_dispatcher())
        # The fake tensors bring their own mode and their symbolic dimensions, so nothing more is to be faked ("real").
        # A tensor given twice would be traced as its last place, so every replica has one of its own.
        values = [fakes[index].clone() if replica else fakes[index] for index, replica in order]
        graph_module = make_fx(step, tracing_mode="real")(*values)
    tagger.finish(graph_module.graph)
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()
    suffix = [f"@{replica}" if replicas > 1 else "" for replica in range(replicas)]
    names = [signature[index][1] + (suffix[replica] if index in own else "") for index, replica in order]
    made = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    for node, (index, replica) in zip(made, order, strict=True):
        node.meta[TAG] = replace(node.meta[TAG], replica=replica, operation=placeholders[index].name)
    inputs = tuple(
        Input(node.name, signature[index][0], name) for node, (index, _), name in zip(made, order, names, strict=True)
    )
    if loss:
        outputs = [f"loss{each}" for each in suffix] + [f"grad:{signature[index][1]}" for index in parameters]
    else:
        outputs = [f"output:{index}" for index in range(len(_results(graph_module)))]
    return Program(graph_module, inputs, tuple(outputs), dict(_state(exported, signature, order, names)), bool(loss))


def _results(module: GraphModule) -> Sequence[Any]:
    return next(iter(reversed(module.graph.nodes))).args[0]


def _run(module: GraphModule, arguments: list[torch.Tensor], tagger: _Tagger, replica: int) -> Sequence[torch.Tensor]:
    """Run an exported graph, and tell the tagger of its operations and of what differentiates them."""
    import torch
    from torch.fx import Interpreter

    seen: set[Any] = set()

    def announce_backward(result: Any, of: Tag) -> None:
        """Let the autograd nodes that `result` brought into being announce themselves when they run."""
        pending = [leaf.grad_fn for leaf in torch.utils._pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        while pending:
            function = pending.pop()
            if function is None or function in seen or function.name() == "torch::autograd::AccumulateGrad":
                continue
            seen.add(function)
            function.register_prehook(lambda _, of=of: tagger.enter(of))
            pending.extend(following for following, _ in function.next_functions)

    class Announcing(Interpreter):
        def run_node(self, n: Node) -> Any:
            if n.op != "call_function":
                return super().run_node(n)
            here = Tag(Phase.FORWARD, replica, _module_path(n), n.name)
            tagger.enter(here)
            result = super().run_node(n)
            announce_backward(result, replace(here, phase=Phase.BACKWARD))
            return result

    return Announcing(module).run(*arguments)


def _signature(exported: ExportedProgram) -> list[tuple[Role, str]]:
    """Role and name of every placeholder of an exported graph.

    Raises:
        UnsupportedGraph: one is neither state nor a tensor input.
    """
    from torch.export.graph_signature import InputKind

    roles = {
        InputKind.PARAMETER: Role.PARAMETER,
        InputKind.BUFFER: Role.BUFFER,
        InputKind.CONSTANT_TENSOR: Role.CONSTANT,
        InputKind.USER_INPUT: Role.INPUT,
    }
    found = []
    for spec in exported.graph_signature.input_specs:
        if spec.kind not in roles:
            raise UnsupportedGraph(f"input {spec.arg.name!r}: expected a tensor, got {spec.kind.name}")
        found.append((roles[spec.kind], spec.target or spec.arg.name))
    return found


def _first_of_tied(exported: ExportedProgram, signature: Sequence[tuple[Role, str]]) -> list[int]:
    """For every placeholder the first one that is the same tensor: parameters may be tied."""
    first: dict[Any, int] = {}
    found = []
    for index, (_, name) in enumerate(signature):
        held = exported.state_dict.get(name)
        key = index if held is None else (held.data_ptr(), held.shape, held.stride(), held.dtype)
        found.append(first.setdefault(key, index))
    return found


def _state(
    exported: ExportedProgram,
    signature: Sequence[tuple[Role, str]],
    order: Sequence[tuple[int, int]],
    names: Sequence[str],
) -> Iterator[tuple[str, torch.Tensor]]:
    for (index, _), name in zip(order, names, strict=True):
        role, target = signature[index]
        if role is Role.INPUT:
            continue
        held = exported.state_dict if target in exported.state_dict else exported.constants
        # Buffers are changed in place while the graph runs: every replica needs its own, and the model keeps its own.
        yield name, held[target].detach().clone()
