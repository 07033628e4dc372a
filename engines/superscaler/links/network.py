"""Network namespaces, one for each rank, joined by links of limited rate.

Each rank's namespace has one interface, a virtual cable to a bridge in a namespace of its own; a token bucket at both
ends of the cable limits what the rank sends and what it receives. Namespaces have no names: processes hold them, which
the kernel kills when the process that made the network dies, however it dies; the last process takes its namespace,
and a namespace its cables, with it. So nothing is left behind, and the machine's own network is never touched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.api import HarnessError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType
    from typing import Self

TOOLS = ("ip", "tc", "unshare", "nsenter", "setpriv")
INTERFACE = "link0"
"""Of every rank, in its namespace."""
WAIT = 5.0
"""Seconds that a namespace may take to appear."""


@dataclass(frozen=True)
class Shape:
    """What a link lets through, in each direction."""

    rate: int
    """Bits per second on the wire, headers included."""
    burst: int = 16 * 1024
    """Bytes that pass at once after a pause."""
    queue: str = "100ms"
    """How long a packet may wait in the bucket before it is dropped."""


def lacking() -> str:
    """What this machine lacks to make a network; empty if nothing."""
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not installed (iproute2 and util-linux have them)"
    probe = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    return f"no network namespaces here: {probe.stderr.strip()}" if probe.returncode else ""


class Network:
    """`ranks` namespaces joined through a bridge; a context manager."""

    def __init__(self, ranks: int, shape: Shape) -> None:
        if not 2 <= ranks <= 200:
            raise HarnessError(f"a network joins 2 to 200 ranks, not {ranks}")
        self.ranks, self.shape = ranks, shape
        self._holders: list[subprocess.Popen[bytes]] = []
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        lack = lacking()
        if lack:
            raise HarnessError(f"no network of namespaces: {lack}")
        try:
            self._make()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def address(self, rank: int) -> str:
        """IPv4 address of a rank."""
        return f"10.77.0.{rank + 1}"

    def start(self, rank: int, command: Sequence[str], env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a process in a rank's namespace; it is killed when the network is closed."""
        process = subprocess.Popen(
            [*self._inside(self._holders[1 + rank]), "setpriv", "--pdeathsig", "KILL", *command],
            env={**os.environ, **(env or {})},
        )
        self._started.append(process)
        return process

    def close(self) -> None:
        """End every process, and with them the namespaces."""
        for process in [*self._started, *self._holders]:
            process.kill()
        for process in [*self._started, *self._holders]:
            process.wait()
        self._started.clear()
        self._holders.clear()

    def _make(self) -> None:
        self._holders += [self._hold() for _ in range(1 + self.ranks)]
        for holder in self._holders:
            self._wait(holder)
        switch = self._holders[0]
        self._run(switch, "ip", "link", "add", "bridge0", "type", "bridge")
        self._run(switch, "ip", "link", "set", "bridge0", "up")
        for rank, holder in enumerate(self._holders[1:]):
            port = f"port{rank}"
            self._run(switch, "ip", "link", "add", port, "type", "veth", "peer", INTERFACE, "netns", str(holder.pid))
            self._run(switch, "ip", "link", "set", port, "master", "bridge0", "up")
            self._run(holder, "ip", "address", "add", f"{self.address(rank)}/24", "dev", INTERFACE)
            for device in ("lo", INTERFACE):
                self._run(holder, "ip", "link", "set", device, "up")
            self._limit(switch, port)
            self._limit(holder, INTERFACE)

    def _limit(self, holder: subprocess.Popen[bytes], device: str) -> None:
        rate, burst = f"{self.shape.rate}bit", str(self.shape.burst)
        bucket = ("tbf", "rate", rate, "burst", burst, "latency", self.shape.queue)
        self._run(holder, "tc", "qdisc", "add", "dev", device, "root", *bucket)

    @staticmethod
    def _hold() -> subprocess.Popen[bytes]:
        return subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"])

    @staticmethod
    def _wait(holder: subprocess.Popen[bytes]) -> None:
        own = Path("/proc/self/ns/net").readlink()
        limit = time.monotonic() + WAIT
        while time.monotonic() < limit and holder.poll() is None:
            if Path(f"/proc/{holder.pid}/ns/net").readlink() != own:
                return
            time.sleep(0.005)
        raise HarnessError("a network namespace did not come up")

    @staticmethod
    def _inside(holder: subprocess.Popen[bytes]) -> list[str]:
        return ["nsenter", f"--net=/proc/{holder.pid}/ns/net"]

    def _run(self, holder: subprocess.Popen[bytes], *command: str) -> None:
        done = subprocess.run([*self._inside(holder), *command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise HarnessError(f"`{' '.join(command)}` failed: {done.stderr.strip() or done.stdout.strip()}")
