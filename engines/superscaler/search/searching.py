"""The search as a whole: candidates for every stage size, cuts, schedules, families; the best few timed again."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from engines.superscaler.layout import Mesh
from engines.superscaler.precision import Precision
from engines.superscaler.search import assemble, presets, retiming
from engines.superscaler.search.coshard import WORTH, sharded
from engines.superscaler.search.elimination import LARGEST
from engines.superscaler.search.inter import Candidate, Piece, cut
from engines.superscaler.search.intra import frontier, total
from engines.superscaler.search.mixing import mixed
from engines.superscaler.search.problem import Bench, Setting
from engines.superscaler.search.retiming import MANY
from harness.api import PlanError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from emulation.profile import Profile
    from engines.superscaler.cost import Costs
    from engines.superscaler.graph import Graph
    from engines.superscaler.plan import Plan
    from engines.superscaler.search.assemble import Proposal
    from engines.superscaler.search.constraints import Space

    Retime = Callable[[Graph, Plan], tuple[float, Sequence[int]]]
    """(graph, plan) -> seconds of a step, and bytes on each of its devices: the emulator."""

PRICES = (0.03, 0.3, 3.0)
"""Of memory, as parts of (the fastest step's time / a device's memory)."""
FINEST = 8
"""Devices of the largest stage whose mesh has as many axes as possible; larger ones have two."""
CHUNKS = (2,)
"""Stages on each device that an interleaved schedule is tried with."""
SMALL = 8
"""Pieces that devices are divided into when stages may differ in size."""
TOP = 4
"""Plans that are timed again."""
FEW = 2
"""The same, of plans for more than `retiming.MANY` devices."""
ORDERS = 2
"""Orders of the same stages that are timed again."""
WIDE = 2
"""Ways to do embedding and head on all devices that are tried with every cut of the layers."""
MISSES = 24
"""Plans that may fail their second look before the search gives up."""


@dataclass(frozen=True)
class RunnerUp:
    """A plan that lost, and what it would have taken."""

    name: str
    seconds: float
    memory: int
    """Bytes on the fullest device."""


@dataclass(frozen=True)
class Found:
    """A plan and why."""

    plan: Plan
    seconds: float
    """Of a step, predicted."""
    memory: tuple[int, ...]
    """Bytes on each device, predicted."""
    runners_up: tuple[RunnerUp, ...]
    """Best first."""
    split_gap: float
    """How far its splits are above the optimum of the problem they solve, as a part of it: memory at a fixed price, not
    under its limit. It says nothing of cuts, schedules or prices that were not tried."""
    searched: float
    """Seconds the search took; no part of what is equal in two equal searches."""
    source: str
    """Of costs, with the digest of what they come from."""
    refused: tuple[tuple[str, str], ...] = ()
    """(plan, reason) of those that looked good and could not be carried out, or did not fit at a second look."""


def search(
    graph: Graph,
    profile: Profile,
    *,
    devices: int,
    space: str | Space = "full",
    micro_batches: int = 1,
    seed: int = 0,
    costs: Costs | None = None,
    precision: Precision | None = None,
    retime: Retime | Literal["emulator"] | None = "emulator",
    also: Sequence[Proposal] = (),
) -> Found:
    """The fastest plan of a space that fits the devices' memory.

    Args:
        graph: a model for one micro-batch.
        profile: the cluster; its first `devices` accelerators are used.
        devices: how many; all of them.
        space: a preset's name, or constraints.
        micro_batches: of a step.
        seed: part of the plan's origin. Nothing here is random: equal inputs give equal plans.
        costs: where figures come from; by default `cost.abstract` on the profile.
        precision: in which numbers the plan trains.
        retime: times the best plans again, and decides between them; by default the search's own model does.
        also: plans found elsewhere that take part in the choice.

    Raises:
        PlanError: nothing fits (it says which stage lacks how many bytes), or the cluster has too few devices.
    """
    began = time.perf_counter()
    space = presets.space(space) if isinstance(space, str) else space
    proposals, costs = proposed(graph, profile, devices, space, micro_batches, costs, precision)
    ranked = sorted(proposals, key=_rank)
    refused: list[tuple[str, str]] = []
    if retime == "emulator":
        retime = _emulator(profile, precision, costs)
    if retime is not None:
        ranked, refused = again(graph, ranked, retime, costs.memory(0))
    ranked = sorted([*ranked, *also], key=_rank)
    if not ranked:
        raise PlanError(f"no plan survived its second look: {refused[0][0]}: {refused[0][1]}")
    best = ranked[0]
    origin = {
        "by": "search",
        "space": space.name,
        "seed": str(seed),
        "costs": costs.source,
        "costs_digest": costs.digest,
        "profile": profile.name,
    }
    others = tuple(RunnerUp(one.plan.name, one.seconds, max(one.memory)) for one in ranked[1 : 2 * TOP])
    return Found(
        replace(best.plan, origin=origin),
        best.seconds,
        best.memory,
        others,
        best.split_gap,
        time.perf_counter() - began,
        f"{costs.source} {costs.digest}",
        tuple(refused),
    )


def _emulator(profile: Profile, precision: Precision | None, costs: Costs) -> Retime:
    precision = precision or Precision()
    return retiming.emulated(profile, precision, costs.memory(0), retiming.StepPrices(costs, precision))


def _rank(one: Proposal) -> tuple[float, str]:
    return one.seconds, one.plan.name


def again(
    graph: Graph, ranked: Sequence[Proposal], retime: Retime, capacity: int
) -> tuple[list[Proposal], list[tuple[str, str]]]:
    """The first few that can be carried out, with the times of `retime`; and (name, reason) of those that cannot."""
    found: list[Proposal] = []
    refused: list[tuple[str, str]] = []
    seen: set[tuple[object, ...]] = set()
    cuts: dict[tuple[object, ...], int] = {}
    for one in ranked:
        enough = FEW if len(one.plan.devices) > MANY else TOP
        if len(found) == enough or len(refused) == MISSES:
            break
        # Equal stages in another order of blocks are another plan, but a place is left for other stages.
        cut = tuple((stage.ops, stage.mesh, tuple(sorted(stage.splits.items()))) for stage in one.plan.stages)
        whole = (cut, one.plan.order)
        if whole in seen or cuts.get(cut, 0) == ORDERS:
            continue
        seen.add(whole)
        cuts[cut] = cuts.get(cut, 0) + 1
        try:
            seconds, memory = retime(graph, one.plan)
        except PlanError as error:
            refused.append((one.plan.name, str(error)))
            continue
        if max(memory) > capacity:
            refused.append((one.plan.name, f"needs {max(memory)} bytes on a device that has {capacity}"))
            continue
        found.append(replace(one, seconds=seconds, memory=tuple(memory)))
    return found, refused


def proposed(
    graph: Graph,
    profile: Profile,
    devices: int,
    space: Space,
    micro_batches: int,
    costs: Costs | None = None,
    precision: Precision | None = None,
) -> tuple[list[Proposal], Costs]:
    """All plans worth a second look.

    Raises:
        PlanError: none fits.
    """
    asked = [
        rule.pattern for rule in space.rules if rule.devices or rule.stage is not None or rule.recompute is not None
    ]
    if asked or space.order:
        what = f"devices, stage or recompute (rules {', '.join(asked)})" if asked else "order"
        raise PlanError(f"space {space.name!r} constrains {what}, which the search cannot keep to yet")
    if costs is None:
        from engines.superscaler.cost.abstract import Abstract

        costs = Abstract(profile)
    if devices > costs.ranks:
        raise PlanError(f"a plan for {devices} devices needs more than profile {profile.name!r} has: {costs.ranks}")
    precision = precision or Precision()
    bench = Bench(_cast(graph, precision), costs, space, precision)
    searching = _Search(bench, devices, micro_batches, costs.memory(0))
    found: list[Proposal] = []
    if "pipeline" in space.families:
        found += searching.pipelines()
        if "interleaved" in space.schedules:
            found += searching.interleaved()
    if "interlaced" in space.families:
        found += searching.interlaced()
    if "3f1b" in space.families:
        found += searching.recycled()
    if not found:
        raise PlanError(searching.lack() if searching.any() else searching.failed[0])
    return found, costs


class _Search:
    def __init__(self, bench: Bench, devices: int, micro_batches: int, capacity: int) -> None:
        self.bench, self.devices, self.micro_batches, self.capacity = bench, devices, micro_batches, capacity
        self._candidates: dict[int, list[Candidate]] = {}
        self._crossings: dict[tuple[int, int], float] = {}
        self.failed: list[str] = []
        """Why meshes were ruled out."""

    def shapes(self, size: int) -> list[tuple[int, ...]]:
        """Of meshes of so many devices. One with more axes has all splits of those with fewer."""
        most = max(self.bench.space.dims)
        if min(self.bench.space.dims) == 2 and self.bench.space.layouts == "megatron":
            return [(size // inner, inner) for inner in _divisors(size) if inner <= SMALL]
        if size == 1 or most == 1:
            return [(size,)]
        prime = _factors(size)
        # An operator with two neighbours makes a table over three sets of options.
        options = max(len(op.annotation.splittable()) + 1 for op in self.bench.graph.ops)
        if len(prime) <= most and size <= FINEST and options ** (3 * len(prime)) <= LARGEST:
            return [tuple(prime)]
        return self.pairs(size)

    def pairs(self, size: int) -> list[tuple[int, ...]]:
        """Meshes of two axes."""
        widest = SMALL if self.devices > MANY else 2 * SMALL
        found = [(size // inner, inner) for inner in _divisors(size) if 1 < inner < size and inner <= widest]
        return found or [(size,)]

    def candidates(self, size: int) -> list[Candidate]:
        """Solutions for stages of so many devices: for each mesh, recomputed or not, at several prices of memory."""
        if size not in self._candidates:
            found: list[Candidate] = []
            shapes = self.shapes(size)
            for number, shape in enumerate(shapes):
                try:
                    self._solved(shape, found)
                except PlanError as error:
                    # A degree that divides no batch, say, rules out this mesh and not the others.
                    self.failed.append(str(error))
                    if number == 0 and len(shape) > 2:
                        shapes += self.pairs(size)
            self._candidates[size] = found
        return self._candidates[size]

    @cached_property
    def inseparable(self) -> frozenset[int]:
        """Units before which there is no cut: a layer comes both before and after, and a space has it in one stage."""
        found: set[int] = set()
        if not self.bench.space.passes:
            first: dict[str, int] = {}
            for number, unit in enumerate(self.bench.units):
                if unit.is_layer:
                    found.update(range(first.setdefault(unit.name, number) + 1, number + 1))
        return frozenset(found)

    def _solved(self, shape: tuple[int, ...], found: list[Candidate]) -> None:
        """The solutions on one mesh that are unlike those already found.

        Raises:
            PlanError: an operator has no split over it, or the problem is too large.
        """
        bench, size = self.bench, math.prod(shape)
        ops = [op.name for op in bench.graph.ops]
        tables = bench.tables(Mesh(tuple(range(size)), shape))
        in_flight = min(self.micro_batches, max(1, self.devices // size))
        for mode in ("none", "block"):
            if mode not in bench.space.recompute and not (mode == "block" and "mixed" in bench.space.recompute):
                continue
            setting = Setting(self.micro_batches, in_flight, recompute=mode == "block")
            fast = frontier(tables, ops, setting, (0.0,))
            prices = [fast[0].objective / self.capacity * part for part in PRICES]
            for number, solution in enumerate([*fast, *frontier(tables, ops, setting, prices)]):
                if any(solution.total == one.solution.total for one in found):
                    continue
                made = [solution] if 1 in bench.space.parts else []
                if setting.recompute and (not made or solution.total.peak > WORTH * self.capacity):
                    pieces = [sharded(solution, parts) for parts in bench.space.parts if parts > 1]
                    made += [one for one in pieces if one]
                if "mixed" in bench.space.recompute and setting.recompute and not (number and bench.space.equal_stages):
                    made += [mix for one in made for mix in mixed(one)]
                found += [Candidate(size, one) for one in made]

    def sizes(self) -> list[int]:
        """Of stages that are all equal."""
        least, most = self.bench.space.stages
        return [
            size
            for size in _divisors(self.devices)
            if least <= self.devices // size <= min(most, len(self.bench.units))
            and (not self.bench.space.powers or size & (size - 1) == 0 or size == self.devices)
        ]

    def crossing(self, unit: int, size: int) -> float:
        """Seconds for what comes in at a cut before a unit, forward and back, from a neighbour as large."""
        key = (unit, size)
        if key not in self._crossings and unit in self.inseparable:
            self._crossings[key] = math.inf
        if key not in self._crossings:
            graph, unit_of = self.bench.graph, self.bench.unit_of
            names = {
                name
                for op in graph.ops
                if unit_of[op.name] >= unit
                for name in op.inputs
                if name in graph.producer and unit_of[graph.producer[name]] < unit
            }
            nbytes = sum(graph.tensors[name].nbytes for name in names)
            near, far = range(size), range(size, min(2 * size, self.devices))
            self._crossings[key] = 2 * assemble.moved(self.bench, nbytes, near, far) if far else 0.0
        return self._crossings[key]

    def cuts(self) -> Iterator[tuple[str, tuple[Piece, ...]]]:
        """Cuts into stages of equal size, then of any."""
        units = (0, len(self.bench.units))
        least, most = self.bench.space.stages
        for size in self.sizes():
            for pool in self._pools(size):
                if pool and (found := self._cut(pool, self.devices, self.devices // size, units)):
                    yield f"{self.devices // size} x {size}", found
        if self.bench.space.equal_stages or self.devices > FINEST or most == 1:
            return
        pool = [one for size in _divisors(self.devices) for one in self.candidates(size) if size < self.devices]
        for stages in range(max(2, least), min(most, self.devices, len(self.bench.units)) + 1):
            if pool and (found := self._cut(pool, self.devices, stages, units)):
                yield f"{stages} unequal", found

    def _pools(self, size: int) -> list[list[Candidate]]:
        """Candidates that the stages of one plan may have."""
        pool = self.candidates(size)
        return [[one] for one in pool] if self.bench.space.equal_stages else [pool]

    def _cut(
        self, pool: Sequence[Candidate], devices: int, stages: int, units: tuple[int, int], room: float = 0.0
    ) -> tuple[Piece, ...] | None:
        found = cut(pool, devices, stages, self.micro_batches, self.capacity - room, self.crossing, units)
        return found.pieces if found else None

    def pipelines(self) -> Iterator[Proposal]:
        """Every cut in every schedule that fits the memory."""
        once = len(self.passes()) == 1
        for name, pieces in self.cuts():
            meshes, place = [], 0
            for piece in pieces:
                meshes.append(tuple(range(place, place + piece.candidate.size)))
                place += piece.candidate.size
            for schedule in self.bench.space.schedules if len(pieces) > 1 else ("1f1b",):
                # A GPipe keeps every micro-batch of what is differentiated: that is known before it is laid out.
                if schedule == "gpipe" and once and self._over(pieces, self.micro_batches):
                    continue
                if schedule != "interleaved":
                    one = self._proposal(pieces, meshes, schedule, name)
                    if max(one.memory) <= self.capacity:
                        yield one

    def _over(self, pieces: Sequence[Piece], in_flight: int) -> bool:
        """Whether a stage needs more memory than there is, with so many micro-batches kept."""
        costs = [
            total([piece.candidate.solution.units[unit] for unit in range(piece.first, piece.stop)]) for piece in pieces
        ]
        return any(assemble.lacking(cost, in_flight, self.capacity) >= 1 for cost in costs)

    def interleaved(self) -> Iterator[Proposal]:
        """Several stages on each group of devices."""
        units = len(self.bench.units)
        for size in self.sizes():
            groups = self.devices // size
            for chunks in CHUNKS:
                stages = chunks * groups
                if groups < 2 or stages > units or self.micro_batches % groups:
                    continue
                # A stage has its share of a device's memory; what all of them need together is seen afterwards.
                room = self.capacity * (1 - 1 / chunks)
                meshes = [tuple(range(n % groups * size, (n % groups + 1) * size)) for n in range(stages)]
                for pool in self._pools(size):
                    found = self._cut(pool, stages * size, stages, (0, units), room)
                    if found is None:
                        continue
                    one = self._proposal(found, meshes, "interleaved", f"{chunks} rounds of {groups} x {size}")
                    if max(one.memory) <= self.capacity:
                        yield one

    def _proposal(
        self, pieces: Sequence[Piece], meshes: Sequence[tuple[int, ...]], schedule: str, name: str
    ) -> Proposal:
        shapes = "|".join("x".join(map(str, piece.candidate.solution.tables.mesh.shape)) for piece in pieces[:8])
        label = f"{self.bench.space.name}: {name} {schedule} on {shapes}"
        layers = [
            piece.candidate.solution.setting.recompute and piece.candidate.solution.groups.get(unit) != ()
            for piece in pieces
            for unit in range(piece.first, piece.stop)
            if self.bench.units[unit].is_layer and not self.bench.active.isdisjoint(self.bench.units[unit].ops)
        ]
        if any(layers):
            label += ", recomputed" if all(layers) else f", {sum(layers)} of {len(layers)} layers recomputed"
        most = max(
            (
                group.parts
                for piece in pieces
                for unit in range(piece.first, piece.stop)
                for group in piece.candidate.solution.groups.get(unit, ())
            ),
            default=1,
        )
        if most > 1:
            label += f", co-sharded in {most}"
        return assemble.propose(self.bench, pieces, meshes, self.micro_batches, schedule, label)

    def interlaced(self) -> Iterator[Proposal]:
        """What comes before and after the layers on all devices, the layers in stages."""
        layers = [number for number, unit in enumerate(self.bench.units) if unit.is_layer]
        if not layers or self.micro_batches == 1:
            return
        first, stop = layers[0], layers[-1] + 1
        outside = [unit for unit in range(len(self.bench.units)) if not first <= unit < stop]

        def spent(one: Candidate) -> float:
            cost = total([one.solution.units[unit] for unit in outside])
            return self.micro_batches * (cost.forward + cost.backward) + cost.once

        fast = sorted(self.candidates(self.devices), key=spent)[:WIDE] if outside else []
        for wide in fast:
            ends = [Piece(0, first, wide)] if first else []
            tail = [Piece(stop, len(self.bench.units), wide)] if stop < len(self.bench.units) else []
            outer = [*ends, *tail]
            for size in self.sizes():
                stages = self.devices // size
                if not outer or stages < 2 or len(layers) < stages:
                    continue
                cost = total([wide.solution.units[u] for piece in outer for u in range(piece.first, piece.stop)])
                room = cost.persistent + cost.kept * stages
                middle = self._cut(self.candidates(size), self.devices, stages, (first, stop), room)
                if middle is None:
                    continue
                everywhere = tuple(range(self.devices))
                meshes = [tuple(range(n * size, (n + 1) * size)) for n in range(stages)]
                meshes = [everywhere] * len(ends) + meshes + [everywhere] * len(tail)
                one = self._proposal([*ends, *middle, *tail], meshes, "interlaced", f"{stages} x {size}")
                if max(one.memory) <= self.capacity:
                    yield one

    def passes(self) -> list[list[int]]:
        """Units of each pass over the same layers: a new one begins where a layer comes again."""
        found: list[list[int]] = [[]]
        seen: set[str] = set()
        for number, unit in enumerate(self.bench.units):
            if unit.is_layer and unit.name in seen:
                # What came since the last layer leads into this pass.
                lead = [own for own in found[-1] if own > max(n for n in found[-1] if self.bench.units[n].is_layer)]
                found[-1] = [own for own in found[-1] if own not in lead]
                found.append(lead)
                seen = set()
            if unit.is_layer:
                seen.add(unit.name)
            found[-1].append(number)
        return found

    def recycled(self) -> Iterator[Proposal]:
        """Every pass over the layers in as many stages, on the same devices: only the last one is differentiated."""
        passes = self.passes()
        counts = {sum(self.bench.units[unit].is_layer for unit in own) for own in passes}
        if len(passes) == 1 or len(counts) > 1:
            return
        for size in self.sizes():
            stages = self.devices // size
            if stages < 2 or min(counts) < stages:
                continue
            for one in self.candidates(size):
                pieces = [
                    Piece(first, stop, one) for own in passes for first, stop in self._even(own, stages, min(counts))
                ]
                meshes = [tuple(range(n * size, (n + 1) * size)) for _ in passes for n in range(stages)]
                made = self._proposal(pieces, meshes, "3f1b", f"{len(passes)} passes of {stages} x {size}")
                if max(made.memory) <= self.capacity:
                    yield made

    def _even(self, units: Sequence[int], stages: int, layers: int) -> list[tuple[int, int]]:
        """(first, stop) of stages with as many layers each as possible; the rest goes with its neighbours."""
        starts, seen = [units[0]], 0
        for unit in units:
            if self.bench.units[unit].is_layer:
                if seen and seen * stages // layers != (seen - 1) * stages // layers:
                    starts.append(unit)
                seen += 1
        return list(zip(starts, [*starts[1:], units[-1] + 1], strict=True))

    def any(self) -> bool:
        """Whether there is a mesh that the model can be split over, or none was ruled out."""
        return not self.failed or any(self._candidates.values())

    def lack(self) -> str:
        """Which stage lacks how much, in the plan that comes nearest to fitting."""
        nearest: tuple[float, str] = (math.inf, "no split of the model divides its dims by the devices")
        for size in self.sizes():
            stages = self.devices // size
            for one in self.candidates(size):
                # The first stage keeps the most; the largest unit cannot be cut.
                share = one.solution.total
                own = [one.solution.units[unit] for unit in sorted(one.solution.units)]
                worst = max(range(len(own)), key=lambda n: own[n].persistent + own[n].kept)
                even = share._replace(
                    persistent=max(share.persistent / stages, own[worst].persistent),
                    kept=max(share.kept / stages, own[worst].kept),
                )
                over = assemble.lacking(even, min(self.micro_batches, stages), self.capacity)
                # By its largest unit, a stage may be over although all of them together are not.
                if over < nearest[0]:
                    unit = self.bench.units[worst].name or f"unit {worst}"
                    nearest = (
                        over,
                        f"nothing fits: the nearest plan has {stages} stages of {size} devices, and its stage with "
                        f"{unit!r} needs {(over + self.capacity) / 2**30:.2f} GiB on each device, "
                        f"{over / 2**30:.2f} GiB ({math.ceil(over)} bytes) more than the {self.capacity / 2**30:.2f} "
                        f"GiB there are; more devices, smaller micro-batches or recomputing may help",
                    )
        return nearest[1]


def _divisors(number: int) -> list[int]:
    return [one for one in range(1, number + 1) if number % one == 0]


def _factors(number: int) -> list[int]:
    found, factor = [], 2
    while number > 1:
        while number % factor == 0:
            found.append(factor)
            number //= factor
        factor += 1
    return found


@dataclass(frozen=True)
class Comparison:
    """Ours beside the best plan of every preset, by one model of time and memory."""

    seconds: dict[str, float | None]
    """Preset -> seconds of a step; None where nothing fits (out of memory)."""
    ratios: dict[str, float | None]
    """Preset -> its time over ours; never below one, since ours chooses among their plans too."""
    why: dict[str, str]
    """Preset -> the plan it found, or what it lacked."""
    ours: Found
    floor: float
    """Seconds of every operator once forward and once backward, spread evenly over the devices, with nothing sent,
    nothing computed again and nobody waiting. A preset cannot be beaten by more than its time over this."""


def compare_presets(
    graph: Graph,
    profile: Profile,
    *,
    devices: int,
    micro_batches: int = 1,
    names: Sequence[str] = ("dp", "zero-3", "deepspeed-like", "megatron-3d", "alpa-like", "autodist-like"),
    precision: Precision | None = None,
    retime: Retime | Literal["emulator"] | None = "emulator",
    costs: Costs | None = None,
) -> Comparison:
    """Plan quality: the best plan of every preset's space, and ours.

    Raises:
        PlanError: not even ours fits.
    """
    if costs is None:
        from engines.superscaler.cost.abstract import Abstract

        costs = Abstract(profile)
    if retime == "emulator":
        retime = _emulator(profile, precision, costs)
    times: dict[str, float | None] = {}
    why: dict[str, str] = {}
    winners: list[Proposal] = []
    for name in names:
        try:
            own, _ = proposed(graph, profile, devices, presets.space(name), micro_batches, costs, precision)
        except PlanError as error:
            times[name], why[name] = None, str(error)
            continue
        ranked, refused = sorted(own, key=_rank), []
        if retime is not None:
            ranked, refused = again(graph, ranked, retime, costs.memory(0))
            ranked.sort(key=_rank)
        if not ranked:
            times[name], why[name] = None, f"{refused[0][0]}: {refused[0][1]}"
            continue
        times[name], why[name] = ranked[0].seconds, ranked[0].plan.name
        winners.append(ranked[0])
    ours = search(
        graph,
        profile,
        devices=devices,
        micro_batches=micro_batches,
        precision=precision,
        costs=costs,
        retime=retime,
        also=winners,
    )
    ratios = {name: None if seconds is None else seconds / ours.seconds for name, seconds in times.items()}
    return Comparison(times, ratios, why, ours, floor(graph, costs, devices, micro_batches, precision))


def floor(graph: Graph, costs: Costs, devices: int, micro_batches: int, precision: Precision | None = None) -> float:
    """See `Comparison.floor`."""
    bench = Bench(_cast(graph, precision or Precision()), costs, presets.space("full"), precision or Precision())
    prices = [bench.cost(op, {}) for op in graph.ops]
    return sum(price.forward + price.backward for price in prices) * micro_batches / devices


def _cast(graph: Graph, precision: Precision) -> Graph:
    """The graph in the dtypes that are trained in."""
    tensors = {name: replace(tensor, dtype=precision.of(tensor.dtype)) for name, tensor in graph.tensors.items()}
    return replace(graph, tensors=tensors)
