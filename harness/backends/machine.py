"""What this machine has: GPUs, memory, RDMA devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.backends.base import Capabilities

INFINIBAND = Path("/sys/class/infiniband")
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def capabilities() -> Capabilities:
    """This machine, as the needs of a trial see it."""
    found = gpus()
    return Capabilities(
        hosts=1,
        gpus=len(found),
        gpu_memory=min((g["memory"] for g in found), default=0),
        memory=memory(),
        rdma=bool(rdma_devices()),
    )


def gpus() -> list[dict[str, Any]]:
    """Name, memory in bytes and driver of each NVIDIA GPU that this process may use, by NVML."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        found = [
            {
                "name": _text(pynvml.nvmlDeviceGetName(handle)),
                "memory": int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
                "uuid": _text(pynvml.nvmlDeviceGetUUID(handle)),
                "driver": driver,
            }
            for handle in handles
        ]
    finally:
        pynvml.nvmlShutdown()
    return _visible(found)


def memory() -> int:
    """Bytes this process may use: the machine's, or its container's where that is less."""
    import psutil

    limits = [int(psutil.virtual_memory().total)]
    for path in _CGROUP_LIMITS:
        try:
            limits.append(int(path.read_text()))
        except (OSError, ValueError):
            # Absent, or "max".
            continue
    return min(limits)


def rdma_devices(root: Path = INFINIBAND) -> list[str]:
    """Names of the RDMA devices."""
    return sorted(p.name for p in root.iterdir()) if root.is_dir() else []


def _visible(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that CUDA_VISIBLE_DEVICES leaves: an empty variable hides all, a wrong entry ends the list."""
    import os

    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return found
    out = []
    for entry in (e.strip() for e in chosen.split(",")):
        by_id = [g for g in found if entry and g["uuid"].startswith(entry)]
        if entry.isdigit() and int(entry) < len(found):
            out.append(found[int(entry)])
        elif by_id:
            out.append(by_id[0])
        else:
            break
    return out


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
