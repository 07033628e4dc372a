"""Phase 3, dependency preservation: from a plan to the program that computes what one device would.

For every edge between operators, layouts on both ends follow from how the two are split (`operands`); where they
differ, redistribution steps are put in, forward for the value and independently backward for the gradient. Megatron's
f and g, data parallelism's gradient sums and ZeRO's gathers all come out of that, none is a special case. (nnScaler,
OSDI 2024, section on dependency preservation.)

What is computed for one micro-batch is the same for all of them but for its number, so each pass of a stage is lowered
once, as a template.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from engines.superscaler import redistribution
from engines.superscaler.effects import CONSTANT, effects
from engines.superscaler.feasibility import check
from engines.superscaler.fusion import differentiated, fuse
from engines.superscaler.layout import Layout, Mesh
from engines.superscaler.liveness import freed
from engines.superscaler.plan import Weight
from engines.superscaler.program import (
    HERE,
    LASTING,
    Accumulate,
    Action,
    Add,
    Buffer,
    Compute,
    Free,
    Load,
    Move,
    Program,
    Run,
    Sections,
    Seed,
    Transfer,
    Update,
)
from engines.superscaler.redistribution import Crossing
from harness.api import PlanError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from engines.superscaler.effects import Effects
    from engines.superscaler.fusion import Fused, Segment
    from engines.superscaler.graph import Graph
    from engines.superscaler.plan import Pass, Plan
    from engines.superscaler.redistribution import Prices, Step

    Steps = tuple[Step | Crossing, ...]


def preserve(graph: Graph, plan: Plan, prices: Prices | None = None) -> Program:
    """Lower a plan.

    Args:
        graph: The model.
        plan: Phases 1 and 2.
        prices: Of redistribution steps (`redistribution.within`); bytes and hops by default.

    Raises:
        PlanError: the plan is not one for this graph, or cannot be carried out; says what would be.
    """
    return _Lowering(graph, plan, prices).program()


class Term(NamedTuple):
    """One addend of a gradient, as a buffer of the micro-batch or of the step."""

    buffer: Buffer
    layout: Layout


@dataclass
class Arrival:
    """How an activation gets to another mesh than that of its maker."""

    before: Steps
    """On the maker's mesh."""
    crossing: Crossing | None
    """None: the same devices, and all steps are in `after`."""
    after: Steps
    """On the other mesh, to what is needed there first."""
    needed: Layout


@dataclass
class Hoisted:
    """A variant of a weight (or a constant) that is made once in a step and kept until its last use."""

    actions: list[Action]
    buffer: Buffer
    stages: set[int] = field(default_factory=set)


class _Lowering:
    """Of one plan. Stages, tensors and runs are gone through in order, so that equal input gives equal programs."""

    def __init__(self, graph: Graph, plan: Plan, prices: Prices | None) -> None:
        self.graph, self.plan, self.prices = graph, plan, prices
        self.active = differentiated(graph)
        check(graph, plan, self.active)
        self.segments = fuse(graph, plan, self.active)
        self.fused: list[Fused] = [run for stage in self.segments for segment in stage for run in segment.runs]
        self.meshes: dict[Mesh, int] = {}
        self.where: dict[Buffer, Mesh] = {}
        self.hoisted: dict[tuple[str, str], Hoisted] = {}
        self.accumulated: dict[str, dict[Layout, Buffer]] = {}
        self.splitting = {block.stage for block in plan.order if block.what == "W"}
        self._place_weights()
        self._place_values()
        self._name_gradients()
        self.runs = tuple(map(self._run, self.fused))
        self.passes: dict[tuple[int, Pass], list[Action]] = {}

    # --- layouts and names -----------------------------------------------------------------------------------------

    def _name(self, layout: Layout) -> str:
        """A short name that tells layouts apart: `1:0,-+1` on mesh 1, first dim split by axis 0, addends along 1."""
        number = self.meshes.setdefault(layout.mesh, len(self.meshes))
        dims = ",".join(".".join(map(str, axes)) or "-" for axes in layout.dims)
        addends = "".join(f"+{axis}" for axis in layout.partial)
        return f"{number}:{dims}{addends}"

    def _place_weights(self) -> None:
        """Where each parameter lies between steps (home), and where it is updated."""
        self.use: dict[str, Layout] = {}
        self.home: dict[str, Layout] = {}
        self.state: dict[str, Layout] = {}
        self.weight: dict[str, Weight] = {}
        self.home_stage: dict[str, int] = {}
        for run in self.fused:
            for tensor, layout in run.inputs.items():
                if self.graph.tensors[tensor].role == "parameter" and tensor not in self.use:
                    self.use[tensor] = layout.joined()
                    self.home_stage[tensor] = run.stage
        for tensor, use in self.use.items():
            weight = self.plan.stages[self.home_stage[tensor]].weights.get(tensor, Weight())
            self.weight[tensor] = weight
            self.state[tensor] = self._divided(tensor, use, weight)
            self.home[tensor] = self.state[tensor] if weight.value else use
            self.where[Buffer(tensor, "value")] = self.home[tensor].mesh

    def _divided(self, tensor: str, use: Layout, weight: Weight) -> Layout:
        """The layout of a weight's update: as it is used, split further along the axes of its `Weight`."""
        dims = list(use.dims)
        for axis, dim in weight.axes:
            if not 0 <= axis < len(use.mesh.shape) or not 0 <= dim < len(dims):
                raise PlanError(f"weight {tensor!r}: there is no mesh axis {axis} or no dim {dim} to split")
            if any(axis in axes for axes in dims):
                raise PlanError(
                    f"weight {tensor!r} is split along mesh axis {axis} already, by the operators that use it"
                )
            if use.mesh.shape[axis] > 1:
                dims[dim] = (*dims[dim], axis)
        divided = Layout(use.mesh, tuple(dims))
        try:
            divided.local_shape(self.graph.tensors[tensor].shape)
        except ValueError as error:
            raise PlanError(f"weight {tensor!r} of shape {self.graph.tensors[tensor].shape}: {error}") from None
        return divided

    def _place_values(self) -> None:
        """How activations lie as they are made, who else reads them, and how they get to other meshes."""
        self.made: dict[str, Layout] = {}
        self.gradient: dict[str, Layout] = {}
        self.maker: dict[str, Fused] = {}
        for run in self.fused:
            for tensor, need in run.made.items():
                self.made[tensor], self.gradient[tensor] = need.value.joined(), need.gradient.joined()
                self.maker[tensor] = run
        self.readers: dict[str, list[Fused]] = {}
        self.arrivals: dict[str, dict[Mesh, Arrival]] = {}
        for run in self.fused:
            for tensor, layout in run.inputs.items():
                self.readers.setdefault(tensor, []).append(run)
                if tensor in self.made and layout.joined().mesh != self.made[tensor].mesh:
                    self._arrive(tensor, layout.joined())

    def _arrive(self, tensor: str, needed: Layout) -> None:
        arrivals = self.arrivals.setdefault(tensor, {})
        if needed.mesh not in arrivals:
            before, crossing, after = _divide(self._between(tensor, self.made[tensor], needed))
            arrivals[needed.mesh] = Arrival(before, crossing, after, needed)

    def _name_gradients(self) -> None:
        """The buffer that each run's gradient goes to: at once the gradient itself, if it is all there is to it."""
        self.terms: dict[str, list[Fused]] = {}
        for run in self.fused:
            for tensor in run.gradients:
                if tensor in self.made:
                    self.terms.setdefault(tensor, []).append(run)
        self.variant: dict[tuple[int, str], str] = {}
        for run in self.fused:
            for tensor, layout in run.gradients.items():
                joined = layout.joined()
                alone = len(self.terms.get(tensor, ())) == 1 and tensor != self.graph.loss
                direct = alone and joined == self.gradient[tensor]
                self.variant[run.number, tensor] = "" if direct else f"{self._name(joined)}r{run.number}"

    def _value(self, tensor: str, layout: Layout) -> str:
        """The variant of a tensor's value in a layout."""
        own = self.made.get(tensor) or self.home.get(tensor)
        return "" if layout == own else self._name(layout)

    def _run(self, run: Fused) -> Run:
        outputs = tuple(
            (t, "", need.value) for t, need in run.made.items() if t in self.readers or t == self.graph.loss
        )
        loss = self.graph.loss in run.made and self.graph.tensors[self.graph.loss].requires_grad
        fed = tuple(t for t, _, _ in outputs if t in self.terms or (loss and t == self.graph.loss))
        return Run(
            run.number,
            run.stage,
            run.mesh,
            tuple(run.ops),
            dict(run.splits),
            tuple((t, self._value(t, layout.joined()), layout) for t, layout in run.inputs.items()),
            outputs,
            tuple((t, self.variant[run.number, t], layout) for t, layout in run.gradients.items()),
            fed,
        )

    # --- redistribution --------------------------------------------------------------------------------------------

    def _between(self, tensor: str, source: Layout, target: Layout) -> Steps:
        shape, dtype = self.graph.tensors[tensor].shape, self.graph.tensors[tensor].dtype
        if source == target:
            return ()
        if source.mesh == target.mesh:
            return redistribution.within(source, target, shape, dtype, self.prices)
        # Two names for one layout, on two boxes of the same devices: the copy costs nothing but says so.
        same = (redistribution.Step("slice", (), source, target),)
        return redistribution.between(source, target, shape, dtype, self.prices) or same

    def _buffer(self, buffer: Buffer, mesh: Mesh) -> Buffer:
        self.where[buffer] = mesh
        return buffer

    def _emit(self, out: list[Action], steps: Steps, source: Buffer, last: str, prefix: str = "") -> Buffer:
        """Append the actions of steps that start from a buffer; the last one's variant is given."""
        full = self.graph.tensors[source.tensor]
        for number, step in enumerate(steps):
            variant = last if number == len(steps) - 1 else f"{prefix}{self._name(step.after)}"
            target = self._buffer(source._replace(variant=variant), step.after.mesh)
            if isinstance(step, Crossing):
                out.append(Transfer(source, target, step.before, step.after, full.shape, full.dtype))
            else:
                out.append(
                    Move(
                        step.before.mesh,
                        step.kind,
                        source,
                        target,
                        step.before,
                        step.after,
                        full.shape,
                        full.dtype,
                        step.axes,
                    )
                )
            source = target
        return source

    # --- values ----------------------------------------------------------------------------------------------------

    def _fetch(self, out: list[Action], run: Fused, tensors: Iterable[str], made: set[Buffer]) -> None:
        """Have what a run reads, each tensor in the layout it needs; `made` is what is there already."""
        for tensor in tensors:
            layout = run.inputs[tensor].joined()
            variant = self._value(tensor, layout)
            role = self.graph.tensors[tensor].role
            buffer = Buffer(tensor, "value", variant, LASTING if role in CONSTANT else HERE)
            if buffer in made or (role == "parameter" and variant == ""):
                continue
            if role == "parameter" and self.weight[tensor].value:
                self._emit(out, self._between(tensor, self.home[tensor], layout), Buffer(tensor, "value"), variant)
            elif role in CONSTANT:
                self._hoist(run.stage, buffer, layout)
            elif role == "input":
                out.append(Load(layout.mesh, self._buffer(buffer, layout.mesh), layout))
            else:
                self._fetch_activation(out, buffer, layout)
            made.add(buffer)

    def _fetch_activation(self, out: list[Action], buffer: Buffer, layout: Layout) -> None:
        """Bring an activation from how it is made, or from how it arrives on this mesh, to a layout."""
        source = self.made[buffer.tensor]
        if layout.mesh == source.mesh:
            if buffer.variant:
                steps = self._between(buffer.tensor, source, layout)
                self._emit(out, steps, buffer._replace(variant=""), buffer.variant)
            return
        arrival = self.arrivals[buffer.tensor][layout.mesh]
        if arrival.crossing is None:
            self._emit(out, self._between(buffer.tensor, source, layout), buffer._replace(variant=""), buffer.variant)
            return
        arrived = arrival.crossing.after
        if layout == arrived:
            return
        steps = arrival.after if layout == arrival.needed else self._between(buffer.tensor, arrived, layout)
        self._emit(out, steps, buffer._replace(variant=self._name(arrived)), buffer.variant)

    def _hoist(self, stage: int, buffer: Buffer, layout: Layout) -> None:
        key = (buffer.tensor, buffer.variant)
        if key not in self.hoisted:
            actions: list[Action] = []
            if self.graph.tensors[buffer.tensor].role == "buffer":
                actions.append(Load(layout.mesh, self._buffer(buffer, layout.mesh), layout))
            else:
                steps = self._between(buffer.tensor, self.home[buffer.tensor], layout)
                self._emit(actions, steps, Buffer(buffer.tensor, "value"), buffer.variant, "via ")
            self.hoisted[key] = Hoisted(actions, buffer)
        self.hoisted[key].stages.add(stage)

    def _send(self, out: list[Action], stage: int) -> None:
        """Activations that other meshes read leave at the end of the pass that made them."""
        for run in self._runs_of(stage):
            for tensor in run.made:
                for arrival in self.arrivals.get(tensor, {}).values():
                    if arrival.crossing is not None:
                        steps = (*arrival.before, arrival.crossing)
                        last = self._name(arrival.crossing.after)
                        self._emit(out, steps, Buffer(tensor, "value", "", HERE), last)

    # --- gradients -------------------------------------------------------------------------------------------------

    def _combine(self, out: list[Action], terms: Sequence[Term], target: Layout, variant: str, prefix: str) -> Buffer:
        """Sum addends of a gradient into one buffer of the target layout (on the same mesh or another).

        Addends of equal layout are summed before they are converted: that is one conversion for all of them.
        """
        by_layout: dict[Layout, list[Buffer]] = {}
        for buffer, layout in terms:
            by_layout.setdefault(layout, []).append(buffer)
        whole: list[Buffer] = []
        for layout, buffers in by_layout.items():
            single = len(by_layout) == 1
            total = buffers[0]
            if len(buffers) > 1:
                summed = variant if single and layout == target else f"{prefix}sum {self._name(layout)}"
                total = self._buffer(buffers[0]._replace(variant=summed), layout.mesh)
                out.append(Add(layout.mesh, tuple(buffers), total))
            steps = self._between(total.tensor, layout, target)
            last = variant if single else f"{prefix}of {self._name(layout)}"
            own = f"{prefix}{self._name(layout)} to "
            whole.append(self._emit(out, steps, total, last, own) if steps else total)
        if len(whole) == 1:
            return whole[0]
        total = self._buffer(whole[0]._replace(variant=variant), target.mesh)
        out.append(Add(target.mesh, tuple(whole), total))
        return total

    def _own_terms(self, runs: Iterable[Fused], tensor: str) -> list[Term]:
        return [
            Term(Buffer(tensor, "gradient", self.variant[run.number, tensor], HERE), run.gradients[tensor].joined())
            for run in runs
        ]

    def _assemble(self, out: list[Action], tensor: str) -> None:
        """The whole gradient of an activation, as its maker wants it."""
        target = self.gradient[tensor]
        by_stage: dict[int, list[Fused]] = {}
        for run in self.terms.get(tensor, ()):
            by_stage.setdefault(run.stage, []).append(run)
        terms: list[Term] = []
        for stage, runs in by_stage.items():
            if self.plan.stages[stage].mesh == target.mesh:
                terms += self._own_terms(runs, tensor)
        remote = [s for s in by_stage if self.plan.stages[s].mesh != target.mesh]
        for stage in remote:
            last = "" if len(remote) == 1 and not terms and tensor != self.graph.loss else f"s{stage}"
            terms.append(Term(self._receive_gradient(out, stage, by_stage[stage], tensor, last), target))
        if tensor == self.graph.loss:
            seed = self._buffer(Buffer(tensor, "gradient", "seed" if terms else "", HERE), target.mesh)
            out.append(Seed(target.mesh, seed, 1.0 / self.plan.micro_batches))
            terms.append(Term(seed, target))
        self._combine(out, terms, target, "", "")

    def _crossing_of(self, runs: Sequence[Fused], tensor: str) -> tuple[Layout, Steps]:
        """(layout on a stage's mesh in which its addends are combined, steps from there to the maker)."""
        layouts = list(dict.fromkeys(run.gradients[tensor].joined() for run in runs))
        common = layouts[0] if len(layouts) == 1 else Layout(layouts[0].mesh, layouts[0].dims)
        return common, self._between(tensor, common, self.gradient[tensor])

    def _send_gradients(self, out: list[Action], stage: int) -> None:
        """Gradients of what came from other meshes leave at the end of the pass that made them."""
        mesh = self.plan.stages[stage].mesh
        by_tensor: dict[str, list[Fused]] = {}
        for run in self._runs_of(stage):
            for tensor in run.gradients:
                if tensor in self.made and self.made[tensor].mesh != mesh:
                    by_tensor.setdefault(tensor, []).append(run)
        for tensor, runs in by_tensor.items():
            common, steps = self._crossing_of(runs, tensor)
            before, crossing, after = _divide(steps)
            total = self._combine(out, self._own_terms(runs, tensor), common, f"s{stage} out", f"s{stage} ")
            if crossing is not None:
                last = self._arriving(stage, tensor, after)
                self._emit(out, (*before, crossing), total, last, f"s{stage} to ")

    def _arriving(self, stage: int, tensor: str, after: Steps) -> str:
        """The variant in which another mesh's gradient arrives."""
        if after:
            return f"s{stage} in"
        return "" if len(self._stages_of_terms(tensor)) == 1 and tensor != self.graph.loss else f"s{stage}"

    def _stages_of_terms(self, tensor: str) -> set[int]:
        return {run.stage for run in self.terms[tensor]}

    def _receive_gradient(self, out: list[Action], stage: int, runs: Sequence[Fused], tensor: str, last: str) -> Buffer:
        common, steps = self._crossing_of(runs, tensor)
        _, crossing, after = _divide(steps)
        if crossing is None:
            terms = self._own_terms(runs, tensor)
            single = terms[0].buffer if len(terms) == 1 and terms[0].layout == common else None
            source = single or Buffer(tensor, "gradient", f"s{stage} out", HERE)
        else:
            source = Buffer(tensor, "gradient", self._arriving(stage, tensor, after), HERE)
        return self._emit(out, after, source, last, f"s{stage} by ")

    def _accumulate(self, out: list[Action], run: Fused, left: dict[str, int], pending: dict[str, list[Term]]) -> None:
        """Add a run's gradients of weights to those of earlier micro-batches, in the layouts in which they come.

        A gradient that is kept divided (ZeRO-2, 3) is divided at once, when all runs of the stage have yielded theirs.
        """
        for tensor in run.gradients:
            if self.graph.tensors[tensor].role != "parameter":
                continue
            (term,) = self._own_terms((run,), tensor)
            if not self._keeps_divided(tensor, run.stage):
                self._add_up(out, term)
                continue
            pending.setdefault(tensor, []).append(term)
            left[tensor] -= 1
            if not left[tensor]:
                target = self.state[tensor]
                total = self._combine(out, pending.pop(tensor), target, f"s{run.stage} part", f"s{run.stage} ")
                self._add_up(out, Term(total, target))

    def _keeps_divided(self, tensor: str, stage: int) -> bool:
        return self.weight[tensor].gradient and self.plan.stages[stage].mesh == self.state[tensor].mesh

    def _add_up(self, out: list[Action], term: Term) -> None:
        tensor, layout = term.buffer.tensor, term.layout
        target = Buffer(tensor, "gradient", f"all {self._name(layout)}", LASTING)
        self.accumulated.setdefault(tensor, {})[layout] = self._buffer(target, layout.mesh)
        out.append(Accumulate(layout.mesh, term.buffer, target))

    # --- passes ----------------------------------------------------------------------------------------------------

    def _runs_of(self, stage: int) -> Iterable[Fused]:
        return (run for segment in self.segments[stage] for run in segment.runs)

    def _forward(self, stage: int) -> list[Action]:
        out: list[Action] = []
        made: set[Buffer] = set()
        for segment in self.segments[stage]:
            gathered: set[Buffer] = set()
            for run in segment.runs:
                self._fetch(out, run, self._others(run), made)
                self._fetch(out, run, self._weights(run), gathered)
                saved = segment.group is None and bool(run.gradients)
                out.append(self._compute(run, "forward", saved=saved))
        self._send(out, stage)
        return out

    def _compute(self, run: Fused, what: str, *, saved: bool = True) -> Compute:
        action = Compute(run.number, what, HERE, saved)  # type: ignore[arg-type]
        for buffer in self._effects(action).writes:
            self.where[buffer] = self.plan.stages[run.stage].mesh
        return action

    def _weights(self, run: Fused) -> list[str]:
        return [t for t in run.inputs if self.graph.tensors[t].role == "parameter"]

    def _others(self, run: Fused) -> list[str]:
        return [t for t in run.inputs if self.graph.tensors[t].role != "parameter"]

    def _backward(self, stage: int) -> list[Action]:
        out: list[Action] = []
        split = stage in self.splitting
        left = self._yields(run for run in self._runs_of(stage) if not (split and self._divisible(run)))
        pending: dict[str, list[Term]] = {}
        for segment in reversed(self.segments[stage]):
            if not any(run.gradients for run in segment.runs):
                continue
            made: set[Buffer] = set()
            gathered: set[Buffer] = set()
            if segment.group is not None and segment.group.parts == 1:
                self._again(out, segment, made, gathered)
            for run in reversed(segment.runs):
                if not run.gradients:
                    continue
                for tensor in self.runs[run.number].gradient_outputs:
                    self._assemble(out, tensor)
                self._fetch(out, run, self._weights(run), gathered)
                if run.mesh.sequential > 1:
                    self._fetch(out, run, self._others(run), made)
                later = split and self._divisible(run)
                out.append(self._compute(run, "inputs" if later else "backward"))
                if not later:
                    self._accumulate(out, run, left, pending)
        self._send_gradients(out, stage)
        return out

    def _weight_gradients(self, stage: int) -> list[Action]:
        out: list[Action] = []
        runs = [run for run in self._runs_of(stage) if self._divisible(run)]
        left = self._yields(runs)
        pending: dict[str, list[Term]] = {}
        for run in reversed(runs):
            self._fetch(out, run, self._weights(run), set())
            out.append(self._compute(run, "weights"))
            self._accumulate(out, run, left, pending)
        return out

    def _divisible(self, run: Fused) -> bool:
        """Whether a run's backward pass has a weights' half that may wait. A co-sharded one is done part by part."""
        return run.mesh.sequential == 1 and any(self.graph.tensors[t].role == "parameter" for t in run.gradients)

    def _yields(self, runs: Iterable[Fused]) -> dict[str, int]:
        """How many runs of a pass yield a gradient of each tensor."""
        found: dict[str, int] = {}
        for run in runs:
            for tensor in run.gradients:
                found[tensor] = found.get(tensor, 0) + 1
        return found

    def _again(self, out: list[Action], segment: Segment, made: set[Buffer], gathered: set[Buffer]) -> None:
        """The forward pass of a recomputed group, but for runs that nothing in its backward pass needs."""
        wanted = {run.number for run in segment.runs if run.gradients}
        for run in reversed(segment.runs):
            if run.number in wanted:
                own = {r.number for r in segment.runs}
                wanted |= {self.maker[t].number for t in run.inputs if t in self.maker} & own
        for run in segment.runs:
            if run.number in wanted:
                self._fetch(out, run, self._others(run), made)
                self._fetch(out, run, self._weights(run), gathered)
                out.append(self._compute(run, "forward", saved=bool(run.gradients)))

    # --- after the last block --------------------------------------------------------------------------------------

    def _tail(self) -> tuple[Action, ...]:
        reduce: list[Action] = []
        update: list[Action] = []
        restore: list[Action] = []
        for tensor in self.graph.parameters:
            if tensor not in self.accumulated:
                continue
            home, state = self.home[tensor], self.state[tensor]
            gradient = self._reduce(reduce, tensor, state)
            weight = Buffer(tensor, "value")
            if home != state:
                weight = self._emit(reduce, self._between(tensor, home, state), weight, self._name(state), "to ")
                steps = self._between(tensor, state, home)
                self._emit(restore, steps, weight, "", "back ")
            update.append(Update(state.mesh, weight, gradient, state))
        parts = freed((reduce, update, restore), self._effects, self.where, lambda buffer: self._is_home(buffer))
        # All updates together: an optimizer does them in one go.
        updates = sorted(parts[1], key=lambda action: isinstance(action, Free))
        return (*parts[0], *updates, *parts[2])

    def _is_home(self, buffer: Buffer) -> bool:
        return buffer.variant == "" and buffer.kind == "value" and buffer.micro_batch == LASTING

    def _reduce(self, out: list[Action], tensor: str, target: Layout) -> Buffer:
        """The sum of what stages and micro-batches left of a weight's gradient, where the weight is updated."""
        by_mesh: dict[Mesh, list[Term]] = {}
        for layout, buffer in self.accumulated[tensor].items():
            by_mesh.setdefault(layout.mesh, []).append(Term(buffer, layout))
        whole: list[Buffer] = []
        for number, (mesh, terms) in enumerate(by_mesh.items()):
            variant = "total" if len(by_mesh) == 1 else f"total {number}"
            prefix = f"{number} "
            if mesh != target.mesh and len(terms) > 1:
                common = Layout(mesh, terms[0].layout.dims)
                terms = [Term(self._combine(out, terms, common, f"{prefix}here", prefix), common)]
            whole.append(self._combine(out, terms, target, variant, prefix))
        if len(whole) == 1:
            return whole[0]
        total = self._buffer(Buffer(tensor, "gradient", "total", LASTING), target.mesh)
        out.append(Add(target.mesh, tuple(whole), total))
        return total

    # --- all of it -------------------------------------------------------------------------------------------------

    def program(self) -> Program:
        """The whole step."""
        for stage in range(len(self.plan.stages)):
            self.passes[stage, "F"] = self._forward(stage)
        for stage in reversed(range(len(self.plan.stages))):
            self.passes[stage, "B"] = self._backward(stage)
            if stage in self.splitting:
                self.passes[stage, "W"] = self._weight_gradients(stage)
        loss = self.made[self.graph.loss]
        return Program(
            self.graph,
            self.plan,
            self.runs,
            dict(self.home),
            self._sections(),
            tuple(Buffer(self.graph.loss, "value", "", m) for m in range(self.plan.micro_batches)),
            loss,
            {tensor: self.state[tensor] for tensor in self.graph.parameters if tensor in self.accumulated},
        )

    def _sections(self) -> Sections:
        templates: list[tuple[Action, ...]] = []
        number_of: dict[tuple[tuple[tuple[int, Pass], ...], int, Pass], int] = {}
        orders = self._orders()
        for order in dict.fromkeys(orders):
            parts = freed([self.passes[at] for at in order], self._effects, self.where, self._outlives)
            for (stage, what), actions in zip(order, parts, strict=True):
                number_of[order, stage, what] = len(templates)
                templates.append(actions)
        which = [number_of[orders[b.micro_batch], b.stage, b.what] for b in self.plan.order]
        self._add_hoisted(templates, which)
        templates.append(self._tail())
        return Sections((*self.plan.order, None), (*which, len(templates) - 1), tuple(templates))

    def _orders(self) -> list[tuple[tuple[int, Pass], ...]]:
        """For every micro-batch the order of its blocks: what is read last depends on it, and on nothing else."""
        orders: list[list[tuple[int, Pass]]] = [[] for _ in range(self.plan.micro_batches)]
        for block in self.plan.order:
            orders[block.micro_batch].append((block.stage, block.what))
        return list(map(tuple, orders))

    def _outlives(self, buffer: Buffer) -> bool:
        """Whether a buffer is freed elsewhere than in the blocks of a micro-batch, or not at all."""
        if buffer.micro_batch == HERE:
            return buffer == Buffer(self.graph.loss, "value", "", HERE)
        if buffer.kind == "gradient":
            return True
        return self._is_home(buffer) or (buffer.tensor, buffer.variant) in self.hoisted

    def _add_hoisted(self, templates: list[tuple[Action, ...]], which: list[int]) -> None:
        """Make lasting variants where they are used first, and free them after their last use."""
        first: dict[int, list[Action]] = {}
        last: dict[int, list[Action]] = {}
        uses: dict[int, list[int]] = {}
        for place, block in enumerate(self.plan.order):
            uses.setdefault(block.stage, []).append(place)
        for hoisted in self.hoisted.values():
            places = [place for stage in sorted(hoisted.stages) for place in uses[stage]]

            def kept(buffer: Buffer, own: Buffer = hoisted.buffer) -> bool:
                return buffer == own or self._is_home(buffer)

            (actions,) = freed((hoisted.actions,), self._effects, self.where, kept)
            first.setdefault(min(places), []).extend(actions)
            last.setdefault(max(places), []).append(Free(self.where[hoisted.buffer], (hoisted.buffer,)))
        for place in sorted({*first, *last}):
            template = (*first.get(place, ()), *templates[which[place]], *last.get(place, ()))
            which[place] = len(templates)
            templates.append(template)

    def _effects(self, action: Action) -> Effects:
        return effects(action, self.graph, self.runs)


def _divide(steps: Steps) -> tuple[Steps, Crossing | None, Steps]:
    """(steps on the first mesh, the crossing, steps on the second); no crossing: all of them are of the second kind."""
    for number, step in enumerate(steps):
        if isinstance(step, Crossing):
            return steps[:number], step, steps[number + 1 :]
    return (), None, steps
