"""What a process does without PyTorch: copying memory, multiplying matrices with NumPy, touching new pages, sockets."""

from __future__ import annotations

import mmap
import os
import socket
import time
from typing import TYPE_CHECKING, Any

from emulation.calibrate.sampling import Case, Series, sweep, together

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from emulation.calibrate.pool import Pool, Worker

COPIES = tuple(2**power for power in range(12, 27, 2))
"""4 KiB to 64 MiB."""
QUICK_COPIES = COPIES[::3] + COPIES[-1:]
TRAFFIC = 2**22
"""Bytes one sample copies at least."""
PRODUCTS = ((16, 16, 16), (64, 64, 64), (128, 128, 128), (64, 512, 512), (256, 256, 256), (512, 512, 512))
SOCKET_SIZES = (64, 2**10, 2**14, 2**18, 2**22)
LISTENER = "listener"
TOUCHED = 2**24
"""Bytes of fresh pages that are touched for the cost of a page."""


def copies(pool: Pool, processes: int, *, rounds: int, sizes: Sequence[int] = COPIES) -> list[Series]:
    """Copy between two buffers of each size, on so many processes at once; samples are means over the processes.

    Raises:
        ProbeError: a worker failed or hung.
    """
    return together(pool.run(_copies, processes, processes=processes, sizes=list(sizes), rounds=rounds), processes)


def products(pool: Pool, processes: int, *, rounds: int) -> list[Series]:
    """Matrix products with NumPy, for a machine without PyTorch.

    Raises:
        ProbeError: a worker failed or hung.
    """
    return together(pool.run(_products, processes, processes=processes, rounds=rounds), processes)


def pages(pool: Pool, *, rounds: int) -> list[Series]:
    """The first touch of a page that the kernel has to provide.

    Raises:
        ProbeError: the worker failed or hung.
    """
    found: list[list[Series]] = pool.run(_pages, rounds=rounds)
    return found[0]


def sockets(pool: Pool, *, rounds: int, sizes: Sequence[int] = SOCKET_SIZES) -> list[Series]:
    """One way of a TCP message between two processes over loopback: half of an echo.

    Raises:
        ProbeError: a worker failed or hung.
    """
    port = pool.run(_listen)[0]
    found: list[list[Series]] = pool.run(_echo, 2, port=port, sizes=list(sizes), rounds=rounds)
    return found[0]


def _copies(worker: Worker, *, processes: int, sizes: list[int], rounds: int) -> list[Series]:
    import numpy as np

    cases = []
    for nbytes in sizes:
        source, target = np.ones(nbytes, np.uint8), np.zeros(nbytes, np.uint8)
        cases.append(Case({"bytes": nbytes}, _copier(target, source), repeats=max(1, TRAFFIC // nbytes)))
    return sweep("memcpy", cases, rounds=rounds, meet=lambda: worker.meet(processes))


def _copier(target: Any, source: Any) -> Callable[[], object]:
    import numpy as np

    return lambda: np.copyto(target, source)


def _products(worker: Worker, *, processes: int, rounds: int) -> list[Series]:
    import numpy as np

    cases = []
    for m, n, k in PRODUCTS:
        left, right, out = np.ones((m, k), np.float32), np.ones((k, n), np.float32), np.empty((m, n), np.float32)
        flops = 2.0 * m * n * k
        labels = {"family": "matmul", "shape": f"{m}x{n}x{k}", "flops": flops, "bytes": 4.0 * (m * k + k * n + m * n)}
        cases.append(Case(labels, _multiplier(left, right, out), repeats=max(1, min(1000, int(5e7 / flops)))))
    return sweep("gemm", cases, rounds=rounds, meet=lambda: worker.meet(processes))


def _multiplier(left: Any, right: Any, out: Any) -> Callable[[], object]:
    import numpy as np

    return lambda: np.matmul(left, right, out=out)


def _pages(worker: Worker, *, rounds: int) -> list[Series]:
    size = mmap.PAGESIZE
    count = TOUCHED // size
    samples = []
    for _ in range(rounds):
        with mmap.mmap(-1, TOUCHED) as fresh:
            begin = time.perf_counter()
            for offset in range(0, TOUCHED, size):
                fresh[offset] = 1
            touched = time.perf_counter()
            for offset in range(0, TOUCHED, size):
                fresh[offset] = 1
            # The second pass is the loop alone.
            samples.append(max(1e-12, (touched - begin) - (time.perf_counter() - touched)) / count)
    return [Series("page", {"bytes": size, "rank": worker.rank}, samples, count)]


def _listen(worker: Worker) -> int:
    """Open the listening socket that `_echo` of this worker accepts from."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(30)
    worker.kept[LISTENER] = listener
    port: int = listener.getsockname()[1]
    return port


def _echo(worker: Worker, *, port: int, sizes: list[int], rounds: int) -> list[Series]:
    if worker.rank:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as answering:
            _answer(answering)
        return []
    with worker.kept.pop(LISTENER) as listener:
        asking, _ = listener.accept()
    with asking:
        asking.settimeout(30)
        asking.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        cases = [Case({"bytes": nbytes}, _asker(asking, nbytes), executions=2) for nbytes in sizes]
        return sweep("tcp", cases, rounds=rounds)


def _asker(connection: socket.socket, nbytes: int) -> Callable[[], object]:
    message, answer = nbytes.to_bytes(8, "little") + bytes(nbytes - 8), bytearray(nbytes)

    def ask() -> None:
        connection.sendall(message)
        _fill(connection, memoryview(answer))

    return ask


def _answer(connection: socket.socket) -> None:
    """Send every message back; its first eight bytes say how long it is."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer = memoryview(bytearray(max(SOCKET_SIZES)))
    while _fill(connection, buffer[:8]):
        nbytes = int.from_bytes(buffer[:8], "little")
        _fill(connection, buffer[8:nbytes])
        connection.sendall(buffer[:nbytes])


def _fill(connection: socket.socket, buffer: memoryview) -> bool:
    """Read as many bytes as the buffer holds; False where the other end has gone."""
    while buffer:
        read = connection.recv_into(buffer)
        if not read:
            return False
        buffer = buffer[read:]
    return True


def describe() -> dict[str, Any]:
    """What this machine is, as far as it says so."""
    import platform

    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "page_bytes": mmap.PAGESIZE,
        "system": platform.release(),
        "python": platform.python_version(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "load_average": list(os.getloadavg()),
    }


def _processor() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return ""


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 - the kernel's files, not the user's
            return file.read().strip()
    except OSError:
        return ""
