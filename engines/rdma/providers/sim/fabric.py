"""The wire between adapters, and the virtual time they share.

Every adapter hangs on one switch: what it sends takes its own port one packet after another, travels for a fixed time,
and takes the target's port in the order of arrival. Packets may be lost, and where routing is adaptive they may take
longer ways and be overtaken. All chance comes from one seeded generator and events of one instant run in the order in
which they were scheduled, so equal seeds give equal runs; `digest` says so in 64 digits.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import simpy

from emulation.io.chrome_trace import Slice
from emulation.units import PICOSECONDS_PER_SECOND, picoseconds
from engines.rdma.device import ProviderUnavailable, Unavailable
from harness.api import HarnessError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from engines.rdma.providers.sim.packets import Reply

    class Port(Protocol):
        """What hangs on the fabric."""

        name: str

        def describe(self) -> str:
            """What it still waits for, in words; empty if for nothing."""

        def replied(self, reply: Reply) -> None:
            """Take an acknowledgement."""


class Deadlock(HarnessError):
    """Everybody waits and nothing is under way: virtual time has nowhere to go."""


@dataclass(frozen=True)
class Wire:
    """From one port to another, each way."""

    propagation: float = 1e-6
    """Seconds from port to port, the switch included."""
    loss: float = 0.0
    """Probability that one packet is lost, acknowledgements too."""
    reorder: float = 0.0
    """Probability that one packet takes a longer way (adaptive routing)."""
    detour: float = 10e-6
    """Most seconds that a longer way adds; how many is drawn for each packet."""

    def __post_init__(self) -> None:
        for name in ("loss", "reorder"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is a probability below 1, got {getattr(self, name)}")

    @property
    def is_plain(self) -> bool:
        """Whether packets arrive all, and in order."""
        return not self.loss and not self.reorder


Grain = Literal["auto", "packet", "burst"]


class Fabric:
    """Virtual time, a wire, and whoever hangs on it.

    Args:
        wire: what joins every two adapters.
        seed: of all chance.
        grain: `packet`: every packet is an event of its own. `burst`: up to `Adapter.quantum` bytes of one message are,
            in closed form. `auto`: bursts wherever that cannot change a time: nothing is lost or overtaken, and no
            other adapter sends to the same port. Under contention `burst` shares a port in turns of bursts instead of
            packets, which is faster and wrong by at most a burst per message.
        timeline: keep slices of what happens for a trace.
    """

    def __init__(
        self, wire: Wire | None = None, *, seed: int = 0, grain: Grain = "auto", timeline: bool = False
    ) -> None:
        self.wire = wire or Wire()
        self.seed = seed
        self.grain = grain
        self.random = random.Random(seed)
        self.env = simpy.Environment(initial_time=0)
        self.timeline: list[Slice] = []
        self._keeps_timeline = timeline
        self._ports: dict[str, Any] = {}
        self._joined: dict[str, set[str]] = {}
        self._everywhere = picoseconds(self.wire.propagation)
        self._apart: dict[tuple[str, str], int] = {}
        self._trace = hashlib.blake2b(digest_size=32)
        self._names = 0
        self._stirred = False
        self.instants = 0
        """How often time was advanced."""
        self.acts = 0
        """How often software posted something, or found something."""

    @property
    def now(self) -> int:
        """Picoseconds."""
        return int(self.env.now)

    @property
    def digest(self) -> str:
        """Of everything that was noted so far."""
        return self._trace.hexdigest()

    def name(self) -> str:
        """A name for one more adapter."""
        self._names += 1
        return f"sim{self._names - 1}"

    def attach(self, port: Port) -> None:
        """Plug a port in.

        Raises:
            ValueError: its name is taken.
        """
        if port.name in self._ports:
            raise ValueError(f"the fabric already has an adapter {port.name!r}")
        self._ports[port.name] = port

    def detach(self, port: Port) -> None:
        """Pull a port out; what is under way to it is lost."""
        self._ports.pop(port.name, None)

    def port(self, name: str) -> Any:
        """Who hangs there; None for nobody."""
        return self._ports.get(name)

    def reach(self, name: str) -> Any:
        """Who hangs there.

        Raises:
            ProviderUnavailable: nobody does.
        """
        port = self._ports.get(name)
        if port is None:
            raise ProviderUnavailable(Unavailable.PEER, f"no adapter {name!r} hangs on this fabric")
        return port

    def join(self, left: str, right: str) -> None:
        """Note that two adapters have a connection."""
        self._joined.setdefault(left, set()).add(right)
        self._joined.setdefault(right, set()).add(left)

    def takes_bursts(self, target: str) -> bool:
        """Whether a burst to this adapter may be one event."""
        if not self.wire.is_plain or self.grain == "packet":
            return False
        return self.grain == "burst" or len(self._joined.get(target, ())) < 2

    def at(self, when: int, action: Callable[..., None], *args: Any) -> None:
        """Call `action` at a time, or now if that has passed."""
        event = self.env.timeout(max(0, when - self.now))
        event.callbacks.append(lambda _: action(*args))

    def acted(self) -> None:
        """Software posted something, or found something."""
        self.acts += 1

    def stir(self) -> None:
        """Something changed that software can see: memory, a completion, or that time passes in vain."""
        self._stirred = True

    def advance(self) -> bool:
        """Go on to the next instant at which software can see something new; False if nothing is under way."""
        self._stirred = False
        nothing = float("inf")
        while not self._stirred:
            instant = self.env.peek()
            if instant == nothing:
                return False
            while self.env.peek() == instant:
                self.env.step()
        self.instants += 1
        return True

    def deadlock(self) -> Deadlock:
        """The error for whoever waits although nothing is under way, with what every adapter waits for."""
        waits = [f"{name}: {text}" for name, port in self._ports.items() if (text := port.describe())]
        what = "; ".join(waits) or "no adapter has a request outstanding"
        return Deadlock(f"nothing is under way at {self.now / PICOSECONDS_PER_SECOND:.9f} s; {what}")

    def lost(self) -> bool:
        """Whether the next packet is."""
        return self.wire.loss > 0 and self.random.random() < self.wire.loss

    def space(self, left: str, right: str, propagation: float) -> None:
        """Say how many seconds two adapters are apart, each way, where that is not what the wire says."""
        self._apart[left, right] = self._apart[right, left] = picoseconds(propagation)

    def propagation(self, left: str, right: str) -> int:
        """Picoseconds from one adapter to another."""
        return self._apart.get((left, right), self._everywhere)

    def delay(self, left: str, right: str) -> int:
        """Picoseconds that the next packet from one to the other is under way."""
        wire = self.wire
        base = self.propagation(left, right)
        if wire.reorder and self.random.random() < wire.reorder:
            base += picoseconds(self.random.uniform(0.0, wire.detour))
        return base

    def note(self, what: str, who: str, *numbers: int) -> None:
        """Add to the trace."""
        self._trace.update(f"{self.now} {what} {who} {numbers}\n".encode())

    def draw(self, who: str, thread: str, name: str, start: int, end: int, **args: Any) -> None:
        """Add a slice to the timeline, from `start` to `end` in picoseconds."""
        if self._keeps_timeline:
            scale = PICOSECONDS_PER_SECOND
            self.timeline.append(Slice(who, thread, name, start / scale, (end - start) / scale, args))
