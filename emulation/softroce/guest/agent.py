"""The guest's side of the control channel: JSON lines on a virtio-serial port. Standard library only.

Requests carry an `id` and a `do`; every answer repeats the id. A command runs in a control group of its own, so that
ending it ends everything it started, and so that running out of its memory ends nothing else. Its end is reported
by a later answer with the same id. Counters of the RDMA devices and the kernel's log are written to the control
folder all the time, because a guest that hangs cannot be asked for them any more.
"""

from __future__ import annotations

import base64
import contextlib
import glob
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

CONTROL = Path("/control")
GROUPS = Path("/sys/fs/cgroup")
SCRATCH = Path("/run")
KEPT = 1 << 20
"""Bytes kept of what a command prints where it prints into no file of the caller's."""
EVERY = 2.0
"""Seconds between two looks at the counters."""
HELD = 'read -r go && exec "$@" < /dev/null'
"""Run by a shell that becomes the command once it is told to: by then it is in its group, where signals find it."""


class Group:
    """A control group: every process that a command starts, whatever it does to leave."""

    def __init__(self, name: str, memory: int) -> None:
        self.folder = GROUPS / name
        self.folder.mkdir()
        if memory:
            (self.folder / "memory.max").write_text(str(memory))

    def take_in(self, pid: int) -> None:
        """Let a process and all it will start belong to the group."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    def signal(self, number: int) -> None:
        """Send a signal to every process; KILL cannot be escaped by forking meanwhile."""
        if number == signal.SIGKILL:
            with contextlib.suppress(OSError):
                (self.folder / "cgroup.kill").write_text("1")
            return
        with contextlib.suppress(OSError):
            for pid in (self.folder / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), number)

    def ran_out(self) -> bool:
        """Whether the kernel killed a process for want of memory."""
        with contextlib.suppress(OSError):
            events = (self.folder / "memory.events").read_text().splitlines()
            return any(line.startswith("oom_kill ") and line.split()[1] != "0" for line in events)
        return False

    def end(self) -> None:
        """End what is left running, and remove the group once it is empty."""
        for _ in range(100):
            self.signal(signal.SIGKILL)
            try:
                self.folder.rmdir()
            except OSError:
                time.sleep(0.02)
            else:
                return


def counters(root: Path = Path("/sys/class/infiniband")) -> dict[str, dict[str, int]]:
    """Hardware counters of each RDMA device, as `rdma statistic` shows them, read without starting a program."""
    found: dict[str, dict[str, int]] = {}
    for folder in sorted(root.glob("*/ports/1/hw_counters")):
        values = {p.name: int(p.read_text()) for p in folder.iterdir() if p.name != "lifespan"}
        found[folder.parents[2].name] = values
    return found


class Task:
    """A command in its group."""

    def __init__(self, agent: Agent, request: dict[str, Any]) -> None:
        self.agent = agent
        self.id = request["id"]
        self.timeout = request.get("timeout")
        self.paths = {name: request.get(name) for name in ("output", "errors")}
        self.began = time.monotonic()
        self.group = agent.group(f"task{self.id}", request.get("memory") or 0)
        try:
            self.process = self._start(request)
        except BaseException:
            self.group.end()
            raise
        threading.Thread(target=self._wait, daemon=True).start()

    def signal(self, number: int) -> None:
        """Send a signal to the command and everything it started."""
        self.group.signal(number)

    def _start(self, request: dict[str, Any]) -> subprocess.Popen[bytes]:
        files: list[int] = []
        try:
            for name in ("output", "errors"):
                place = self.paths[name] or self._own_file(name)
                files.append(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644))
            process = subprocess.Popen(
                ["/bin/sh", "-c", HELD, "sh", *request["command"]],
                cwd=request.get("folder") or "/",
                env={**os.environ, **(request.get("environment") or {})},
                stdin=subprocess.PIPE,
                stdout=files[0],
                stderr=files[1],
                start_new_session=True,
            )
        finally:
            for file in files:
                os.close(file)
        assert process.stdin is not None
        with process.stdin:
            self.group.take_in(process.pid)
            process.stdin.write(b"go\n")
        return process

    def _wait(self) -> None:
        timed_out = False
        try:
            code = self.process.wait(self.timeout)
        except subprocess.TimeoutExpired:
            timed_out = True
            self.signal(signal.SIGKILL)
            code = self.process.wait()
        seconds = time.monotonic() - self.began
        out_of_memory = self.group.ran_out()
        self.group.end()
        told = {name: "" if path else _take(self._own_file(name)) for name, path in self.paths.items()}
        self.agent.note_counters()
        self.agent.forget(self.id)
        self.agent.answer(
            {
                "id": self.id,
                "code": code,
                "timed_out": timed_out,
                "out_of_memory": out_of_memory,
                "seconds": seconds,
                **told,
            }
        )

    def _own_file(self, name: str) -> Path:
        return self.agent.scratch / f"task{self.id}.{name}"


class Agent:
    """Carries out requests until the other end tells it to stop."""

    def __init__(
        self, port: int, *, control: Path = CONTROL, scratch: Path = SCRATCH, group: Callable[[str, int], Any] = Group
    ) -> None:
        self.port = port
        self.control = control
        self.scratch = scratch
        self.group = group
        self.tasks: dict[int, Task] = {}
        self._writing = threading.Lock()
        self._noting = threading.Lock()

    def serve(self) -> None:
        """Read requests, one a line, until one says stop."""
        pending = b""
        while True:
            received = os.read(self.port, 65536)
            if not received:
                # Nobody has the other end open (yet): a port says so by an end of file, again and again.
                time.sleep(0.05)
                continue
            *lines, pending = (pending + received).split(b"\n")
            for line in lines:
                request = json.loads(line)
                if request["do"] == "stop":
                    self.stop()
                    self.answer({"id": request["id"]})
                    return
                self.take(request)

    def take(self, request: dict[str, Any]) -> None:
        """Carry out one request; an error of it is its answer."""
        try:
            reply = getattr(self, f"do_{request['do']}")(request)
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        if reply is not None:
            self.answer({"id": request["id"], **reply})

    def answer(self, content: dict[str, Any]) -> None:
        """Write one line whole, whichever thread asks."""
        line = json.dumps(content).encode() + b"\n"
        with self._writing:
            while line:
                line = line[os.write(self.port, line) :]

    def forget(self, number: int) -> None:
        """Drop a task that has ended."""
        self.tasks.pop(number, None)

    def stop(self) -> None:
        """End every task."""
        for task in list(self.tasks.values()):
            task.signal(signal.SIGKILL)

    def note_counters(self) -> None:
        """Keep the devices' counters where the host can read them."""
        with self._noting, contextlib.suppress(OSError):
            aside = self.control / "counters.json.new"
            aside.write_text(json.dumps(counters(), indent=1))
            aside.replace(self.control / "counters.json")

    def watch(self) -> None:
        """Keep the counters up to date for good."""
        last: dict[str, dict[str, int]] = {}
        while True:
            time.sleep(EVERY)
            with contextlib.suppress(OSError):
                if (now := counters()) != last:
                    last = now
                    self.note_counters()

    def do_ping(self, request: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002  # every request is handed to its method
        """That it lives, and since how many seconds."""
        return {"uptime": float(Path("/proc/uptime").read_text().split()[0]), "kernel": os.uname().release}

    def do_run(self, request: dict[str, Any]) -> None:
        """Start a command; the answer comes when it has ended."""
        self.tasks[request["id"]] = Task(self, request)

    def do_signal(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a signal to a running command and everything it started."""
        task = self.tasks.get(request["task"])
        if task is not None:
            task.signal(request["number"])
        return {"running": task is not None}

    def do_counters(self, request: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """The devices' counters now."""
        return {"counters": counters()}

    def do_put(self, request: dict[str, Any]) -> dict[str, Any]:
        """Write a piece of a file."""
        path = Path(request["path"])
        if request["first"]:
            path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb" if request["first"] else "ab") as file:
            file.write(base64.b64decode(request["data"]))
        if (mode := request.get("mode")) is not None:
            path.chmod(mode)
        return {}

    def do_get(self, request: dict[str, Any]) -> dict[str, Any]:
        """Read a piece of a file; an empty piece is its end."""
        with Path(request["path"]).open("rb") as file:
            file.seek(request["offset"])
            return {"data": base64.b64encode(file.read(request["size"])).decode()}


def _take(path: Path) -> str:
    """The end of what a command printed; the file is deleted."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - KEPT))
            text = file.read().decode("utf-8", "replace")
        path.unlink()
    except OSError:
        return ""
    return text


def _copy_kernel_log(to: Path) -> None:
    """Copy the kernel's log as it grows."""
    with open("/dev/kmsg", "rb", buffering=0) as log, to.open("wb", buffering=0) as file:  # noqa: PTH123
        while True:
            with contextlib.suppress(BrokenPipeError):  # it outran us: the next read goes on with the oldest kept
                file.write(log.read(8192).partition(b";")[2])


def main() -> None:
    """Serve the virtio-serial port; its number varies, and without udev it has no name."""
    Path("/proc/self/oom_score_adj").write_text("0")
    deadline = time.monotonic() + 10
    while not (ports := glob.glob("/dev/vport*p1")):  # noqa: PTH207
        if time.monotonic() > deadline:
            sys.exit("no virtio-serial port")
        time.sleep(0.02)
    agent = Agent(os.open(ports[0], os.O_RDWR))
    threading.Thread(target=agent.watch, daemon=True).start()
    threading.Thread(target=_copy_kernel_log, args=[CONTROL / "dmesg.log"], daemon=True).start()
    agent.note_counters()
    agent.serve()


if __name__ == "__main__":
    main()
