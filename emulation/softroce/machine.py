"""One guest: a QEMU process, its command line, its log folder."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from emulation.softroce.failure import SoftRoceError
from emulation.softroce.tools import QEMU, TO_BOOT, need, path

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from emulation.softroce.image import Image

Accelerator = Literal["tcg", "kvm"]

LIFETIME = 3600.0
"""Seconds after which a guest is killed whatever it does, should everybody have forgotten it."""
KERNEL_LINE = "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on tsc=reliable"
CONTROL_TAG = "control"
"""By which a guest finds its control folder; `guest/first` says it too."""
INTERFACE_MTU = 4300
"""Above 4200, so that RDMA gets its largest path MTU, 4096."""


@dataclass(frozen=True)
class Share:
    """A folder of this machine that a guest sees (virtio-9p)."""

    folder: Path
    """On this machine."""
    place: str
    """Absolute path in the guest."""
    writable: bool = False
    """Writable shares are not cached, so that several guests see one another's files at once; others are."""


@dataclass(frozen=True)
class Machine:
    """What one guest is made of."""

    image: Image
    control: Path
    """Folder on this machine for the guest's programs and logs."""
    memory: int = 1 << 30
    """Bytes."""
    processors: int = 1
    accelerator: Accelerator = "tcg"
    shares: tuple[Share, ...] = ()
    disks: tuple[Path, ...] = ()
    """ext4 files, read-only in the guest: /dev/vdb and on."""
    lifetime: float = LIFETIME
    environment: dict[str, str] = field(default_factory=dict)
    """Of every command in the guest."""

    def command(self, *, agent: int, wire: int | None = None, number: int = 0) -> list[str]:
        """The command that runs the guest.

        Args:
            agent: descriptor of a connected stream that becomes the agent's port.
            wire: descriptor of a connected stream of frames; a guest alone has none.
            number: of the guest, for its hardware address.
        """
        deadly = ["setpriv", "--pdeathsig", "KILL", "--"]
        found = [
            # Both die with their parent: QEMU with `timeout`, which dies with this process.
            *deadly,
            *("timeout", "--signal", "KILL", f"{self.lifetime:.0f}"),
            *deadly,
            *(QEMU, "-M", "q35", "-nodefaults", "-no-reboot", "-display", "none", "-monitor", "none"),
            *("-accel", "tcg,thread=multi" if self.accelerator == "tcg" else self.accelerator),
            *("-cpu", "max" if self.accelerator == "tcg" else "host"),
            *("-smp", str(self.processors), "-m", f"{self.memory >> 20}M"),
            *("-kernel", str(self.image.kernel), "-initrd", str(self.image.initrd), "-append", KERNEL_LINE),
            *("-serial", f"file:{_quoted(self.control / 'serial.log')}"),
            *("-drive", f"file={_quoted(self.image.disk)},if=virtio,format=raw,snapshot=on"),
            *("-device", "virtio-rng-pci"),
            *("-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,fd={agent}"),
            *("-device", "virtserialport,chardev=agent,name=agent"),
        ]
        for disk in self.disks:
            found += ["-drive", f"file={_quoted(disk)},if=virtio,format=raw,readonly=on"]
        found += _shared(CONTROL_TAG, self.control, writable=True)
        for index, share in enumerate(self.shares):
            found += _shared(f"share{index}", share.folder, writable=share.writable)
        if wire is not None:
            found += ["-netdev", f"stream,id=wire,server=off,addr.type=fd,addr.str={wire}"]
            device = f"virtio-net-pci,netdev=wire,mac=52:54:00:00:00:{number + 1:02x},host_mtu={INTERFACE_MTU}"
            found += ["-device", device]
        return found

    def start(self, script: str, *, wire: socket.socket | None = None, number: int = 0) -> Powered:
        """Power the guest on.

        Args:
            script: what bash runs in it before its agent.
            wire: a connected stream that carries its frames; this process's end may be closed afterwards.
            number: of the guest.

        Raises:
            ToolsMissing: QEMU is not installed.
            SoftRoceError: it could not be started.
        """
        need(TO_BOOT)
        for share in self.shares:
            if not share.folder.is_dir():
                raise SoftRoceError(f"cannot share {share.folder} with a guest: it is no folder")
        self._fill_control(script)
        ours, theirs = socket.socketpair()
        descriptors = [theirs.fileno(), *([wire.fileno()] if wire else [])]
        try:
            with theirs, (self.control / "qemu.log").open("wb") as log:
                process = subprocess.Popen(
                    self.command(agent=theirs.fileno(), wire=wire.fileno() if wire else None, number=number),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=descriptors,
                    env={**os.environ, "PATH": path()},
                    # A group of its own: an interrupt typed at the terminal is for whoever owns the guest to handle.
                    start_new_session=True,
                )
        except OSError as error:
            ours.close()
            raise SoftRoceError(f"cannot start {QEMU}: {error}") from error
        return Powered(self, process, ours)

    def _fill_control(self, script: str) -> None:
        from importlib import resources

        self.control.mkdir(parents=True, exist_ok=True)
        guest = resources.files("emulation.softroce").joinpath("guest")
        for name in ("start", "agent.py"):
            (self.control / name).write_text(guest.joinpath(name).read_text("utf-8"), "utf-8")
        (self.control / "boot").write_text(script, "utf-8")


@dataclass(frozen=True)
class Powered:
    """A guest that was powered on."""

    machine: Machine
    process: subprocess.Popen[bytes]
    stream: socket.socket
    """To its agent."""

    @property
    def running(self) -> bool:
        """Whether QEMU still runs."""
        return self.process.poll() is None

    @property
    def last_words(self) -> str:
        """What QEMU and the guest's console said last, for a message."""
        said = []
        for name in ("qemu.log", "serial.log"):
            with contextlib.suppress(OSError):
                text = (self.machine.control / name).read_text("utf-8", "replace").strip()
                said += text.splitlines()[-5:]
        return "; ".join(said) or "it said nothing"

    def kill(self) -> None:
        """End it now: its root disk is an overlay and its shares write through, so nothing is lost by it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def mount_commands(machine: Machine, places: Sequence[str]) -> list[str]:
    """What a guest runs to mount its shares and disks.

    Args:
        machine: the guest.
        places: absolute paths in the guest for `machine.disks`.
    """
    import shlex

    found = []
    for index, share in enumerate(machine.shares):
        options = "trans=virtio,version=9p2000.L,msize=262144"
        options += ",cache=none" if share.writable else ",cache=loose,ro"
        place = shlex.quote(share.place)
        found += [f"mkdir -p {place}", f"mount -t 9p -o {options} share{index} {place}"]
    for index, folder in enumerate(places):
        place = shlex.quote(folder)
        found += [f"mkdir -p {place}", f"mount -t ext4 -o ro,noload /dev/vd{chr(ord('b') + index)} {place}"]
    return found


def _shared(name: str, folder: Path, *, writable: bool) -> list[str]:
    mode = "" if writable else ",readonly=on"
    described = f"local,id={name},path={_quoted(folder.resolve())},security_model=none,multidevs=remap{mode}"
    return ["-fsdev", described, "-device", f"virtio-9p-pci,fsdev={name},mount_tag={name}"]


def _quoted(name: Path) -> str:
    # QEMU splits options at commas; two stand for one.
    return str(name).replace(",", ",,")
