"""The process that trials are forked from.

A fresh interpreter with pydantic costs a trial 150 ms. The zygote pays that once: it imports what every trial needs,
then forks on request, which takes a few milliseconds. It touches no engine, no thread, no CUDA, so what it forks is
as good as new.

The standard library's fork server is not used because a trial forked by it would outlive a runner that is killed
(each child keeps the server's life line open), would share its fork server and its resource tracker with processes
an engine starts (which then escape the trial's process group), and would import the caller's `__main__` again.

Requests and answers are JSON lines on a socket. The end of the socket is the end of the zygote, and the kernel sends
its children SIGKILL when it dies: nothing is left behind whichever process is killed first.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import json
import os
import resource
import selectors
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from harness.execution import child

if TYPE_CHECKING:
    from collections.abc import Callable

PR_SET_PDEATHSIG = 1
STDOUT, STDERR = "stdout.log", "stderr.log"


def serve(line: socket.socket) -> None:
    """Fork on request until the other end of `line` is closed."""
    # What lives now lives for good: the collector of a child need not copy its pages.
    gc.freeze()
    with selectors.DefaultSelector() as selector:
        selector.register(line, selectors.EVENT_READ)
        pending = b""
        while True:
            for key, _ in selector.select():
                if key.fileobj is not line:
                    _report_exit(line, selector, key)
                    continue
                received = line.recv(65536)
                if not received:
                    return
                *requests, pending = (pending + received).split(b"\n")
                for request in requests:
                    _fork(line, selector, json.loads(request))


def _report_exit(line: socket.socket, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    pid = key.data
    _, status = os.waitpid(pid, 0)
    selector.unregister(key.fileobj)
    os.close(key.fd)
    _answer(line, {"exit": pid, "code": os.waitstatus_to_exitcode(status)})


def _fork(line: socket.socket, selector: selectors.BaseSelector, request: dict[str, Any]) -> None:
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        _answer(line, {"refused": f"cannot start a process: {error.strerror}"})
        return
    if pid == 0:
        _become_trial(parent, request)
    _answer(line, {"forked": pid})
    selector.register(os.pidfd_open(pid), selectors.EVENT_READ, data=pid)


def _answer(line: socket.socket, content: dict[str, Any]) -> None:
    line.sendall(json.dumps(content).encode() + b"\n")


def _become_trial(parent: int, request: dict[str, Any]) -> NoReturn:
    """Turn this fork into a trial's process."""

    def act() -> int:
        directory = Path(request["directory"])
        _isolate(parent, directory, int(request["data_limit"]))
        return child.carry_out(directory)

    end_with(act)


def end_with(act: Callable[[], int]) -> NoReturn:
    """Do something as the last thing this process does; it ends with the exit code that comes back."""
    code = child.EXIT_JOURNAL
    try:
        code = act()
    except BaseException:
        traceback.print_exc()
    finally:
        # Not sys.exit: threads and exit handlers an engine left behind could keep a finished trial alive.
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                continue
        os._exit(code)


def _isolate(parent: int, directory: Path, data_limit: int) -> None:
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(child.EXIT_FAILED)
    # stdin is the null device already; the zygote's socket and the exits it watches are none of the trial's business.
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for target, name in ((1, STDOUT), (2, STDERR)):
        log = os.open(directory / name, flags, 0o644)
        os.dup2(log, target)
        os.close(log)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.closerange(3, _highest_descriptor() + 1)
    faulthandler.enable()
    # A trial that is stopped for hanging says where it hung.
    faulthandler.register(signal.SIGTERM, chain=True)
    if data_limit:
        limit_data(data_limit)


def _highest_descriptor() -> int:
    return max(int(p.name) for p in Path("/proc/self/fd").iterdir())


def limit_data(more: int) -> None:
    """Let this process map so many bytes of private writable memory beyond what it has.

    Args:
        more: bytes.
    """
    # RLIMIT_DATA counts private writable memory, which neither a shared segment nor CUDA's reservations are.
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard < 0 else min(limit, hard), hard))


def main() -> None:
    """Serve the socket whose descriptor is the first argument, after importing the modules named after it."""
    import importlib

    for name in sys.argv[2:]:
        try:
            importlib.import_module(name)
        except ImportError:
            # The trial that needs it will say so where it can be recorded.
            continue
    with socket.socket(fileno=int(sys.argv[1])) as line:
        line.set_inheritable(False)
        serve(line)


if __name__ == "__main__":
    main()
