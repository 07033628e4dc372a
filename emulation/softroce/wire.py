"""What the wire between guests does to packets: loss, delay and rate, carried out by the kernel's netem."""

from __future__ import annotations

from dataclasses import dataclass

from emulation.softroce.failure import Refused

QUEUE = 20_000
"""Packets netem may hold; its default of 1000 would drop a delayed burst and so add a loss nobody asked for."""


@dataclass(frozen=True)
class Wire:
    """Applied to every packet that leaves a guest.

    Raises:
        Refused: a figure is out of range.
    """

    loss: float = 0.0
    """Fraction of the packets that get lost, 0 to 1."""
    delay: float = 0.0
    """Seconds a packet takes longer."""
    rate: float = 0.0
    """Bits per second; 0 for as fast as the emulation goes."""

    def __post_init__(self) -> None:
        if not 0 <= self.loss <= 1:
            raise Refused(f"loss is a fraction of the packets, 0 to 1; got {self.loss:g}")
        if not 0 <= self.delay <= 10:
            raise Refused(f"delay is 0 to 10 seconds; got {self.delay:g} s")
        if not 0 <= self.rate <= 1e12:
            raise Refused(f"rate is 0 to 1e12 bit/s; got {self.rate:g} bit/s")

    @property
    def plain(self) -> bool:
        """Whether it does nothing."""
        return self == Wire()

    def commands(self, interface: str) -> tuple[tuple[str, ...], ...]:
        """The `tc` commands that set a guest's interface to this wire."""
        if self.plain:
            # Deleting what is not there is an error; replacing it by the plain queue is none.
            return (("tc", "qdisc", "replace", "dev", interface, "root", "pfifo", "limit", "1000"),)
        options = ["limit", str(QUEUE)]
        if self.delay:
            options += ["delay", f"{self.delay * 1e6:.0f}us"]
        if self.loss:
            options += ["loss", f"{self.loss * 100:.6f}%"]
        if self.rate:
            options += ["rate", f"{self.rate:.0f}bit"]
        return (("tc", "qdisc", "replace", "dev", interface, "root", "netem", *options),)
