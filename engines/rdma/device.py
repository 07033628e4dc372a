"""The interface of a memory-transfer device: memory first, messages second.

The paper's abstraction (arXiv 1805.08430, section 3): a remote machine is a *device* whose memory one allocates, reads
and writes. Names follow verbs, so that a provider over an RDMA adapter has the same shape as the shared-memory one:

============  =========================================  ======================================
here          verbs                                      shared memory
============  =========================================  ======================================
`Region`      memory region (address, lkey, rkey)        a stretch of a shared segment
`Descriptor`  address + rkey, sent out of band           the same, plus where the segment is
`Channel`     reliable-connected queue pair              a mapping of the peer's segment
`Ticket`      work request id                            the same
`Completion`  completion-queue entry                     the same, with the same status words
============  =========================================  ======================================

A descriptor comes from another process, so it is checked like any input: types, signs, and who made it. Whether an
access is *allowed* is the target's word, never the descriptor's: an RDMA adapter looks the rkey up in the target's
table, and so does the shared-memory provider.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from enum import IntFlag, StrEnum
from typing import TYPE_CHECKING, Protocol

from harness.api import HarnessError

if TYPE_CHECKING:
    from collections.abc import Sequence

WORD = 8
"""Bytes of a sequence word."""


class Access(IntFlag):
    """What may be done to a region; its owner may always read it."""

    LOCAL_WRITE = 1
    REMOTE_READ = 2
    REMOTE_WRITE = 4


class Status(StrEnum):
    """How a work request ended; the names of verbs, in words."""

    SUCCESS = "success"
    LOCAL_PROTECTION = "local protection error"
    """The local side of the request lies outside its region, or lacks the access."""
    REMOTE_ACCESS = "remote access error"
    """Wrong key, outside the remote region, or not allowed there."""
    STALE_REGION = "stale region"
    """The descriptor is from before the peer's last reset."""
    RETRY_EXCEEDED = "retry exceeded"
    """The peer is gone."""
    FLUSHED = "flushed"
    """Posted to a channel that had already failed."""


class Operation(StrEnum):
    """What was asked."""

    WRITE = "write"
    READ = "read"
    SEND = "send"


Ticket = int
"""Names one posted request; tickets of a channel rise."""


@dataclass(frozen=True)
class Completion:
    """The end of a request."""

    ticket: Ticket
    operation: Operation
    status: Status
    nbytes: int


@dataclass(frozen=True)
class Descriptor:
    """What a peer must know to reach a region; JSON-safe."""

    device: str
    region: int
    epoch: int
    address: int
    nbytes: int
    rkey: int
    access: int

    def to_json(self) -> str:
        """As published on the rendezvous."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Descriptor:
        """Read a descriptor that another process published.

        Raises:
            InvalidDescriptor: not JSON, not exactly the fields, a wrong type, or a negative number.
        """
        try:
            value = json.loads(text)
        except ValueError as error:
            raise InvalidDescriptor(f"a descriptor must be JSON: {error}") from None
        names = [field.name for field in fields(cls)]
        if not isinstance(value, dict) or set(value) != set(names):
            raise InvalidDescriptor(f"a descriptor must have exactly the fields {', '.join(names)}")
        for name in names:
            _check_field(name, value[name])
        return cls(**value)


def _check_field(name: str, value: object) -> None:
    wanted = str if name == "device" else int
    if not isinstance(value, wanted) or isinstance(value, bool):
        raise InvalidDescriptor(f"{name!r} must be {wanted.__name__}, got {type(value).__name__}")
    if isinstance(value, int) and not 0 <= value < 2**64:
        raise InvalidDescriptor(f"{name!r} must be in [0, 2^64), got {value}")


class ProviderUnavailable(HarnessError):
    """This machine cannot offer the provider; the message says what is missing."""


class InvalidDescriptor(HarnessError):
    """A descriptor that no honest peer would publish."""


class OutOfMemory(HarnessError):
    """The registered arena is too small for what was asked."""


@dataclass(frozen=True)
class Region:
    """Registered memory of this process."""

    number: int
    offset: int
    nbytes: int
    lkey: int
    rkey: int
    access: Access
    epoch: int
    view: memoryview
    """The bytes themselves (format `B`), usable by numpy and torch without a copy."""


class Channel(Protocol):
    """A reliable connection to one peer's memory.

    Posting never blocks and never raises for what the peer did wrong: every signalled request ends in one
    `Completion`, an unsignalled one only if it fails. After the first failure the channel is in error and whatever is
    posted ends `FLUSHED`, until `reset`.
    """

    def write(
        self, source: Region, target: Descriptor, *, offset: int, at: int, nbytes: int, signaled: bool = True
    ) -> Ticket:
        """Copy `nbytes` from `offset` in `source` to `at` in `target`; the last aligned word is placed last."""

    def read(self, target: Region, source: Descriptor, *, offset: int, at: int, nbytes: int) -> Ticket:
        """Copy `nbytes` from `at` in the peer's `source` to `offset` in `target`."""

    def send(self, message: bytes) -> Ticket:
        """Post a small control message into the peer's mailbox."""

    def receive(self) -> bytes | None:
        """The next control message of the peer, or None."""

    def poll(self, most: int = 64) -> Sequence[Completion]:
        """Up to `most` completions, oldest first; an empty sequence if there is none."""

    def alive(self) -> bool:
        """Whether the peer's process and device are still there."""

    def reset(self) -> None:
        """Leave the error state; what was outstanding has been completed."""

    def close(self) -> None:
        """Drop the connection; what the peer allocated stays valid for it."""


class Device(Protocol):
    """One process's memory, open to its peers."""

    uid: str

    def allocate(self, nbytes: int, *, access: Access, align: int = 64) -> Region:
        """A region of the arena, registered.

        Raises:
            OutOfMemory: with how much is short.
        """

    def register(self, buffer: memoryview, *, access: Access) -> Region:
        """Register memory that already exists.

        Raises:
            HarnessError: the provider cannot reach this memory.
        """

    def describe(self, region: Region) -> Descriptor:
        """What a peer must know to reach `region`."""

    def address(self) -> str:
        """What a peer must know to connect (JSON)."""

    def connect(self, address: str) -> Channel:
        """Connect to a peer's device.

        Raises:
            ProviderUnavailable: it cannot be reached from here.
            InvalidDescriptor: `address` is malformed.
        """

    def reset(self) -> None:
        """Free and unregister everything; descriptors given out before are stale from now on."""

    def close(self) -> None:
        """Give the memory back."""
