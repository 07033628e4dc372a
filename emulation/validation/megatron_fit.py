"""Fitting a profile's figures to iteration times, through a closed form of what the emulator does.

Thousands of evaluations are needed, so the fit does not simulate: the step time of `workloads.training` under 1F1B has
a closed form (below), made of the same operators, the same cost models and the same closed forms of collectives. A test
holds the two together. What is predicted in the end comes from the emulator.

With passes F and B of the layers, e and o more on the first and the last stage (embedding, output), and x to send:

    T = p (F + B) + e + o + (m - 1) (F + B + x + max(o, e, x)) + 2 (p - 1) x + gradients + optimizer + step

and with one stage m (F + B + e + o) for all before the gradients. (A stage waits until each of its messages has left:
one in a slot for the first and the last stage, two for those between.) A phase is as long as the slower of the device
and the host that launches.

The figures minimise Cauchy's loss of log(predicted / measured), which lets single bad runs be, plus the square of their
distance from their priors: where step times do not tell a figure, its prior does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from emulation.graph import Node
from emulation.units import PICOSECONDS_PER_SECOND
from emulation.validation.megatron_cluster import BANDWIDTH, NAMES, NODE, OPTIMIZER, PEAK, PRIORS, Figures, cluster
from emulation.workloads import transformer
from emulation.workloads.training import ADAM_BYTES, GRADIENT, layers_of, stage_parameters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy import float64
    from numpy.typing import NDArray

    from emulation.collectives import CollectiveTable
    from emulation.topology import Topology
    from emulation.workloads.training import Plan
    from emulation.workloads.transformer import Decoder, Operator

    Floats = NDArray[float64]

SCALE_CLUSTER, SCALE_NODE = 0.04, 0.08
"""Errors (of the logarithm) beyond which a row counts less and less; on one node the efficiency of each shape has its
own error, which a few figures cannot follow."""
WEIGHT_NODE = 0.3
"""Of a row from one node beside one from a cluster: there are many, and they are of a few shapes."""
REFERENCE = 0.35
"""`network` at which collectives across nodes are costed; their bytes' part scales with it."""


@dataclass(frozen=True)
class Case:
    """One measured step."""

    model: Decoder
    plan: Plan
    seconds: float

    @property
    def several_nodes(self) -> bool:
        """Whether messages leave a node."""
        return self.plan.ranks > NODE


@dataclass(frozen=True)
class _Phase:
    """Operators of some phase for every kind of case; arrays of shape (kinds, operators)."""

    flops: Floats
    nbytes: Floats
    tokens: Floats
    small: Floats
    """Least of the other two sizes of a product."""
    product: NDArray[Any]
    """Whether it is a product with weights."""
    calls: Floats
    """Kernels of the phase; shape (kinds,)."""
    reduces: Floats
    """All-reduces of the phase; shape (kinds,)."""

    def device(self, figures: Figures) -> Floats:
        """Seconds of computing, without collectives; shape (kinds,)."""
        import numpy as np

        shape = (1 + figures.rows / self.tokens) * (1 + figures.columns / self.small)
        part = np.where(self.product, figures.matmul / shape, figures.attention)
        found: Floats = np.maximum(self.flops / (PEAK * part), self.nbytes / (BANDWIDTH * figures.memory)).sum(axis=1)
        return found

    def host(self, figures: Figures, wide: Floats) -> Floats:
        """Seconds of launching; shape (kinds,)."""
        return self.calls * figures.call + self.reduces * wide * figures.wide_call


@dataclass(frozen=True)
class Message:
    """What a message of each case takes; shape (cases,)."""

    fixed: Floats
    """Seconds that do not depend on the network's rate."""
    across: Floats
    """Seconds that do, at REFERENCE."""

    @classmethod
    def of(cls, parts: Sequence[tuple[float, float]]) -> Message:
        """From (fixed, across) of each case."""
        import numpy as np

        return cls(np.array([fixed for fixed, _ in parts]), np.array([across for _, across in parts]))

    def taken(self, which: Sequence[int]) -> Message:
        """That of some of the cases."""
        return Message(self.fixed[which], self.across[which])

    def seconds(self, figures: Figures) -> Floats:
        """With the network's rate."""
        return self.fixed + self.across * (REFERENCE / figures.network)


@dataclass(frozen=True)
class ClosedForm:
    """Step times of some cases as a function of the figures; arrays of shape (cases,)."""

    seconds: Floats
    """Measured."""
    several: NDArray[Any]
    """Whether there are several nodes."""
    kind: NDArray[Any]
    """Number of the model, micro-batch and tensor-parallel degree: what operators depend on."""
    stages: Floats
    micro_batches: Floats
    layers: Floats
    """Of a stage."""
    moved: Floats
    """Bytes of the optimizer."""
    reduce: Message
    send: Message
    gradients: Message
    tie: Message
    wide: Floats
    """1 where tensor-parallel ranks fill a node; shape (kinds,)."""
    forward: _Phase
    again: _Phase
    backward: _Phase
    ends: tuple[_Phase, _Phase, _Phase, _Phase]
    """Embedding and output layer, forward and backward."""

    @classmethod
    def of(cls, cases: Sequence[Case], messages: Messages) -> ClosedForm:
        """The closed form of some cases."""
        import numpy as np

        plans = [case.plan for case in cases]
        every = [(case.model, case.plan.micro_batch, case.plan.tensor, case.plan.recompute) for case in cases]
        kinds = list(dict.fromkeys(every))
        sizes, number = [kind[:3] for kind in kinds], {kind: number for number, kind in enumerate(kinds)}
        return cls(
            seconds=np.array([case.seconds for case in cases]),
            several=np.array([case.several_nodes for case in cases]),
            kind=np.array([number[kind] for kind in every]),
            stages=np.array([float(plan.pipeline) for plan in plans]),
            micro_batches=np.array([float(plan.micro_batches) for plan in plans]),
            layers=np.array([float(layers_of(case.model, case.plan)) for case in cases]),
            moved=np.array([float(stage_parameters(case.model, case.plan, 0) * ADAM_BYTES) for case in cases]),
            reduce=Message.of([messages.reduce(case) for case in cases]),
            send=Message.of([messages.send(case) for case in cases]),
            gradients=Message.of([messages.gradients(case) for case in cases]),
            tie=Message.of([messages.tie(case) for case in cases]),
            wide=np.array([float(tensor >= NODE) for _, _, tensor in sizes]),
            forward=_phase([transformer.layer_forward(*size) for size in sizes]),
            again=_phase([transformer.layer_recompute(*kind) for kind in kinds]),
            backward=_phase([transformer.layer_backward(*size) for size in sizes]),
            ends=(
                _phase([transformer.embedding_forward(model, batch) for model, batch, _ in sizes]),
                _phase([transformer.embedding_backward(model, batch) for model, batch, _ in sizes]),
                _phase([transformer.head_forward(*size) for size in sizes]),
                _phase([transformer.head_backward(*size) for size in sizes]),
            ),
        )

    def taken(self, which: Sequence[int]) -> ClosedForm:
        """That of some of the cases."""
        messages = {name: getattr(self, name).taken(which) for name in ("reduce", "send", "gradients", "tie")}
        names = ("seconds", "several", "kind", "stages", "micro_batches", "layers", "moved")
        return replace(self, **messages, **{name: getattr(self, name)[which] for name in names})

    def times(self, figures: Figures) -> Floats:
        """Seconds of each case."""
        import numpy as np

        forward = self._layers(self.forward, figures) + figures.micro_batch
        both = forward + self._layers(self.again, figures) + self._layers(self.backward, figures)
        ends = [np.maximum(phase.device(figures), phase.host(figures, self.wide)) for phase in self.ends]
        embedding, output = (ends[0] + ends[1])[self.kind], (ends[2] + ends[3])[self.kind]
        send = self.send.seconds(figures)
        busiest = send + np.maximum(np.maximum(embedding, output), send)
        slot = both + np.where(self.stages == 1, embedding + output, busiest)
        pipeline = (
            self.stages * both + embedding + output + (self.micro_batches - 1) * slot + 2 * (self.stages - 1) * send
        )
        step = np.where(self.several, figures.cluster_step, figures.node_step)
        end = self.gradients.seconds(figures) + self.tie.seconds(figures) + self.moved / (BANDWIDTH * OPTIMIZER)
        found: Floats = pipeline + end + step
        return found

    def _layers(self, phase: _Phase, figures: Figures) -> Floats:
        import numpy as np

        device = phase.device(figures)[self.kind] + phase.reduces[self.kind] * self.reduce.seconds(figures)
        found: Floats = self.layers * np.maximum(device, phase.host(figures, self.wide)[self.kind])
        return found


class Messages:
    """What messages of a case take, (fixed, across); with measured tables of all-reduce within a node."""

    def __init__(self, tables: Sequence[CollectiveTable]) -> None:
        self.tables = tables
        self._topologies: dict[int, Topology] = {}
        self._found: dict[tuple[int, Node], tuple[float, float]] = {}
        median = {name: prior.median for name, prior in PRIORS.items()}
        self.figures = Figures(**median | {"network": REFERENCE})

    def reduce(self, case: Case) -> tuple[float, float]:
        """One tensor-parallel all-reduce."""
        nbytes = transformer.activation_bytes(case.model, case.plan.micro_batch)
        return self._collective(case, list(range(case.plan.tensor)), nbytes)

    def gradients(self, case: Case) -> tuple[float, float]:
        """The first stage's gradients."""
        plan = case.plan
        ranks = [replica * plan.tensor for replica in range(plan.data)]
        return self._collective(case, ranks, stage_parameters(case.model, plan, 0) * GRADIENT)

    def send(self, case: Case) -> tuple[float, float]:
        """An activation to the next stage, on another node where any is: the slowest message sets the pace."""
        plan = case.plan
        if plan.pipeline == 1:
            return 0.0, 0.0
        nbytes = -(-transformer.activation_bytes(case.model, plan.micro_batch) // plan.tensor)
        firsts = [stage * plan.data * plan.tensor for stage in range(plan.pipeline)]
        hops = [(here, there) for here, there in pairwise(firsts) if here // NODE != there // NODE]
        return self._transfer(case, *(hops or [(0, firsts[1])])[0], nbytes)

    def tie(self, case: Case) -> tuple[float, float]:
        """The embedding's gradients, between the first and the last stage."""
        plan = case.plan
        if plan.pipeline == 1:
            return 0.0, 0.0
        nbytes = -(-case.model.vocabulary * case.model.hidden // plan.tensor) * GRADIENT
        return self._transfer(case, 0, (plan.pipeline - 1) * plan.data * plan.tensor, nbytes)

    def _collective(self, case: Case, ranks: Sequence[int], nbytes: int) -> tuple[float, float]:
        if len(ranks) == 1:
            return 0.0, 0.0
        devices = tuple(_device(rank) for rank in ranks)
        node = Node(-1, "collective", "", devices, "", (), nbytes, op="all-reduce")
        return self._cost(case, node, crosses=ranks[-1] >= NODE)

    def _transfer(self, case: Case, here: int, there: int, nbytes: int) -> tuple[float, float]:
        node = Node(-1, "transfer", "", (_device(here), _device(there)), "", (), nbytes)
        return self._cost(case, node, crosses=here // NODE != there // NODE)

    def _cost(self, case: Case, node: Node, *, crosses: bool) -> tuple[float, float]:
        """Of idle links, as the emulator's sweep finds it."""
        from emulation.evaluate.room import lone_duration
        from emulation.evaluate.tasks import node_cost
        from emulation.topology import Topology

        ranks = case.plan.ranks
        if (ranks, node) not in self._found:
            if ranks not in self._topologies:
                self._topologies[ranks] = Topology(cluster(self.figures, ranks, self.tables))
            topology = self._topologies[ranks]
            times = lone_duration(node_cost(node, topology), topology.links)
            fixed, moving = (time / PICOSECONDS_PER_SECOND for time in times)
            self._found[ranks, node] = (fixed, moving) if crosses else (fixed + moving, 0.0)
        return self._found[ranks, node]


def fit_figures(form: ClosedForm, start: Figures | None = None) -> Figures:
    """The figures that fit some cases best; looked for from `start`, or from the medians of the priors."""
    import numpy as np
    from scipy.optimize import least_squares

    priors = [PRIORS[name] for name in NAMES]
    centre = np.log([prior.median for prior in priors])
    scale = np.array([prior.scale for prior in priors])
    bounds = (np.log([prior.low for prior in priors]), np.log([prior.high for prior in priors]))
    width = np.where(form.several, SCALE_CLUSTER, SCALE_NODE)
    weight = np.where(form.several, 1.0, WEIGHT_NODE if form.several.any() else 1.0)

    def losses(point: Floats) -> Floats:
        error = np.log(form.times(_figures(point)) / form.seconds) / width
        robust = np.sign(error) * np.sqrt(weight * np.log1p(error**2))
        return np.concatenate([(point - centre) / scale, robust])

    first = np.log([getattr(start, name) for name in NAMES]) if start else centre
    inside = np.clip(first, bounds[0] + 1e-6, bounds[1] - 1e-6)
    return _figures(least_squares(losses, inside, bounds=bounds, max_nfev=60).x)


def _figures(point: Floats) -> Figures:
    import numpy as np

    return Figures(**dict(zip(NAMES, np.exp(point).tolist(), strict=True)))


def _phase(rows: Sequence[Sequence[Operator]]) -> _Phase:
    import numpy as np

    count = max((len(operators) for operators in rows), default=0)
    shape = (len(rows), max(count, 1))
    flops, nbytes, tokens, small = (np.full(shape, value) for value in (0.0, 0.0, 1.0, 1.0))
    product = np.zeros(shape, dtype=bool)
    for row, operators in enumerate(rows):
        for place, operator in enumerate(operators):
            flops[row, place], nbytes[row, place] = operator.flops, operator.nbytes
            if operator.shape:
                product[row, place] = True
                tokens[row, place], small[row, place] = operator.shape[0], min(operator.shape[1:])
    calls = np.array([float(sum(operator.calls for operator in operators)) for operators in rows])
    reduces = np.array([float(sum(operator.reduces > 0 for operator in operators)) for operators in rows])
    return _Phase(flops, nbytes, tokens, small, product, calls, reduces)


def _device(rank: int) -> str:
    return f"host{rank // NODE}/gpu{rank % NODE}"
