"""What goes wrong, as data: the `faults` of a spec.

Each fault names what it happens to by the profile's names. A *device* is `host0/gpu3` or a pattern (`host0/gpu*`); a
*link* is one direction (`host0/nic0>fabric/leaf0`), a pattern of such names, a port (`host0/nic0`: every link that ends
at it, both ways), a link of the profile by its own name (`wire`) or a kind of links (`network`).

Faults that overlap multiply; a link that is down is down whatever else it is. Times count from the start of every
emulated workload. `scenario` binds them to a cluster.

This module is imported to validate a spec, so it needs pydantic and nothing heavier.
"""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import ConfigDict, Field, TypeAdapter, model_validator
from pydantic_core import PydanticCustomError

from emulation import layout
from emulation.units import Bytes, Duration, Fraction, Strict

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from emulation.profile import Profile
    from emulation.topology import Topology

CORES = "cores"
"""Kind of what a host's kernels share; no link, so no fault of a link can name it."""


class FaultError(ValueError):
    """A fault that does not fit the cluster."""

    def __init__(self, path: tuple[str | int, ...], what: str, word: str = "", choices: Collection[str] = ()) -> None:
        near = difflib.get_close_matches(word, sorted(choices), n=1)
        self.path = path
        """Keys of what is to blame, from the list of faults on: `(2, "link")`."""
        self.what = what
        self.nearest = near[0] if near else ""
        hint = f"; did you mean {self.nearest!r}?" if near else ""
        super().__init__(f"faults.{'.'.join(map(str, path))}: {what}{hint}")


class _Lazy(Strict):
    """Built when it is first used: most specs have no faults, and every verb imports these."""

    model_config = ConfigDict(defer_build=True)


class _Named(_Lazy):
    """What every fault may have."""

    name: str = Field(default="", max_length=60)
    """What tables and cells call it; empty: its kind."""


class _Window(_Named):
    """Something that holds for a time; without `from` and `to` for the whole run."""

    from_: Duration = Field(default=0.0, alias="from")
    """When it begins."""
    to: Duration | None = None
    """When it is over; absent: never."""

    @model_validator(mode="after")
    def _forwards(self) -> _Window:
        if self.to is not None and self.to < self.from_:
            _blame("to", "a fault cannot be over before it begins")
        return self


class SlowRank(_Window):
    """A device that computes more slowly than its equals."""

    kind: Literal["slow-rank"]
    device: str = ""
    """Name or pattern; or give `rank`."""
    rank: int | None = Field(default=None, ge=0)
    """Number among the cluster's accelerators (its hosts' processors where there are none), in order."""
    factor: float = Field(ge=1, le=1e6)
    """How many times longer a kernel takes."""

    @model_validator(mode="after")
    def _one_name(self) -> SlowRank:
        if bool(self.device) == (self.rank is not None):
            _blame("device" if self.device else "kind", "a slow rank is named either by `device` or by `rank`")
        return self


class Jitter(_Named):
    """Kernels that take a little more or less time each time."""

    kind: Literal["jitter"]
    sigma: float = Field(ge=0, le=2)
    """Standard deviation of the logarithm of a kernel's time; its median stays."""
    family: str = ""
    """Operator family (`matmul`); empty for all kernels."""
    devices: list[str] = Field(default_factory=list)
    """Names or patterns; empty for all."""


class SlowLink(_Window):
    """A link with less than its capacity."""

    kind: Literal["slow-link"]
    link: str
    factor: Fraction = Field(gt=0, le=1)
    """Part of its capacity that is left."""


class LinkDown(_Named):
    """A link that carries nothing. What is on it stands still until somebody notices, then goes another way.

    Where there is no other way it waits for the link to come back; if that never happens the run is aborted.
    """

    kind: Literal["link-down"]
    link: str
    at: Duration
    until: Duration | None = None
    """When it is up again; absent: never."""
    detection: Duration
    """Time from its going down until senders know."""

    @model_validator(mode="after")
    def _forwards(self) -> LinkDown:
        if self.until is not None and self.until < self.at:
            _blame("until", "a link cannot be up again before it went down")
        return self


class Loss(_Named):
    """A link that loses packets, under go-back-N: all packets in flight behind a lost one are sent again.

    To first order the rate falls to ``capacity / (1 + p W)`` with W packets in flight, capacity x round trip / MTU.
    Selective repeat (TCP with SACK, newer adapters) loses less.
    """

    kind: Literal["loss"]
    link: str
    p: Fraction = Field(ge=0, lt=1)
    """Probability that one packet is lost."""
    mtu: Bytes = Field(default=4096, ge=64, le=65536)
    """Bytes of a packet."""
    round_trip: Duration | None = None
    """Of the flows over the link; absent: that between the nearest processors at its two sides."""


class Latency(_Named):
    """A link on which every message takes longer to arrive."""

    kind: Literal["extra-latency"]
    link: str
    latency: Duration
    """Added to the link's own."""
    jitter: Duration = 0.0
    """Half-width of a uniform variation around `latency`, drawn for each message."""

    @model_validator(mode="after")
    def _positive(self) -> Latency:
        if self.jitter > self.latency:
            _blame("jitter", "a variation wider than the latency would make messages arrive early")
        return self


class Abort(_Lazy):
    """The run ends when the death is detected."""

    kind: Literal["abort"]


class Restart(_Lazy):
    """All ranks go back to the last checkpoint, on a spare host."""

    kind: Literal["restart"]
    checkpoint_interval: Duration = Field(gt=0)
    """Work between two checkpoints."""
    checkpoint_cost: Duration = 0.0
    """Time in which a checkpoint is written and no work is done."""
    restart_cost: Duration
    """From detection until work goes on."""


class Elastic(_Lazy):
    """The remaining hosts take over the dead one's part; nothing is lost, and all is slower from then on."""

    kind: Literal["elastic"]
    remaining: int = Field(ge=1)
    """Hosts that go on; work takes (hosts before) / (hosts after) times as long."""
    reconfiguration: Duration
    """From detection until work goes on."""


Policy = Annotated[Abort | Restart | Elastic, Field(discriminator="kind")]


class NodeDeath(_Named):
    """A host that stops."""

    kind: Literal["node-death"]
    host: str
    at: Duration
    detection: Duration
    """Time until its peers know."""
    policy: Policy = Abort(kind="abort")
    """What is done then; one policy for all deaths of a spec."""


class MemoryPressure(_Named):
    """Memory of a device that somebody else holds."""

    kind: Literal["memory-pressure"]
    device: str
    bytes: Bytes
    """Taken from what the device has."""


class Mtbf(_Named):
    """Failures at random over a long job: what part of the time is useful?"""

    kind: Literal["mtbf"]
    host: Duration | None = Field(default=None, gt=0)
    """Mean time between failures of one host."""
    device: Duration | None = Field(default=None, gt=0)
    """Mean time between failures of one accelerator."""
    checkpoint_interval: Literal["optimal", "young"] | Duration = "optimal"
    """Work between two checkpoints; `young`: sqrt(2 C M); `optimal`: Daly's refinement of it."""
    checkpoint_cost: Duration = Field(gt=0)
    restart_cost: Duration
    """From a failure until work goes on."""
    job: Duration = Field(gt=0)
    """Work to be done: what it would take without failures and checkpoints."""

    @model_validator(mode="after")
    def _somebody_fails(self) -> Mtbf:
        if self.host is None and self.device is None:
            _blame("kind", "somebody has to fail: give the MTBF of a `host`, of a `device`, or of both")
        return self


Fault = Annotated[
    SlowRank | Jitter | SlowLink | LinkDown | Loss | Latency | NodeDeath | MemoryPressure | Mtbf,
    Field(discriminator="kind"),
]
KINDS: frozenset[str] = frozenset(
    get_args(model.model_fields["kind"].annotation)[0] for model in get_args(get_args(Fault)[0])
)
"""What a fault's `kind` may be."""
FAULTS: TypeAdapter[list[Fault]] = TypeAdapter(list[Fault], config=ConfigDict(defer_build=True))


def changes_nothing(fault: Fault) -> bool:
    """Whether a fault leaves everything as it is: a factor of 1, a probability of 0, no time at all."""
    match fault:
        case SlowRank() | SlowLink():
            return fault.factor == 1 or fault.to == fault.from_
        case Jitter():
            return fault.sigma == 0
        case LinkDown():
            return fault.until == fault.at
        case Loss():
            return fault.p == 0
        case Latency():
            return fault.latency == 0
        case MemoryPressure():
            return fault.bytes == 0
    return False


def devices_named(name: str, known: Iterable[str]) -> list[str]:
    """The devices that a name or pattern means, in order."""
    return [device for device in known if fnmatchcase(device, name)]


def links_named(name: str, topology: Topology) -> list[int]:
    """Numbers of the links that a name means (see the module's text), rising; none where it means nothing."""
    try:
        number = topology.link_number(name)
        return [number] if topology.links[number].kind != CORES else []
    except ValueError:
        # Not one link by its whole name, which is the cheap case: all have to be looked at.
        links = [(number, link) for number, link in enumerate(topology.links) if link.kind != CORES]
    alike = [number for number, link in links if fnmatchcase(link.name, name)]
    of_kind = [number for number, link in links if link.kind == name]
    at_port = [number for number, link in links if ">" in link.name and name in link.name.split(">")]
    return alike or of_kind or at_port or _of_profile(name, topology)


def ranks(profile: Profile) -> list[str]:
    """What `rank` counts: the accelerators, or the hosts' processors where there are none."""
    return layout.devices(profile) or layout.processors(profile)


def check(faults: Sequence[Fault], topology: Topology) -> Iterator[FaultError]:
    """Every name that the cluster does not have, with the nearest one that it has."""
    for index, fault in enumerate(faults):
        match fault:
            case SlowRank() if fault.rank is not None:
                count = len(ranks(topology.profile))
                if fault.rank >= count:
                    yield FaultError((index, "rank"), f"the cluster has ranks 0 to {count - 1}")
            case SlowRank() | MemoryPressure():
                yield from _unknown_device((index, "device"), fault.device, topology)
            case Jitter():
                for place, name in enumerate(fault.devices):
                    yield from _unknown_device((index, "devices", place), name, topology)
            case SlowLink() | LinkDown() | Loss() | Latency():
                if not links_named(fault.link, topology):
                    what = f"profile {topology.profile.name!r} has no link {fault.link!r}"
                    yield FaultError((index, "link"), what, fault.link, _link_words(topology))
            case Mtbf() if any(isinstance(earlier, Mtbf) for earlier in faults[:index]):
                yield FaultError((index, "kind"), "failures at random are described once")
            case NodeDeath():
                yield from _wrong_death(index, fault, faults, topology.profile)


def _wrong_death(index: int, fault: NodeDeath, faults: Sequence[Fault], profile: Profile) -> Iterator[FaultError]:
    hosts = profile.host_names()
    if fault.host not in hosts:
        what = f"profile {profile.name!r} has no host {fault.host!r}"
        yield FaultError((index, "host"), what, fault.host, hosts)
    if isinstance(fault.policy, Elastic) and fault.policy.remaining >= len(hosts):
        what = f"{fault.policy.remaining} of {len(hosts)} hosts cannot remain when one has died"
        yield FaultError((index, "policy", "remaining"), what)
    first = next(other for other in faults if isinstance(other, NodeDeath))
    if fault.policy != first.policy:
        yield FaultError((index, "policy"), "all deaths of a spec need the same policy")


def _unknown_device(path: tuple[str | int, ...], name: str, topology: Topology) -> Iterator[FaultError]:
    if not devices_named(name, topology.order):
        yield FaultError(path, f"profile {topology.profile.name!r} has no device {name!r}", name, topology.order)


def _of_profile(name: str, topology: Topology) -> list[int]:
    ends = [(wire.left, wire.right) for wire in _wires(topology.profile) if wire.link.name == name]
    numbers = {topology.joining(*pair) for left, right in ends for pair in ((left, right), (right, left))}
    return sorted(number for number in numbers if number is not None)


def _wires(profile: Profile) -> Iterator[layout.Wire]:
    """Every wire that the profile lists under a name, by its whole names."""
    for host in profile.hosts:
        for wire in layout.host_wires(host):
            for n in range(host.count):
                here = f"{host.name}{n}"
                yield wire._replace(left=f"{here}/{wire.left}", right=f"{here}/{wire.right}")
    yield from layout.fabric_wires(profile)


def _link_words(topology: Topology) -> set[str]:
    words = {link.name for link in topology.links if link.kind != CORES}
    words |= {str(link.kind) for link in topology.links if link.kind != CORES}
    words |= {end for word in words for end in word.split(">")}
    return words | {wire.link.name for wire in _wires(topology.profile)}


def _blame(key: str, text: str) -> None:
    raise PydanticCustomError("fault", "{text}", {"text": text, "path": [key]})
