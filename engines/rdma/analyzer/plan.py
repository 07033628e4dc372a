"""The result of the analysis: machines, edges and their placement, and what became of each edge when it ran."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engines.rdma.analyzer.allocation import Report, State
from engines.rdma.analyzer.edges import Edge, Protocol, find_edges, result_nodes
from engines.rdma.analyzer.partition import Placement, assign

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.fx import Node

    from engines.rdma.analyzer.capture import Program


@dataclass(frozen=True)
class Plan:
    """A graph divided among machines."""

    program: Program
    machine_of: Mapping[Node, str]
    edges: tuple[Edge, ...]
    results: Mapping[str, str]
    """Machine at which each output of the program is found."""

    @property
    def machines(self) -> tuple[str, ...]:
        """In the order in which the graph reaches them."""
        return tuple(dict.fromkeys([*self.machine_of.values(), *self.results.values()]))

    def sent_by(self, machine: str) -> tuple[Edge, ...]:
        """Edges that leave it."""
        return tuple(edge for edge in self.edges if edge.source == machine)

    def received_by(self, machine: str) -> tuple[Edge, ...]:
        """Edges that arrive there."""
        return tuple(edge for edge in self.edges if edge.target == machine)

    def slot_groups(self, machine: str) -> dict[tuple[str, ...], tuple[Edge, ...]]:
        """Static values that leave a machine, by where they go: a value that goes to several machines has one slot.

        Returns:
            Targets, sorted -> one edge of each value (any of its edges says what it is), in the order of the plan.
        """
        targets: dict[str, list[Edge]] = {}
        for edge in self.sent_by(machine):
            if edge.protocol is Protocol.STATIC:
                targets.setdefault(edge.producer, []).append(edge)
        groups: dict[tuple[str, ...], list[Edge]] = {}
        for edges in targets.values():
            groups.setdefault(tuple(sorted(edge.target for edge in edges)), []).append(edges[0])
        return {key: tuple(value) for key, value in groups.items()}

    def to_json(self) -> dict[str, Any]:
        """For records."""
        return {"machines": list(self.machines), "edges": [edge.to_json() for edge in self.edges]}

    def __str__(self) -> str:
        lines = [f"{len(self.edges)} edges between {', '.join(self.machines)}"]
        for edge in self.edges:
            size = "? B" if edge.nbytes is None else f"{edge.nbytes} B"
            what = f"{edge.producer} {edge.dtype}[{', '.join(map(str, edge.shape))}], {size}, {edge.protocol}"
            lines.append(f"  {what}: {edge.source} -> {edge.target} ({', '.join(edge.consumers)})")
        return "\n".join(lines)


@dataclass(frozen=True)
class Verdict:
    """What became of one edge."""

    edge: Edge
    zero_copy: bool
    site: str
    """Where its buffer is allocated, in words."""
    reason: str
    """Why it is copied; empty if it is not."""

    def to_json(self) -> dict[str, Any]:
        """For records."""
        return {**self.edge.to_json(), "zero_copy": self.zero_copy, "site": self.site, "reason": self.reason}


@dataclass(frozen=True)
class PlanReport:
    """A plan after it ran."""

    verdicts: tuple[Verdict, ...]

    @property
    def static_bytes(self) -> int:
        """Bytes that static edges carry in a step."""
        return sum(verdict.edge.nbytes or 0 for verdict in self.verdicts)

    @property
    def zero_copy_bytes(self) -> int:
        """Those of them whose producer writes into registered memory."""
        return sum(verdict.edge.nbytes or 0 for verdict in self.verdicts if verdict.zero_copy)

    @property
    def zero_copy_share(self) -> float:
        """Share of the static bytes, 0 to 1; 1 where there are none."""
        return self.zero_copy_bytes / self.static_bytes if self.static_bytes else 1.0

    def to_json(self) -> dict[str, Any]:
        """For records."""
        return {
            "static_bytes": self.static_bytes,
            "zero_copy_bytes": self.zero_copy_bytes,
            "zero_copy_share": self.zero_copy_share,
            "edges": [verdict.to_json() for verdict in self.verdicts],
        }

    def __str__(self) -> str:
        lines = [f"{self.zero_copy_share:.1%} of {self.static_bytes} static bytes without a copy"]
        for verdict in self.verdicts:
            edge = verdict.edge
            how = f"zero copy, {verdict.site}" if verdict.zero_copy else f"copied: {verdict.reason}"
            size = "? B" if edge.nbytes is None else f"{edge.nbytes} B"
            lines.append(f"  {edge.producer}: {edge.source} -> {edge.target}, {size}, {edge.protocol}, {how}")
        return "\n".join(lines)


def analyze(program: Program, placement: Placement, *, results: Mapping[str, str] | None = None) -> Plan:
    """Divide a graph.

    Args:
        program: from `capture`.
        placement: node -> machine.
        results: outputs of the program that are wanted at other machines than their producers', by name.

    Raises:
        UnplacedNodes: `placement` names no machine for some.
        UnsupportedGraph: an edge cannot be sent.
    """
    machine_of = assign(program, placement)
    edges = find_edges(program, machine_of, results)
    found = {name: machine_of[node] for name, node in result_nodes(program).items() if node in machine_of}
    return Plan(program, machine_of, edges, {**found, **(results or {})})


def judge(plan: Plan, reports: Mapping[str, Report]) -> PlanReport:
    """Join a plan with what its machines' tracers found.

    Args:
        plan: that ran.
        reports: machine -> report of its tracer.
    """
    by_machine = {
        machine: {promotion.name: promotion for promotion in report.promotions} for machine, report in reports.items()
    }
    verdicts = []
    for edge in plan.edges:
        promotion = by_machine.get(edge.source, {}).get(edge.producer)
        if edge.protocol is Protocol.DYNAMIC:
            verdicts.append(Verdict(edge, False, "", "its shape is known only when it has been produced"))
        elif edge.scalar:
            verdicts.append(Verdict(edge, True, "a number, written in its slot", ""))
        elif promotion is None:
            verdicts.append(Verdict(edge, False, "", "not run"))
        else:
            zero_copy = promotion.state is State.PROMOTED and promotion.zero_copy_steps > 0
            site = str(promotion.site) if promotion.site else "its slot, since it was loaded"
            verdicts.append(Verdict(edge, zero_copy, site if zero_copy else "", "" if zero_copy else promotion.reason))
    return PlanReport(tuple(verdicts))
