"""How the two ranks of a trial find each other and keep in step.

Addresses go over the harness's rendezvous; after that one *control connection* (a socket) carries short JSON notes
outside every timed stretch: who is ready, what was found wrong. It is also how a rank learns that the other ended.
"""

from __future__ import annotations

import json
import secrets
import select
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.rdma.device import ProviderUnavailable
from engines.rdma.placement import PeerLost, ProtocolError
from harness.api import BackendError, EnvironmentLacks

if TYPE_CHECKING:
    from types import TracebackType

    from engines.rdma.device import Device
    from harness.api import RunContext

LENGTH = struct.Struct("<I")
LONGEST_NOTE = 1 << 20
LOOPBACK = "127.0.0.1"
TOKEN = 32
"""Characters that a dialling rank must present; any local process could connect to the port."""


class Session:
    """One rank's end of the control connection, and a way to open further ones."""

    def __init__(self, context: RunContext, timeout: float) -> None:
        self.rank = context.rank
        self.timeout = timeout
        self._rendezvous = context.rendezvous
        self._device: Device | None = None
        self._exchange_hosts(context.address)
        self.control = self.join("control")

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._device is not None:
            self._device.close()
        self.control.close()

    def _exchange_hosts(self, address: str) -> None:
        # Not by name: guests and containers have addresses long before anything resolves their names.
        self.publish(f"host{self.rank}", boot_id())
        self.same_host = self.lookup(f"host{1 - self.rank}") == boot_id()
        self.bind_address: str = LOOPBACK if self.same_host else address

    def open_device(self, wanted: str, capacity: int) -> Device:
        """This rank's device; both ranks call it at the same point, and both learn if either cannot.

        Args:
            wanted: `auto`, `shm`, `verbs` or `sim`.
            capacity: bytes of arena.

        Raises:
            EnvironmentLacks: one of the ranks has no such device; the message says what is missing where.
        """
        provider = self._choose(wanted)
        problem = ""
        try:
            from engines.rdma.providers import open_device

            self._device = open_device(provider, capacity)
        except ProviderUnavailable as error:
            problem = str(error)
        others = self.swap(problem, f"whether it has a device of provider {provider!r}")
        if not isinstance(others, str):
            raise ProtocolError(f"rank {1 - self.rank} does not say whether it has a device")
        problems = {self.rank: problem, 1 - self.rank: others}
        lacking = [f"rank {rank}: {problems[rank]}" for rank in sorted(problems) if problems[rank]]
        if lacking:
            raise EnvironmentLacks(f"provider {provider!r} cannot be used: {'; '.join(lacking)}")
        assert self._device is not None
        return self._device

    def _choose(self, wanted: str) -> str:
        """`auto` made definite: memory is shared where it can be, and crosses between hosts by RDMA only.

        Raises:
            EnvironmentLacks: `shm` between two hosts, or `sim`, which has its own driver.
        """
        if wanted == "auto":
            return "shm" if self.same_host else "verbs"
        if wanted == "shm" and not self.same_host:
            raise EnvironmentLacks("provider 'shm' needs both ranks on one host; leave `provider` at 'auto'")
        if wanted == "sim":
            raise EnvironmentLacks("provider 'sim' moves bytes in virtual time, which is a prediction: --on emulated")
        return wanted

    def publish(self, key: str, value: str) -> None:
        """Put something on the rendezvous, once."""
        self._rendezvous.set(f"rdma/{key}", value)

    def lookup(self, key: str) -> str:
        """Wait for what the other rank publishes.

        Raises:
            PeerLost: it did not come in time.
        """
        try:
            return self._rendezvous.get(f"rdma/{key}", timeout=self.timeout)
        except TimeoutError:
            raise PeerLost(f"rank {1 - self.rank} did not publish {key!r} within {self.timeout:g} s") from None

    def join(self, name: str) -> socket.socket:
        """A TCP connection between the ranks: rank 1 listens, rank 0 dials.

        Raises:
            PeerLost: the other rank did not come in time.
        """
        connection = self._listen(name) if self.rank == 1 else self._dial(name)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(self.timeout)
        return connection

    def _listen(self, name: str) -> socket.socket:
        token = secrets.token_hex(TOKEN // 2)
        with socket.create_server((self.bind_address, 0)) as server:
            server.settimeout(self.timeout)
            host, port = server.getsockname()
            self.publish(name, json.dumps({"host": host, "port": port, "token": token}))
            while True:
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    raise PeerLost(f"rank 0 did not connect ({name}) within {self.timeout:g} s") from None
                connection.settimeout(self.timeout)
                if secrets.compare_digest(_read(connection, TOKEN), token.encode()):
                    return connection
                connection.close()

    def _dial(self, name: str) -> socket.socket:
        place = json.loads(self.lookup(name))
        try:
            connection = socket.create_connection((place["host"], place["port"]), timeout=self.timeout)
        except OSError as error:
            raise PeerLost(f"rank 1 cannot be reached for {name!r}: {error}") from error
        connection.sendall(place["token"].encode())
        return connection

    def tell(self, note: Any) -> None:
        """Send a note.

        Raises:
            PeerLost: the other rank is gone.
        """
        text = json.dumps(note).encode()
        try:
            self.control.sendall(LENGTH.pack(len(text)) + text)
        except OSError as error:
            raise PeerLost(f"rank {1 - self.rank} ended: {error}") from error

    def hear(self, what: str) -> Any:
        """Wait for a note; `what` is what is waited for.

        Raises:
            PeerLost: the other rank ended or was silent for too long.
            BackendError: a note longer than any this engine sends.
        """
        try:
            (length,) = LENGTH.unpack(_read(self.control, LENGTH.size))
            if length > LONGEST_NOTE:
                raise BackendError(f"a control note of {length} bytes is not one of ours")
            text = _read(self.control, length)
        except TimeoutError:
            raise PeerLost(f"rank {1 - self.rank} was silent for {self.timeout:g} s ({what})") from None
        except OSError as error:
            raise PeerLost(f"rank {1 - self.rank} ended ({what})") from error
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise BackendError(f"a control note that is not JSON ({what})") from None

    def swap(self, note: Any, what: str) -> Any:
        """Send a note and wait for the other rank's; `what` is what is waited for."""
        self.tell(note)
        return self.hear(what)

    def peer_alive(self) -> bool:
        """Whether the other rank still holds its end of the control connection."""
        readable, _, _ = select.select([self.control], [], [], 0)
        try:
            return not readable or bool(self.control.recv(1, socket.MSG_PEEK))
        except OSError:
            return False


def _read(connection: socket.socket, nbytes: int) -> bytes:
    data = bytearray()
    while len(data) < nbytes:
        piece = connection.recv(nbytes - len(data))
        if not piece:
            raise ConnectionResetError("connection closed")
        data += piece
    return bytes(data)


def boot_id() -> str:
    """What processes under one kernel have in common."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text(encoding="ascii").strip() if path.exists() else socket.gethostname()
