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
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from emulation import layout
from emulation.collectives import CollectiveOption, CollectivePrior, CollectiveTable
from emulation.figures import BytesFigure, DurationFigure, Figure, FractionFigure, Grade, RateFigure, weakest
from emulation.processors import Bandwidth, DeviceModel
from emulation.refusal import refuse
from emulation.residuals import FamilyResiduals
from emulation.units import Strict
from emulation.wiring import FabricTopology, Link

if TYPE_CHECKING:
    from collections.abc import Iterator

GROUP_NAME = r"^[a-z][a-z-]{0,30}$"


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
