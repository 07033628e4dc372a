"""What every program is compared with: the model on one device.

`train` is the user's own module under plain autograd and torch's own optimizer. `whole` is the trace of it as a program
of one rank, which must agree, and which also knows random masks that do not depend on how operators are split.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.overrides import TorchFunctionMode

from engines.superscaler.layout import Layout, Mesh
from engines.superscaler.plan import Block, Plan, Stage
from engines.superscaler.program import LASTING, Accumulate, Buffer, Compute, Load, Program, Run, Section, Seed, Update
from engines.superscaler.runtime.optimizer import Optimizer
from engines.superscaler.runtime.outcome import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    from engines.superscaler.graph import Graph
    from engines.superscaler.program import Action


def train(
    module: nn.Module,
    batches: Sequence[Sequence[tuple[Tensor, ...]]],
    optimizer: Optimizer | None = None,
    dtype: torch.dtype = torch.float64,
) -> Outcome:
    """Train a copy of a module on one device; its loss is the mean over micro-batches.

    Args:
        module: Returns a scalar loss.
        batches: For every step, for every micro-batch, what the module is given.
        optimizer: Adam by default.
        dtype: Of parameters, buffers and inputs that are floating point.
    """
    own = copy.deepcopy(module).to(dtype)
    parameters = dict(own.named_parameters())
    stepper = (optimizer or Optimizer()).make(parameters.values())
    losses: list[list[float]] = []
    gradients: list[dict[str, Tensor]] = []
    for step in batches:
        stepper.zero_grad(set_to_none=True)
        of_step = []
        for inputs in step:
            with AllIn(dtype):
                loss = own(*(in_dtype(value, dtype) for value in inputs))
            (loss / len(step)).backward()
            of_step.append(float(loss.detach()))
        losses.append(of_step)
        gradients.append({n: p.grad.clone() for n, p in parameters.items() if p.grad is not None})
        stepper.step()
    return Outcome(losses, gradients, {name: p.detach().clone() for name, p in parameters.items()})


class AllIn(TorchFunctionMode):
    """Lets one floating point dtype stand for all of them: a module that says `x.float()` stays in double."""

    CASTS: ClassVar = frozenset((torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16, torch.Tensor.double))

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call with the dtype in place of every floating point one."""
        if func in self.CASTS:
            return args[0].to(self._dtype)
        return func(*map(self._in, args), **{name: self._in(value) for name, value in (kwargs or {}).items()})

    def _in(self, value: Any) -> Any:
        return self._dtype if isinstance(value, torch.dtype) and value.is_floating_point else value


def in_dtype(value: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in a floating point dtype, if it is floating point at all."""
    return value.to(dtype) if value.is_floating_point() else value


def make_batches(
    example: Sequence[Tensor], steps: int, micro_batches: int, seed: int = 0
) -> list[list[tuple[Tensor, ...]]]:
    """Random inputs like an example: normal where it is floating point, its own values in another order elsewhere."""
    generator = torch.Generator().manual_seed(seed)

    def like(value: Tensor) -> Tensor:
        if value.is_floating_point():
            return torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.dtype)
        return value.flatten()[torch.randperm(value.numel(), generator=generator)].view(value.shape)

    return [[tuple(map(like, example)) for _ in range(micro_batches)] for _ in range(steps)]


def whole(graph: Graph, micro_batches: int = 1) -> Program:
    """A graph as a program of one rank, number 0: one run, differentiated in one go."""
    mesh = Mesh((0,), (1,))
    ops = tuple(op.name for op in graph.ops)

    def single(name: str) -> tuple[str, str, Layout]:
        return name, "", Layout.replicated(mesh, len(graph.tensors[name].shape))

    read = dict.fromkeys(name for op in graph.ops for name in op.inputs if name not in graph.producer)
    trained = [name for name in read if graph.tensors[name].role == "parameter" and graph.tensors[name].requires_grad]
    run = Run(
        number=0,
        stage=0,
        mesh=mesh,
        ops=ops,
        splits=dict.fromkeys(ops, ("",)),
        inputs=tuple(map(single, read)),
        outputs=(single(graph.loss),),
        gradients=tuple(map(single, trained)),
        gradient_outputs=(graph.loss,),
    )
    constant: list[Action] = []
    varying = []
    for name in read:
        match graph.tensors[name].role:
            case "buffer":
                constant.append(Load(mesh, Buffer(name, "value"), single(name)[2]))
            case "input":
                varying.append(name)
    sections = [Section(None, tuple(constant))]
    for m in range(micro_batches):
        loads = [Load(mesh, Buffer(name, "value", "", m), single(name)[2]) for name in varying]
        sections.append(Section(Block(0, m, "F"), (*loads, Compute(0, "forward", m))))
        seed = Seed(mesh, Buffer(graph.loss, "gradient", "", m), 1 / micro_batches)
        sums = [Accumulate(mesh, Buffer(n, "gradient", "", m), Buffer(n, "gradient", "", LASTING)) for n in trained]
        sections.append(Section(Block(0, m, "B"), (seed, Compute(0, "backward", m), *sums)))
    updates = [Update(mesh, Buffer(n, "value"), Buffer(n, "gradient", "", LASTING), single(n)[2]) for n in trained]
    sections.append(Section(None, tuple(updates)))
    order = tuple(section.block for section in sections if section.block is not None)
    stage = Stage("whole", ops, mesh, dict.fromkeys(ops, ("",)))
    return Program(
        graph=graph,
        plan=Plan(graph.digest, (stage,), micro_batches, order, name="one device"),
        runs=(run,),
        weights={name: single(name)[2] for name in read if graph.tensors[name].role == "parameter"},
        sections=tuple(sections),
        losses=tuple(Buffer(graph.loss, "value", "", m) for m in range(micro_batches)),
        loss_layout=single(graph.loss)[2],
        states={name: single(name)[2] for name in trained},
    )
