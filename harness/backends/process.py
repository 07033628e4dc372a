"""Processes of a trial: started from a zygote, watched, and stopped with everything they started.

A trial's process leads a session of its own, so that one signal reaches its whole process group. Descendants that
left the group are known from the watch and are killed one by one.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import psutil

from harness.errors import BackendError
from harness.execution.zygote import STDERR, STDOUT

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

PRELOAD = ("harness.api", "harness.execution.context", "harness.spec", "harness.records", "emulation.profile")
START = "import json, sys; sys.path[:] = json.loads(sys.argv.pop(2)); from harness.execution.zygote import main; main()"
"""The zygote finds its modules where the runner does, and trials where neither changed the environment for it."""
LOG_CAP = 8 * 2**20
"""Bytes kept of each of a process's two logs: the first half and the last."""
ORPHAN_GRACE = 1.0
"""Seconds between TERM and KILL for what a finished process left running."""
LOST = -1000
"""Exit code of a process whose zygote died under it."""


class Zygote:
    """The runner's end of a zygote; started at the first use."""

    def __init__(self, preload: Sequence[str] = ()) -> None:
        self._preload = (*PRELOAD, *preload)
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        self._pending = b""
        self._alive: set[int] = set()
        self._exits: dict[int, int] = {}
        self._forked: int | None = None

    def fork(self, directory: Path, *, data_limit: int) -> int:
        """Start a trial's process on the assignment in `directory`.

        Returns:
            Its process id.

        Raises:
            BackendError: no process could be started.
        """
        line = self._ensure()
        request = {"directory": str(directory), "data_limit": data_limit}
        with contextlib.suppress(BrokenPipeError):
            line.sendall(json.dumps(request).encode() + b"\n")
        self._forked = None
        while self._forked is None:
            if not self._receive():
                raise BackendError("the process that trials are forked from died; its last words are above")
        self._alive.add(self._forked)
        return self._forked

    def fileno(self) -> int:
        """Becomes readable when a process has ended."""
        return self._line.fileno() if self._line else -1

    def exit_code(self, pid: int) -> int | None:
        """The exit code of a process, minus the signal that killed it, or None while it runs."""
        self._drain()
        return self._exits.get(pid)

    def forget(self, pid: int) -> None:
        """Drop what is known of a process that has ended."""
        self._exits.pop(pid, None)

    def close(self) -> None:
        """End the zygote; the kernel kills what it still had running."""
        if self._line is not None:
            self._line.close()
            self._line = None
        if self._process is not None:
            self._process.wait()
            self._process = None

    def _ensure(self) -> socket.socket:
        self._drain()
        if self._line is not None:
            return self._line
        ours, theirs = socket.socketpair()
        with theirs:
            path = json.dumps([os.path.abspath(folder) for folder in sys.path])  # noqa: PTH100  # '' is the working folder
            command = [sys.executable, "-c", START, str(theirs.fileno()), path, *self._preload]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._line = ours
        return ours

    def _drain(self) -> None:
        import select

        while self._line is not None and select.select([self._line], [], [], 0)[0]:
            if not self._receive():
                return

    def _receive(self) -> bool:
        """Take in what the zygote says; False when it is gone."""
        assert self._line is not None
        with contextlib.suppress(ConnectionResetError):
            received = self._line.recv(65536)
            if received:
                *answers, self._pending = (self._pending + received).split(b"\n")
                for answer in answers:
                    self._take(json.loads(answer))
                return True
        self._exits.update(dict.fromkeys(self._alive, LOST))
        self._alive.clear()
        self._pending = b""
        self.close()
        return False

    def _take(self, answer: dict[str, Any]) -> None:
        if "refused" in answer:
            raise BackendError(answer["refused"])
        if "forked" in answer:
            self._forked = int(answer["forked"])
        else:
            self._alive.discard(answer["exit"])
            self._exits[answer["exit"]] = answer["code"]


class TrialProcess:
    """One process of a trial and all that descends from it."""

    def __init__(self, zygote: Zygote, directory: Path, *, data_limit: int) -> None:
        self.directory = directory
        self.began = time.monotonic()
        self.pid = zygote.fork(directory, data_limit=data_limit)
        self.exit_code: int | None = None
        self._zygote = zygote
        self._seen: dict[int, psutil.Process] = {}
        self._orphans_since: float | None = None

    @property
    def gone(self) -> bool:
        """Whether the process and everything it started have ended."""
        return self.exit_code is not None and self._orphans_since is None

    def poll(self) -> None:
        """Notice its end, and stop what it left running: TERM, and KILL after a second."""
        if self.exit_code is None:
            self.exit_code = self._zygote.exit_code(self.pid)
            if self.exit_code is None:
                return
            self._zygote.forget(self.pid)
            self._orphans_since = time.monotonic()
            if self._left_running():
                self.signal(signal.SIGTERM)
        if self._orphans_since is None:
            return
        if not self._left_running():
            self._orphans_since = None
        elif time.monotonic() - self._orphans_since > ORPHAN_GRACE:
            self.signal(signal.SIGKILL)
            self._orphans_since = None

    def watch(self) -> int:
        """Look at its descendants and its logs.

        Returns:
            Resident bytes of the process and its descendants together.
        """
        self.cap_logs()
        processes = self._processes()
        self._seen.update({p.pid: p for p in processes})
        return sum(_resident(p) for p in processes)

    def cap_logs(self) -> None:
        """Keep the logs within their size."""
        for name in (STDOUT, STDERR):
            cap_log(self.directory / name, LOG_CAP)

    def proportional_memory(self) -> int:
        """As `watch`, with pages that processes share counted once: slower, and exact."""
        return sum(_proportional(p) for p in self._processes())

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process group and to the descendants that left it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)
        if self.exit_code is None:
            # Just after the fork it may not lead its group yet.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
        for process in self._seen.values():
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)

    def _processes(self) -> list[psutil.Process]:
        if self.exit_code is not None:
            return []
        with contextlib.suppress(psutil.Error):
            leader = psutil.Process(self.pid)
            return [leader, *leader.children(recursive=True)]
        return []

    def _left_running(self) -> bool:
        return _group_runs(self.pid) or any(_runs(p) for pid, p in self._seen.items() if pid != self.pid)


def _group_runs(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    # A zombie still counts as a member, and where nobody reaps orphans it stays for good.
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group:
                members.append(process)
    return any(_runs(p) for p in members)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _proportional(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.Error, AttributeError):
        return _resident(process)


def total_proportional(processes: Iterable[TrialProcess]) -> int:
    """Bytes that the processes hold together, shared pages counted once."""
    return sum(p.proportional_memory() for p in processes)


def cap_log(path: Path, cap: int) -> None:
    """Cut the middle out of a log that has outgrown `cap` bytes; its writer appends and does not notice."""
    try:
        size = path.stat().st_size
        if size <= cap:
            return
        with path.open("r+b") as log:
            log.seek(size - cap // 4)
            end = log.read()
            log.truncate(cap // 2)
            log.seek(0, os.SEEK_END)
            log.write(b"\n[... %d bytes left out ...]\n" % (size - cap // 2 - len(end)) + end)
    except OSError:
        # A log is worth less than the trial it is about.
        return
