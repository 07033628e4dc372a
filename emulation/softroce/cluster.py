"""Guests joined by a wire, booted together, each with an agent to run commands by."""

from __future__ import annotations

import base64
import contextlib
import socket
import time
from typing import TYPE_CHECKING

from emulation.softroce import network
from emulation.softroce.accelerator import usable
from emulation.softroce.failure import GuestLost, Refused, SoftRoceError
from emulation.softroce.image import Image
from emulation.softroce.line import Line, Task
from emulation.softroce.machine import Machine, Powered, Share, mount_commands
from emulation.softroce.switch import Switch
from emulation.softroce.wire import Wire

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from emulation.softroce.layer import Layer
    from emulation.softroce.line import Ended
    from emulation.softroce.machine import Accelerator

MOST_HOSTS = 8
"""Each costs the memory and the time of an emulated machine."""
BOOT = 240.0
"""Seconds until a guest must answer; an idle machine needs 8, but emulated ones may share their cores with others."""
MARGIN = 30.0
"""Seconds a caller waits on top of a command's own limit, for the agent to enforce that and answer."""
PIECE = 48 << 10
"""Bytes of a file in one message."""


class Host:
    """A guest that runs."""

    def __init__(self, number: int, hosts: int, powered: Powered) -> None:
        self.number = number
        self.devices = network.devices(number, hosts)
        self.address = self.devices[0].address
        """On the wire."""
        self.folder = powered.machine.control
        """On this machine, with its logs: serial.log, dmesg.log, agent.log, boot.log, qemu.log, counters.json."""
        self._powered = powered
        self._line = Line(powered.stream, f"guest {number}")

    @property
    def lost(self) -> str:
        """Why it is lost; empty while it runs."""
        if self._line.lost:
            return self._line.lost
        return "" if self._powered.running else "its machine ended"

    @property
    def process(self) -> int:
        """The id of its process on this machine."""
        return self._powered.process.pid

    def start(
        self,
        command: Sequence[str],
        *,
        timeout: float | None = None,
        environment: Mapping[str, str] | None = None,
        folder: str = "/",
        output: str = "",
        errors: str = "",
        memory: int = 0,
    ) -> Task:
        """Start a command in it.

        Args:
            command: program and arguments.
            timeout: seconds after which the agent kills it with everything it started.
            environment: set on top of the guest's own.
            folder: absolute path of its working folder.
            output: absolute path of a file its output is appended to; else the end of it comes with its end.
            errors: the same for its errors.
            memory: bytes it may hold with everything it started; 0 is no limit of its own.

        Raises:
            GuestLost: the guest is gone.
        """
        content = {"timeout": timeout, "environment": dict(environment or {}), "folder": folder, "memory": memory}
        return self._line.start(command=list(command), output=output or None, errors=errors or None, **content)

    def run(
        self,
        command: Sequence[str],
        *,
        timeout: float = 60.0,
        environment: Mapping[str, str] | None = None,
        folder: str = "/",
    ) -> Ended:
        """Run a command to its end.

        Args:
            command: program and arguments.
            timeout: seconds it may run.
            environment: set on top of the guest's own.
            folder: absolute path of its working folder.

        Raises:
            GuestLost: the guest is gone, or hangs.
            GuestError: the command could not be started.
        """
        task = self.start(command, timeout=timeout, environment=environment, folder=folder)
        try:
            return task.wait(timeout + MARGIN)
        except TimeoutError:
            raise GuestLost(f"guest {self.number} hangs: it did not end a command it gave {timeout:g} s") from None

    def ping(self, timeout: float = 10.0) -> float:
        """Seconds since its kernel started.

        Raises:
            GuestLost: it does not answer.
        """
        return float(self._line.ask("ping", timeout)["uptime"])

    def counters(self) -> dict[str, dict[str, int]]:
        """Of each RDMA device what `rdma statistic` shows: packets, retransmissions, errors.

        Raises:
            GuestLost: it does not answer.
        """
        found: dict[str, dict[str, int]] = self._line.ask("counters")["counters"]
        return found

    def put(self, source: Path, place: str, *, mode: int | None = None) -> None:
        """Copy a file into it.

        Args:
            source: on this machine.
            place: absolute path in the guest; its folder is made.
            mode: permission bits; this machine's where not given.

        Raises:
            GuestLost: it is gone.
            GuestError: it cannot write there.
        """
        bits = source.stat().st_mode & 0o777 if mode is None else mode
        with source.open("rb") as file:
            first = True
            while (piece := file.read(PIECE)) or first:
                data = base64.b64encode(piece).decode()
                self._line.ask("put", path=place, data=data, first=first, mode=bits)
                first = False

    def get(self, place: str, target: Path) -> None:
        """Copy a file out of it.

        Args:
            place: absolute path in the guest.
            target: on this machine; its folder is made.

        Raises:
            GuestLost: it is gone.
            GuestError: it cannot read that.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            while piece := base64.b64decode(self._line.ask("get", path=place, offset=file.tell(), size=PIECE)["data"]):
                file.write(piece)

    def set_wire(self, wire: Wire) -> None:
        """Let its packets be lost, delayed and throttled from now on.

        Raises:
            SoftRoceError: its kernel refuses.
        """
        for device in self.devices:
            for command in wire.commands(device.interface):
                if (ended := self.run(command)).code != 0:
                    raise SoftRoceError(f"{' '.join(command)}: {(ended.errors or ended.output).strip()}")

    def kill(self) -> None:
        """Pull its plug."""
        self._powered.kill()

    def wait_until_up(self, deadline: float) -> None:
        """Wait until its agent answers and has an RDMA device.

        Raises:
            GuestLost: it did not by then; the message holds its last words.
        """
        try:
            self._line.ask("ping", max(1.0, deadline - time.monotonic()))
        except GuestLost as error:
            raise GuestLost(f"{error} while booting: {self._powered.last_words}") from None
        there = set(self.counters())
        wanted = {device.name for device in self.devices}
        if not wanted <= there:
            log = self.folder / "boot.log"
            said = log.read_text("utf-8", "replace").strip() if log.exists() else ""
            raise SoftRoceError(f"guest {self.number} has no RDMA device {', '.join(wanted - there)}: {said[-1500:]}")

    def close(self) -> None:
        """Power it off."""
        self._powered.kill()
        self._line.close()


class Cluster:
    """Guests on one wire; a context manager, or `boot` and `close`.

    Args:
        hosts: how many, 1 to 8; one alone gets two RDMA devices on a pair of joined interfaces.
        folder: on this machine, for the guests' logs: guest0, guest1, ...
        image: what they boot; built where it is not yet.
        wire: what it does to packets.
        memory: bytes of each guest.
        processors: of each guest; by default two for one alone, else one.
        shares: folders of this machine that every guest sees.
        layers: disks of Python packages, all on the guests' PYTHONPATH.
        python_path: more folders in the guests for PYTHONPATH, behind the layers.
        accelerator: tcg or kvm; found out where not given.
        lifetime: seconds after which the guests are killed whatever happens.

    Raises:
        Refused: the numbers make no cluster.
    """

    def __init__(
        self,
        hosts: int,
        folder: Path,
        *,
        image: Image | None = None,
        wire: Wire | None = None,
        memory: int = 1 << 30,
        processors: int = 0,
        shares: Sequence[Share] = (),
        layers: Sequence[Layer] = (),
        python_path: Sequence[str] = (),
        accelerator: Accelerator | None = None,
        lifetime: float = 3600.0,
    ) -> None:
        if not 1 <= hosts <= MOST_HOSTS:
            raise Refused(f"a Soft-RoCE cluster has 1 to {MOST_HOSTS} hosts; got {hosts}")
        if memory < 256 << 20:
            raise Refused(f"a guest needs 256 MiB at least; got {memory >> 20} MiB")
        self.size = hosts
        self.folder = folder.resolve()
        self.image = image or Image.build()
        self.wire = wire or Wire()
        self.memory = memory
        self.processors = processors or (2 if hosts == 1 else 1)
        self.shares = tuple(shares)
        self.layers = tuple(layers)
        self.python_path = tuple(python_path)
        self.accelerator: Accelerator = accelerator or usable(self.image)
        self.lifetime = lifetime
        self.hosts: tuple[Host, ...] = ()
        self.up = False
        """Whether every guest has answered since it was powered on."""
        self._switch: Switch | None = None

    def __enter__(self) -> Cluster:
        self.boot()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getitem__(self, number: int) -> Host:
        return self.hosts[number]

    def __len__(self) -> int:
        return len(self.hosts)

    def boot(self, timeout: float = BOOT) -> None:
        """Power all guests on and wait until every one answers.

        Args:
            timeout: seconds for all of them together.

        Raises:
            ToolsMissing: QEMU is not installed.
            GuestLost: a guest did not come up; the message holds its last words.
        """
        self.power_on()
        try:
            self.await_up(timeout)
        except BaseException:
            self.close()
            raise

    def await_up(self, timeout: float = BOOT) -> None:
        """Wait until every guest answers and has its wire.

        Args:
            timeout: seconds for all of them together.

        Raises:
            GuestLost: a guest did not come up; the message holds its last words.
        """
        deadline = time.monotonic() + timeout
        for host in self.hosts:
            host.wait_until_up(deadline)
        if not self.wire.plain:
            self.set_wire(self.wire)
        self.up = True

    def power_on(self) -> None:
        """Power all guests on; `boot` also waits for them.

        Raises:
            ToolsMissing: QEMU is not installed.
        """
        ends = self._plug()
        started: list[Host] = []
        try:
            for number in range(self.size):
                machine = self._machine(number)
                script = self._script(machine, number)
                powered = machine.start(script, wire=ends[number] if ends else None, number=number)
                started.append(Host(number, self.size, powered))
        finally:
            self.hosts = tuple(started)
            if self._switch is None:
                for end in ends:
                    end.close()
            if len(started) < self.size:
                self.close()

    def set_wire(self, wire: Wire) -> None:
        """Change what the wire does to packets, at every guest."""
        for host in self.hosts:
            host.set_wire(wire)
        self.wire = wire

    def about(self) -> dict[str, object]:
        """What its guests are, for a record."""
        return {
            "hosts": self.size,
            "accelerator": self.accelerator,
            "kernel": self.image.release,
            "image": self.image.folder.name,
            "processors": self.processors,
            "memory": self.memory,
            "rdma": [device.name for device in network.devices(0, self.size)],
        }

    @property
    def lost(self) -> str:
        """Which guest is lost, and why; empty while all run."""
        return next((f"guest {h.number} is gone: {h.lost}" for h in self.hosts if h.lost), "")

    def close(self) -> None:
        """Power everything off. Its logs stay in the folder."""
        self.up = False
        for host in self.hosts:
            with contextlib.suppress(SoftRoceError):
                host.close()
        if self._switch is not None:
            self._switch.close()
            self._switch = None

    def _plug(self) -> tuple[socket.socket, ...]:
        if self.size == 1:
            return ()
        if self.size == 2:
            return socket.socketpair()
        self._switch = Switch(self.size)
        return self._switch.ends

    def _machine(self, number: int) -> Machine:
        return Machine(
            image=self.image,
            control=self.folder / f"guest{number}",
            memory=self.memory,
            processors=self.processors,
            accelerator=self.accelerator,
            shares=self.shares,
            disks=tuple(layer.disk for layer in self.layers),
            lifetime=self.lifetime,
        )

    def _script(self, machine: Machine, number: int) -> str:
        python_path = ":".join([*(layer.place for layer in self.layers), *self.python_path])
        lines = [
            f"hostname guest{number}",
            *mount_commands(machine, [layer.place for layer in self.layers]),
            *network.commands(number, self.size),
            f"export PYTHONPATH='{python_path}'" if python_path else ":",
        ]
        return "\n".join(lines) + "\n"
