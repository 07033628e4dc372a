"""The other end of a channel: how it is named, and how it is reached."""

from __future__ import annotations

import fcntl
import json
import os
import select
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from engines.rdma.device import InvalidDescriptor, ProviderUnavailable, Unavailable, read_published
from engines.rdma.providers.shm.mailbox import Mailbox
from engines.rdma.providers.shm.segment import Place, Segment
from engines.rdma.providers.shm.table import Table

PROVIDER = "shm"


@dataclass(frozen=True)
class Address:
    """What a channel publishes: its process, the device's memory, its own mailbox."""

    provider: str
    host: str
    """Boot id of the kernel."""
    uid: str
    pid: int
    memory_file: int
    memory_inode: int
    memory_bytes: int
    mailbox_file: int
    mailbox_inode: int
    mailbox_bytes: int

    @classmethod
    def of(cls, uid: str, memory: Place, mailbox: Place) -> Address:
        """The address of a channel of this process."""
        return cls(
            PROVIDER, _host(), uid, memory.pid,
            memory.file, memory.inode, memory.nbytes, mailbox.file, mailbox.inode, mailbox.nbytes,
        )  # fmt: skip

    def to_json(self) -> str:
        """As published on the rendezvous."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Address:
        """Read an address that another process published.

        Raises:
            InvalidDescriptor: not JSON, not exactly the fields, a wrong type, a negative number, another provider.
        """
        kinds = {field.name: str if field.type == "str" else int for field in fields(cls)}
        address = cls(**read_published(text, kinds, "the address of a shared-memory channel"))
        if address.provider != PROVIDER:
            raise InvalidDescriptor(f"a shared-memory channel cannot join one of provider {address.provider!r}")
        return address

    @property
    def memory(self) -> Place:
        """Where the device's segment is."""
        return Place(self.pid, self.memory_file, self.memory_inode, self.memory_bytes)

    @property
    def mailbox(self) -> Place:
        """Where the channel's mailbox is."""
        return Place(self.pid, self.mailbox_file, self.mailbox_inode, self.mailbox_bytes)


class Peer:
    """The peer's memory and mailbox, mapped here, and a handle on its process."""

    def __init__(self, address: Address) -> None:
        """Reach the channel at `address`.

        Raises:
            ProviderUnavailable: another host, a process that is gone or that this one may not look into, or an end
                that another channel has joined already.
            InvalidDescriptor: what lies there is not what was published.
        """
        if address.host != _host():
            raise ProviderUnavailable(Unavailable.HOST, "shared memory joins processes under one kernel only")
        self.uid = address.uid
        try:
            self._process = os.pidfd_open(address.pid)
        except (OSError, OverflowError) as error:
            raise ProviderUnavailable(
                Unavailable.PEER, f"process {address.pid} cannot be reached from here: {error}"
            ) from error
        self._exit = select.poll()
        self._exit.register(self._process, select.POLLIN)
        self._segments: list[Segment] = []
        self._views: list[Table | Mailbox] = []
        try:
            self._attach(address)
        except BaseException:
            self.close()
            raise

    def _attach(self, address: Address) -> None:
        memory = self._segment(address.memory)
        self.bytes, self.words = memory.bytes, memory.words
        self.table = Table(memory.bytes)
        self._views.append(self.table)
        if not self.table.belongs_to(address.uid):
            raise InvalidDescriptor("the file at this address is not the device it claims to be")
        box = self._segment(address.mailbox)
        self.mailbox = Mailbox(box.bytes)
        self._views.append(self.mailbox)
        try:
            # Two writers of one mailbox would overwrite each other; the lock ends with this process.
            fcntl.flock(box.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ProviderUnavailable(Unavailable.PEER, f"another channel has joined this end: {error}") from error

    def _segment(self, place: Place) -> Segment:
        segment = Segment.attach(place)
        self._segments.append(segment)
        return segment

    def runs(self) -> bool:
        """Whether its process has not ended: asks the kernel."""
        return not self._exit.poll(0)

    def close(self) -> None:
        """Unmap the peer's memory."""
        for view in self._views:
            view.close()
        self.bytes = self.words = memoryview(b"")
        for segment in self._segments:
            segment.close()
        os.close(self._process)


def _host() -> str:
    """What processes under one kernel have in common."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
