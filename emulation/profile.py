"""Hardware profiles: a cluster as data, every figure with its source.

A profile (a YAML file under ``specs/hardware``) lists device *models*, *hosts* made of them, the *links* inside a host
and the *fabric* between hosts, and the software costs that transports pay on a host. `topology` turns it into ports
and routes; `cost` turns it into times.

Names follow from the profile: host group ``host`` with ``count: 2`` gives ``host0`` and ``host1``; device group
``gpu`` with ``count: 8`` gives ``host0/gpu0`` ... ``host1/gpu7``; each host has ``host0/cpu``.

This module is imported to validate a spec, so it needs pydantic and nothing heavier.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from emulation import layout
from emulation.figures import (
    BytesCurve,
    BytesFigure,
    DurationFigure,
    FactorFigure,
    Figure,
    FlopRateFigure,
    FlopsCurve,
    FractionFigure,
    Grade,
    HalfSizes,
    RateFigure,
    SizeFigure,
    corrected,
    weakest,
)
from emulation.refusal import refuse
from emulation.residuals import FamilyResiduals, Residuals, check_rising
from emulation.units import Bytes, Duration, Fraction, Strict

if TYPE_CHECKING:
    from collections.abc import Iterator

GROUP_NAME = r"^[a-z][a-z-]{0,30}$"
LinkKind = Literal["nvlink", "pcie", "cpu", "network"]
"""What a link is made of; collectives pay a latency per step that depends on it."""
Operation = Literal["all-reduce", "reduce-scatter", "all-gather", "broadcast", "reduce", "all-to-all", "send"]
"""What a measured table can be of."""


class Bandwidth(Strict):
    """A peak rate and how much of it one gets, by transfer size."""

    peak: RateFigure
    efficiency: BytesCurve | None = None

    def rate(self, nbytes: float, curve: BytesCurve | None = None) -> float:
        """Bytes per second for a transfer of `nbytes`; `curve` takes the place of the efficiency."""
        curve = curve or self.efficiency
        return self.peak.value * (curve.value_at(nbytes) if curve else 1.0)

    def grade_at(self, nbytes: float, curve: BytesCurve | None = None) -> Grade:
        """Grade of `rate(nbytes)`."""
        curve = curve or self.efficiency
        return corrected(self.peak.grade, curve.grade_at(nbytes)) if curve else self.peak.grade


class FamilyEfficiency(Strict):
    """What kernels of one family of operators (`matmul`, `normalization`, ...) get; absent figures are the device's.

    A product of shape (m, n, k) gets `arithmetic / ((1 + rows / m) (1 + columns / min(n, k)))` of the peak of its
    dtype: `rows` and `columns` are half-performance lengths (Hockney and Jesshope, Parallel Computers, 1981), the sizes
    at which half of the rate is reached. Where no `arithmetic` is given, `flops` says it by the work alone.
    """

    flops: FlopsCurve | None = None
    """Of the peak rate of arithmetic, by work."""
    arithmetic: FractionFigure | None = None
    """Of the peak rate of arithmetic, for a large operator of any shape."""
    rows: SizeFigure | None = None
    columns: SizeFigure | None = None
    bytes: BytesCurve | None = None
    """Of the memory's peak bandwidth."""
    half: HalfSizes | None = None
    """How matrix products of small shapes fall behind `flops`."""
    launch: DurationFigure | None = None
    """Fixed time of one operator: the framework's dispatch as well as the device's launch."""
    contention: FactorFigure | None = None
    """How many times longer one takes when all cores of the host run the same."""

    @model_validator(mode="after")
    def _one_of_each(self) -> FamilyEfficiency:
        if self.flops and self.arithmetic:
            refuse(("arithmetic",), "give the part of the peak by work (`flops`) or by shape (`arithmetic`), not both")
        if self.bytes and self.memory:
            refuse(("memory",), "give the part of the bandwidth by bytes (`bytes`) or as one (`memory`), not both")
        return self

    def part(self, shape: tuple[int, ...]) -> float:
        """`arithmetic` for a kernel of this shape; of a large one, where the shape is not known."""
        found = self.arithmetic.value if self.arithmetic else 1.0
        if len(shape) == 3:
            m, n, k = shape
            found /= 1 + (self.rows.value if self.rows else 0.0) / m
            found /= 1 + (self.columns.value if self.columns else 0.0) / min(n, k)
        return found


class Throughput(Strict):
    """A peak work rate and how much of it one gets, by the work of one kernel, or by its family and shape."""

    peak: FlopRateFigure
    efficiency: FlopsCurve | None = None
    families: dict[str, FamilyEfficiency] = Field(default_factory=dict)
    """By family of operators; what has no figure of its own is read off `efficiency`."""

    def rate(self, flops: float, family: str = "", shape: tuple[int, ...] = ()) -> float:
        """FLOP per second for a kernel of `flops`; `shape` is the (m, n, k) of a matrix product, if known."""
        curve, own = self._curve(family), self.family(family)
        part = own.half.part(shape) if own and own.half else 1.0
        return self.peak.value * part * (curve.value_at(flops) if curve else 1.0)

    def grade_at(self, flops: float, family: str = "") -> Grade:
        """Grade of `rate(flops)`."""
        curve, own = self._curve(family), self.family(family)
        efficiencies = ([curve.grade_at(flops)] if curve else []) + ([own.half.grade] if own and own.half else [])
        return corrected(self.peak.grade, weakest(efficiencies)) if efficiencies else self.peak.grade

    def family(self, name: str) -> FamilyEfficiency | None:
        """The figures of a family; a backward pass without its own has those of its forward pass."""
        return self.families.get(name) or self.families.get(name.removesuffix("-backward"))

    def _curve(self, own: FamilyEfficiency | None) -> FlopsCurve | None:
        return own.flops if own and own.flops else self.efficiency


class DeviceModel(Strict):
    """A kind of processor: what it computes, and the memory it computes from."""

    kind: Literal["cpu", "gpu"]
    memory: BytesFigure
    memory_bandwidth: Bandwidth
    compute: dict[str, Throughput] = Field(min_length=1)
    """Peak by dtype (`fp32`, `fp16`, `bf16`, ...)."""
    launch: DurationFigure
    """Fixed time before a kernel starts."""


class DeviceGroup(Strict):
    """Devices of one model in a host: `{name: gpu, model: a100, count: 8}`."""

    name: str = Field(pattern=GROUP_NAME)
    model: str
    count: int = Field(default=1, ge=1, le=1024)


class NicGroup(Strict):
    """Network adapters of a host."""

    name: str = Field(default="nic", pattern=GROUP_NAME)
    count: int = Field(default=1, ge=1, le=64)
    rdma: bool = False


class SwitchGroup(Strict):
    """Switches: they forward, and compute nothing."""

    name: str = Field(pattern=GROUP_NAME)
    count: int = Field(default=1, ge=1, le=4096)


class Wiring(Strict):
    """What a full-duplex link can do; each direction has the whole rate."""

    rate: RateFigure
    """Per lane and direction."""
    lanes: int = Field(default=1, ge=1, le=64)
    efficiency: FractionFigure | None = None
    latency: DurationFigure

    @property
    def capacity(self) -> float:
        """Bytes per second that payload gets in one direction."""
        return self.over(self.lanes)

    def over(self, lanes: int) -> float:
        """The same over this many lanes."""
        return self.rate.value * lanes * (self.efficiency.value if self.efficiency else 1.0)

    @property
    def grade(self) -> Grade:
        """Weakest of the corrected rate and the latency."""
        rate = corrected(self.rate.grade, self.efficiency.grade) if self.efficiency else self.rate.grade
        return weakest((rate, self.latency.grade))


class Link(Wiring):
    """Full-duplex links of one kind between two groups.

    Give `ends` (two group names, joined as `pairing` says) or `pairs` (members by name, `[gpu0, gpu3]`).
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,30}$")
    kind: LinkKind
    ends: list[str] = Field(default_factory=list, max_length=2)
    pairing: Literal["all", "index", "block", "mesh", "ring", "cube-mesh"] = "all"
    """Of two groups, `all`: every member of one with every member of the other; `index`: the n-th with the n-th;
    `block`: consecutive members of the larger share one of the smaller. Of one group (`ends` names it twice), `mesh`:
    every two members; `ring`: each with the next; `cube-mesh`: eight as a hybrid cube mesh, some with twice the
    lanes."""
    pairs: list[list[str]] = Field(default_factory=list)


class Rpc(Strict):
    """What a remote procedure call costs beside the wire."""

    per_call: DurationFigure
    """Fixed time of one call and its reply, both ends together (threads, headers, wake-ups)."""
    serialise: RateFigure
    """Payload bytes per second packed into a message by the sender; unpacking at the receiver costs the same."""
    stream: RateFigure
    """Bytes per second of one connection through both kernels, where the wire is not the limit."""
    per_message: DurationFigure
    """Fixed time of each wire message (frame) of `message` bytes that a large payload is cut into."""
    message: BytesFigure
    stream_message: DurationFigure | None = None
    """Fixed time of one message and its reply on a stream that is already open; absent: as a call."""


class OneSided(Strict):
    """What a one-sided write costs the sender and the poller; the receiver's processor does nothing."""

    post: DurationFigure
    """Building and posting one work request (on one host: the call that starts the copy)."""
    completion: DurationFigure
    """From the last byte placed until the poller has seen it."""
    registration: DurationFigure
    """Fixed time of registering a region, paid once per region."""
    registration_per_page: DurationFigure


class Tcp(Strict):
    """One TCP connection driven from user space."""

    stream: RateFigure
    """Bytes per second one connection reaches where the wire is not the limit (copies in and out of the kernel)."""
    per_message: DurationFigure
    """Fixed time of a length-prefixed message and the wake-up of its reader."""
    efficiency: FractionFigure
    """Part of a link's bit rate left for payload after frame, IP and TCP headers."""


class Software(Strict):
    """Costs on a host's processor that transports pay."""

    memcpy: Bandwidth
    """Bytes copied per second by one core (each byte is read once and written once)."""
    page: BytesFigure
    tcp: Tcp
    rpc: Rpc
    one_sided: OneSided | None = None
    """Absent where no one-sided write is possible."""


class Host(Strict):
    """`count` equal machines."""

    name: str = Field(default="host", pattern=GROUP_NAME)
    count: int = Field(default=1, ge=1, le=65536)
    cpu: str
    """Model of the processor; its memory is the host's."""
    cores: int = Field(ge=1)
    devices: list[DeviceGroup] = Field(default_factory=list)
    nics: list[NicGroup] = Field(default_factory=list)
    switches: list[SwitchGroup] = Field(default_factory=list)
    links: list[Link] = Field(default_factory=list)
    software: Software

    @model_validator(mode="after")
    def _consistent(self) -> Host:
        layout.check_host(self)
        return self


class FabricWiring(Wiring):
    """Links of a fabric's topology."""

    kind: LinkKind = "network"


class FabricTopology(Strict):
    """A fabric by its shape: switches and links follow from the number of hosts (`emulation.topologies`).

    Switches are `fabric/switch0`, `fabric/leaf3`, `fabric/spine0`, `fabric/core7` or `fabric/router5`.
    """

    kind: Literal["flat", "leaf-spine", "fat-tree", "torus"]
    ends: str = "nic"
    """The group of the hosts' ports that hang on it."""
    link: FabricWiring
    """From a port to its switch, and between switches if there is no `trunk`."""
    trunk: FabricWiring | None = None
    """Between switches."""
    leaf_ports: int | None = Field(default=None, ge=1, le=4096)
    """Ports of a leaf that lead to hosts."""
    oversubscription: float = Field(default=1, ge=1)
    """Host ports of a leaf per uplink of it."""
    spines: int | None = Field(default=None, ge=1, le=4096)
    """Spines (of a pod); absent: as many as a leaf has uplinks. With fewer, each uplink is several lanes wide."""
    rails: bool = False
    """The n-th ports of all hosts of a unit (as many hosts as a leaf has ports) share a leaf."""
    levels: Literal[2, 3] = 2
    """Of a fat tree: leaves and spines, or pods of them under cores."""
    pod_leaves: int | None = Field(default=None, ge=1, le=4096)
    """Leaves of a pod."""
    routing: Literal["hashed", "by-destination"] = "hashed"
    """Which of equal ways is taken: by a hash of seed, ends and label (ECMP), or by the number of the target's port."""
    shape: list[Annotated[int, Field(ge=2, le=65536)]] | None = Field(default=None, min_length=1, max_length=3)
    """Of a torus: routers in each dimension."""


class Fabric(Strict):
    """What joins hosts: a `topology`, or switches and links whose ends are groups of any host or these switches."""

    topology: FabricTopology | None = None
    switches: list[SwitchGroup] = Field(default_factory=list)
    links: list[Link] = Field(default_factory=list)


class PinnedRoute(Strict):
    """A route that is not left to be found: `{from: host0/gpu0, to: host1/gpu0, via: [host0/nic1, ...]}`."""

    model_config = ConfigDict(populate_by_name=True)

    source: str = Field(alias="from")
    target: str = Field(alias="to")
    via: list[str] = Field(default_factory=list)
    """Every member between the two ends, in order; each is joined to the next by a link."""


class CollectiveOption(Strict):
    """One way a library can carry out a collective; the cheapest applicable one is used.

    All its figures have one grade and source.
    """

    name: str
    algorithm: Literal["ring", "tree", "binary-tree", "halving-doubling", "two-level", "nvls"]
    base: Duration
    """Paid once per collective."""
    step: dict[LinkKind, Duration] = Field(min_length=1)
    """Latency of one step, by the kind of the slowest link it crosses; a kind that is absent cannot be used."""
    bandwidth: Fraction = Field(gt=0, le=1)
    """Part of the links' capacity this protocol reaches."""
    grade: Grade
    source: str


class TablePoint(Strict):
    """One row of a `CollectiveTable`."""

    bytes: Bytes = Field(gt=0)
    """Buffer of one rank."""
    time: Duration = Field(gt=0)
    """From the start on the last rank to the end on the last rank, nothing else moving."""


class CollectiveTable(Figure):
    """What one collective takes on one size of group, by buffer size; preferred over the library's options.

    Read by `cost.tables`: between the points linear in bytes (a latency and a bandwidth of their own for every
    stretch), and for group sizes between or beside those of several tables from the tables together.
    """

    op: Operation
    ranks: int = Field(ge=2)
    hosts: int = Field(default=1, ge=1)
    """Hosts the ranks are spread over, equally many on each."""
    link: LinkKind
    """Kind of the farthest link within the group."""
    points: list[TablePoint] = Field(min_length=1)
    residuals: list[Residuals] = Field(default_factory=list)
    """What readings of it were off by, by bytes; absent: the band of the grade."""

    @model_validator(mode="after")
    def _rising(self) -> CollectiveTable:
        for index, (left, right) in enumerate(pairwise(self.points), start=1):
            if left.bytes >= right.bytes:
                refuse(("points", index, "bytes"), "the points of a table must have rising, distinct `bytes`")
            if left.time > right.time:
                refuse(("points", index, "time"), "more bytes cannot take less time; fit the table to the sweep")
        if self.ranks % self.hosts:
            refuse(("hosts",), f"{self.ranks} ranks cannot be spread equally over {self.hosts} hosts")
        check_rising(self.residuals)
        return self


class CollectivePrior(Strict):
    """Options by the constants of a library's own tuner, in place of a list (`emulation.cost.nccl_tuner`)."""

    prior: Literal["nccl"]
    generation: Literal["volta", "ampere", "hopper", "blackwell"]
    """Of the GPUs; from hopper on, NVLink switches add (NVLS)."""
    source: str = "nccl"


def _written_out(value: Any) -> Any:
    """A prior as the list of options it stands for."""
    if not isinstance(value, dict):
        return value
    from emulation.cost.nccl_tuner import options

    try:
        prior = CollectivePrior.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        refuse(first["loc"], first["msg"])
    return options(prior.generation, prior.source)


class Calibration(Strict):
    """Where a measured profile comes from: the file of raw samples beside it."""

    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of that file."""
    date: str
    """When it began, ISO 8601, UTC."""
    machine: str
    """What was measured: processor, cores, system."""
    file: str
    """Name of the file of raw samples, in the profile's folder."""


class Framework(Strict):
    """What a training framework costs on the host's processor, which runs ahead of the device."""

    call: DurationFigure
    """Launching one kernel. The host launches while the device computes: a pass takes as long as the slower of them."""
    wide_call: DurationFigure
    """More, per collective of a group that has all accelerators of a host."""
    micro_batch: DurationFigure
    """Per micro-batch and stage, in which nothing else happens."""
    step: DurationFigure
    """Per training step, in which nothing else happens."""


@dataclass(frozen=True)
class Capabilities:
    """What an experiment may ask of a cluster."""

    hosts: int
    gpus: int
    """Per host, of the host with the fewest."""
    gpu_memory: int
    """Bytes of the smallest GPU; 0 without any."""
    memory: int
    """Bytes of the smallest host."""
    rdma: bool


class Profile(Strict):
    """A cluster. Equal digests mean equal emulated results."""

    schema_: Literal[1] = Field(alias="schema")
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,60}(@[1-9]\d{0,4})?$")
    """As its file; `@128` follows where 128 hosts were asked for."""
    description: str = ""
    sources: dict[str, str] = Field(min_length=1)
    """Short key -> what it is: title, edition, section; figures name the key."""
    models: dict[str, DeviceModel] = Field(min_length=1)
    hosts: list[Host] = Field(min_length=1)
    fabric: Fabric = Field(default_factory=Fabric)
    routes: list[PinnedRoute] = Field(default_factory=list)
    collectives: Annotated[
        list[CollectiveOption],
        BeforeValidator(_written_out, json_schema_input_type=list[CollectiveOption] | CollectivePrior),
    ] = Field(default_factory=list)
    """What the collective library can do: options, or `{prior: nccl, generation: ampere}`."""
    collective_tables: list[CollectiveTable] = Field(default_factory=list)
    """Measured times; where one fits the group it is used instead of `collectives`."""
    residuals: list[FamilyResiduals] = Field(default_factory=list)
    """What families of models were off by where that was measured; absent: the band of the grade."""
    framework: Framework | None = None
    """Absent: training costs the host nothing."""
    fragmentation: FractionFigure
    """Part of a device's memory the allocator cannot use."""
    calibration: Calibration | None = None
    """Of a profile that `harness calibrate` wrote."""

    @model_validator(mode="after")
    def _consistent(self) -> Profile:
        layout.check_sources(self)
        layout.check_one_sided(self)
        layout.check_models(self)
        layout.check_fabric(self)
        if self.routes:
            from emulation.topology import check_routes

            check_routes(self)
        layout.check_tables(self)
        return self

    @property
    def digest(self) -> str:
        """SHA-256 over every field that can change a result, in canonical JSON."""
        fields = self.model_dump(mode="json", by_alias=True, exclude={"description", "calibration"})
        return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @property
    def grade(self) -> Grade:
        """Weakest grade of any figure in the profile; a result has the weakest of those it used."""
        return weakest(figure.grade for _, figure in self.figures())

    def figures(self) -> Iterator[tuple[tuple[str | int, ...], Figure | CollectiveOption]]:
        """Every figure with its path in the document."""
        yield from layout.figures(self)

    def host_names(self) -> list[str]:
        """Names of all hosts, in order: `host0`, `host1`, ..."""
        return [f"{group.name}{index}" for group in self.hosts for index in range(group.count)]

    def host(self, name: str) -> Host:
        """The host (or the host of a device) of this name.

        Raises:
            ValueError: no such host; the message has the nearest name.
        """
        return layout.host_of(self, name)

    def capabilities(self) -> Capabilities:
        """What can be asked of this cluster."""
        gpus = [[d for d in h.devices if self.models[d.model].kind == "gpu"] for h in self.hosts]
        return Capabilities(
            hosts=sum(host.count for host in self.hosts),
            gpus=min(sum(device.count for device in devices) for devices in gpus),
            gpu_memory=min((self.models[d.model].memory.value for ds in gpus for d in ds), default=0),
            memory=min(self.models[host.cpu].memory.value for host in self.hosts),
            rdma=all(any(nic.rdma for nic in host.nics) for host in self.hosts),
        )
