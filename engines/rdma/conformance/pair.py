"""Two connected devices in one process."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engines.rdma.conformance.expectations import Failure
from engines.rdma.device import Access, ChannelOptions
from engines.rdma.providers import open_device

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from engines.rdma.device import Channel, Completion, Descriptor, Device, Region, Status, Ticket

EVERYTHING = Access.LOCAL_WRITE | Access.REMOTE_READ | Access.REMOTE_WRITE
WAIT_SECONDS = 30.0
"""Wall time after which what a case waits for is taken not to come."""


@dataclass(frozen=True)
class Setting:
    """Which provider, and what its devices are opened with."""

    provider: str
    near: Mapping[str, Any] = field(default_factory=dict)
    far: Mapping[str, Any] = field(default_factory=dict)

    @property
    def one_process(self) -> bool:
        """Whether both devices must live in one process."""
        return self.provider == "sim"

    def devices(self, capacity: int) -> tuple[Device, Device]:
        """Two devices that can reach each other.

        Raises:
            ProviderUnavailable: not here.
        """
        joint: dict[str, Any] = {}
        if self.provider == "sim":
            from engines.rdma.providers.sim.fabric import Fabric

            joint["fabric"] = Fabric()
        near = open_device(self.provider, capacity, **joint, **self.near)
        try:
            return near, open_device(self.provider, capacity, **joint, **self.far)
        except BaseException:
            near.close()
            raise

    def probe(self, capacity: int) -> None:
        """Find out whether the provider can be used here.

        Raises:
            ProviderUnavailable: no, and why.
        """
        for device in self.devices(capacity):
            device.close()


class End:
    """A device, its channel, and what the channel completed."""

    def __init__(self, device: Device, options: Mapping[str, Any]) -> None:
        self.device = device
        self.options = ChannelOptions(**options)
        self.channel: Channel = device.channel(self.options)
        self.done: list[Completion] = []

    def region(self, nbytes: int, access: Access = EVERYTHING) -> Region:
        """Fresh registered memory."""
        return self.device.allocate(nbytes, access=access)

    def published(self, nbytes: int, access: Access = EVERYTHING) -> tuple[Region, Descriptor]:
        """Fresh registered memory, and what the other end knows of it."""
        region = self.region(nbytes, access)
        return region, self.device.describe(region)

    def collect(self) -> None:
        """Take the completions that there are."""
        self.done.extend(self.channel.poll())

    def statuses(self, tickets: Sequence[Ticket] | None = None) -> list[Status]:
        """Of these tickets, or of all that completed, in order of completion."""
        return [c.status for c in self.done if tickets is None or c.ticket in tickets]


class Pair:
    """Two ends; `near` mostly acts, `far` mostly suffers."""

    def __init__(self, setting: Setting, capacity: int, near: Mapping[str, Any], far: Mapping[str, Any]) -> None:
        self.setting = setting
        self._stack = ExitStack()
        with ExitStack() as undo:
            devices = setting.devices(capacity)
            for device in devices:
                undo.callback(device.close)
            self.near, self.far = End(devices[0], near), End(devices[1], far)
            self.idlers = list(devices)
            """Devices that are open, and give way."""
            for end in (self.near, self.far):
                undo.callback(end.channel.close)
            self.connect()
            self._stack = undo.pop_all()

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def connect(self) -> None:
        """Join the two channels."""
        addresses = self.near.channel.address(), self.far.channel.address()
        self.near.channel.connect(addresses[1])
        self.far.channel.connect(addresses[0])

    def reconnect(self) -> None:
        """Reset both channels and join them again."""
        self.near.channel.reset()
        self.far.channel.reset()
        self.connect()

    def another(self, **options: Any) -> tuple[Channel, Channel]:
        """A second connection between the same devices."""
        ends = self.near.device.channel(ChannelOptions(**options)), self.far.device.channel(ChannelOptions(**options))
        ends[0].connect(ends[1].address())
        ends[1].connect(ends[0].address())
        for end in ends:
            self._stack.callback(end.close)
        return ends

    def look(self) -> None:
        """Let both ends take what completed."""
        self.near.collect()
        self.far.collect()

    def give_way(self) -> None:
        """Let time pass, for both: simulated time passes only when every device of a process has had its look."""
        for device in self.idlers:
            device.idle()

    def until(self, condition: Callable[[], object], what: str, *, look: Callable[[], None] | None = None) -> None:
        """Look, and give way, until `condition` holds.

        Raises:
            Failure: it does not in `WAIT_SECONDS`.
        """
        deadline = time.monotonic() + WAIT_SECONDS
        (look or self.look)()
        while not condition():
            if time.monotonic() > deadline:
                raise Failure(f"{what} did not come within {WAIT_SECONDS:g} s")
            self.give_way()
            (look or self.look)()

    def end_of(self, *tickets: Ticket, look: Callable[[], None] | None = None) -> list[Completion]:
        """Wait for the near end's tickets; the completion of each."""
        wanted = set(tickets)
        self.until(
            lambda: wanted <= {c.ticket for c in self.near.done}, f"the end of ticket {_names(wanted)}", look=look
        )
        ended = {c.ticket: c for c in self.near.done}
        return [ended[ticket] for ticket in tickets]

    def status_of(self, ticket: Ticket, *, look: Callable[[], None] | None = None) -> Status:
        """Wait for a ticket of the near end; how it ended."""
        return self.end_of(ticket, look=look)[0].status

    def arrival(self) -> int:
        """Wait for the far end's next immediate."""
        return self.next_of(self.far.channel.arrived, "an immediate")

    def message(self) -> bytes:
        """Wait for the far end's next message."""
        return self.next_of(self.far.channel.receive, "a message")

    def next_of(self, look: Callable[[], Any], what: str) -> Any:
        """Wait until `look` finds something; what it is."""
        found: list[Any] = []

        def come() -> bool:
            item = look()
            if item is not None:
                found.append(item)
            return bool(found)

        self.until(come, what)
        return found[0]


def _names(tickets: set[Ticket]) -> str:
    return ", ".join(map(str, sorted(tickets)[:5])) + (", ..." if len(tickets) > 5 else "")
