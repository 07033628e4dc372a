"""Costs from a hardware profile alone: the roofline of `emulation.cost`, and the operator table's flops and bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from emulation import layout
from emulation.cost.compute import kernel
from emulation.graph import Node, WorkloadError
from emulation.topology import Topology
from engines.superscaler.cost import OperatorCost, signature
from engines.superscaler.cost.network import PICO, Network
from harness.api import PlanError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from emulation.profile import Profile
    from engines.superscaler.cost import Kind, Message, Source
    from engines.superscaler.graph import Graph, Op
    from engines.superscaler.layout import Mesh
    from engines.superscaler.operators import Operator, Work


class Abstract:
    """The emulator's own models, so that search and emulator agree.

    Args:
        profile: the cluster.
        places: the device of each rank; by default all accelerators in order, or the hosts' processors without any.
        operators: instead of the operator table's `find`.
    """

    source: ClassVar[Source] = "abstract"

    def __init__(
        self, profile: Profile, *, places: Sequence[str] = (), operators: Callable[[str], Operator] | None = None
    ) -> None:
        self._profile = profile
        self._places = tuple(places) or tuple(layout.devices(profile) or layout.processors(profile))
        self._topology = Topology(profile)
        self._network = Network(self._topology, self._places)
        if operators is None:
            from engines.superscaler.operators import find as operators
        self._operators = operators
        self._known: dict[tuple[object, ...], OperatorCost] = {}
        self._signatures: dict[tuple[int, str], tuple[Graph, str]] = {}
        self.digest = profile.digest
        self.ranks = len(self._places)

    def work(self, graph: Graph, op: Op, degrees: Mapping[str, int]) -> Work:
        """What the operator table says of one part."""
        return self._operators(op.target).work(op, graph.tensors, degrees)

    def operator(self, graph: Graph, op: Op, degrees: Mapping[str, int]) -> OperatorCost:
        """See `Costs.operator`; the device is that of rank 0."""
        place = (id(graph), op.name)
        if place not in self._signatures:
            # The graph is kept beside it, so that its identity is not given to another.
            self._signatures[place] = (graph, signature(graph, op))
        key = (self._signatures[place][1], *sorted(degrees.items()))
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._priced(graph, op, degrees)
        # Equal operators of different layers keep tensors of different names.
        own = (*op.inputs, *op.outputs)
        return OperatorCost(
            found.forward,
            found.backward,
            tuple(own[int(number)] for number in found.saved),
            found.saved_extra,
            found.workspace,
        )

    def _priced(self, graph: Graph, op: Op, degrees: Mapping[str, int]) -> OperatorCost:
        """With the saved tensors as numbers among inputs and outputs."""
        work = self.work(graph, op, degrees)
        own = (*op.inputs, *op.outputs)
        wanted = any(graph.tensors[name].requires_grad for name in op.outputs)
        saved = tuple(dict.fromkeys(str(own.index(name)) for name in work.saved)) if wanted else ()
        dtype = _dtype(graph, op)
        forward = self._kernel(op, work.flops, work.nbytes, dtype, work.family, work.shape)
        backward = 0.0
        if wanted:
            family = f"{work.family}-backward"
            backward = self._kernel(op, work.backward_flops, work.backward_nbytes, dtype, family, work.shape)
        return OperatorCost(forward, backward, saved, work.saved_extra if wanted else 0, work.workspace)

    def _kernel(self, op: Op, flops: float, nbytes: int, dtype: str, family: str, shape: tuple[int, ...]) -> float:
        if not flops and not nbytes:
            return 0.0  # a view: no kernel is launched
        device = self._places[0]
        node = Node(
            -1,
            "compute",
            op.name,
            (device,),
            "",
            (),
            nbytes=int(nbytes),
            flops=flops,
            dtype=dtype,
            family=family,
            shape=shape,
        )
        try:
            return kernel(node, self._topology.model(device)).fixed * PICO
        except WorkloadError as error:
            raise PlanError(f"cost of operator {op.name!r}: {error}") from error

    def collective(self, kind: Kind, mesh: Mesh, axes: Sequence[int], nbytes: int) -> float:
        """See `Costs.collective`."""
        return self._network.collective(kind, mesh, axes, nbytes)

    def messages(self, messages: Sequence[Message]) -> float:
        """See `Costs.messages`."""
        return self._network.messages(messages)

    def update(self, rank: int, nbytes: int) -> float:
        """See `Costs.update`: limited by memory, one kernel."""
        model = self._topology.model(self._places[rank])
        return model.launch.value + (nbytes / model.memory_bandwidth.rate(nbytes) if nbytes else 0.0)

    def memory(self, rank: int) -> int:
        """Of the device, less what fragmentation keeps."""
        capacity = self._topology.model(self._places[rank]).memory.value
        return int(capacity * (1 - self._profile.fragmentation.value))


def _dtype(graph: Graph, op: Op) -> str:
    """In which it computes: that of its first floating-point output, else of the model's loss."""
    dtypes = (graph.tensors[name].dtype for name in op.outputs)
    return next((dtype for dtype in dtypes if dtype.startswith(("fp", "bf"))), graph.tensors[graph.loss].dtype)
