"""Ranks of guests, forked from a process that has imported what every rank needs.

In a guest emulated in software those imports cost a rank some seconds each time. So each guest keeps one process that
has done them (`python -m harness.execution.warm serve SOCKET`). A rank's own process is a small stand-in (`... run
SOCKET DIRECTORY`): it hands its group and its streams to the fork that carries out the assignment, and ends as that
ends. Without the server a rank starts on its own.

This is not the zygote, whose forks belong to the runner that asked: here whoever watches the stand-in's control group
must find the rank in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selectors import BaseSelector, SelectorKey
    from typing import NoReturn

GROUPS = Path("/sys/fs/cgroup")
LONGEST = 1 << 16


def run(place: str, directory: str, *, groups: Path = GROUPS) -> NoReturn:
    """Have the assignment in a directory carried out by a fork of the server; end as it ends.

    Args:
        place: the server's socket.
        directory: of the rank.
        groups: where control groups are.
    """
    line = socket.socket(socket.AF_UNIX)
    try:
        line.connect(place)
    except OSError:
        os.execv(sys.executable, [sys.executable, "-m", "harness.execution.alone", directory])
    # The fork gets the same signal, and how it takes that is the rank's end.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    group = Path("/proc/self/cgroup").read_text("utf-8").partition("::")[2].strip()
    request = {"directory": directory, "group": str(groups / group.lstrip("/")), "folder": str(Path.cwd())}
    socket.send_fds(line, [json.dumps(request).encode()], [1, 2])
    answer = line.recv(64)
    if not answer:
        sys.exit("the process that ranks are forked from died")
    code = int(answer)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def serve(place: str) -> None:
    """Fork ranks until killed.

    Args:
        place: the socket to listen at; whoever connects while the imports go on is served after them.
    """
    import gc
    import importlib

    with socket.socket(socket.AF_UNIX) as door:
        door.bind(place)
        door.listen(64)
        from harness.backends.process import PRELOAD

        for name in (*PRELOAD, "harness.execution.alone"):
            importlib.import_module(name)
        gc.freeze()
        with DefaultSelector() as selector:
            selector.register(door, EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is door:
                        _fork(door, selector)
                    else:
                        _tell_end(selector, key)


def _fork(door: socket.socket, selector: BaseSelector) -> None:
    line, _ = door.accept()
    told, streams, _, _ = socket.recv_fds(line, LONGEST, 2)
    if len(streams) == 2:
        pid = os.fork()
        if pid == 0:
            _become_rank(json.loads(told), streams)
        selector.register(os.pidfd_open(pid), EVENT_READ, data=(pid, line))
    for stream in streams:
        os.close(stream)


def _tell_end(selector: BaseSelector, key: SelectorKey) -> None:
    pid, line = key.data
    _, status = os.waitpid(pid, 0)
    selector.unregister(key.fileobj)
    os.close(key.fd)
    # Whoever waited may have been killed meanwhile.
    with line, contextlib.suppress(OSError):
        line.sendall(str(os.waitstatus_to_exitcode(status)).encode())


def _become_rank(request: dict[str, str], streams: list[int]) -> NoReturn:
    from harness.execution import alone

    try:
        (Path(request["group"]) / "cgroup.procs").write_text(str(os.getpid()))
        os.setsid()
        for number, stream in enumerate(streams, start=1):
            os.dup2(stream, number)
        os.closerange(3, max(int(p.name) for p in Path("/proc/self/fd").iterdir()) + 1)
        os.chdir(request["folder"])
    except BaseException:
        os._exit(1)
    alone.carry_out(Path(request["directory"]))


def main() -> None:
    """`serve SOCKET` or `run SOCKET DIRECTORY`."""
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        run(sys.argv[2], sys.argv[3])


if __name__ == "__main__":
    main()
