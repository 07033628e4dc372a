"""The circumstances of a run: code, machine, environment. None of it enters a key or a digest.

What cannot change while a run lasts is gathered once; the load average is taken for each trial. Nothing leaves that
could be a secret: environment variables are recorded by an allow-list, and credentials are cut out of addresses.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import __version__
from harness.backends import machine
from harness.records import Provenance

ALLOWED = frozenset(
    {
        *("CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING", "LD_PRELOAD", "MALLOC_ARENA_MAX"),
        *("OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "KMP_AFFINITY", "TORCH_NUM_THREADS"),
        *("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"),
        *("NCCL_SOCKET_IFNAME", "NCCL_IB_DISABLE", "NCCL_IB_HCA", "NCCL_ALGO", "NCCL_PROTO"),
        *("NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE", "GLOO_SOCKET_IFNAME"),
        *("PYTHONHASHSEED", "PYTHONOPTIMIZE", "LANG", "LC_ALL", "TZ", "SLURM_JOB_ID", "SLURM_JOB_NUM_NODES"),
    }
)
"""Variables that may change a number."""
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")
_SECRET = re.compile(r"(secret|token|password|passwd|api_?key|credential)[^\s]*", re.IGNORECASE)
_GIT_SECONDS = 5.0


@dataclass(frozen=True)
class Circumstances:
    """What holds for a whole run."""

    git: dict[str, Any]
    hardware: dict[str, Any]
    environment: dict[str, str]

    def stamp(self, *, packages: dict[str, str], hardware: dict[str, Any]) -> Provenance:
        """The provenance of one trial; `hardware` overrides this machine's where the trial ran elsewhere."""
        return Provenance(
            git=self.git,
            packages=packages,
            hardware=hardware or self.hardware,
            environment=self.environment,
            load_average=os.getloadavg(),
            python=platform.python_version(),
            harness=__version__,
        )


def gather(folder: Path | None = None) -> Circumstances:
    """Look around once; `folder` lies in the repository whose state is recorded."""
    return Circumstances(git(folder or Path.cwd()), hardware(), environment())


def environment() -> dict[str, str]:
    """The allow-listed variables that are set, without anything that looks like a credential."""
    return {name: clean(os.environ[name]) for name in sorted(ALLOWED & os.environ.keys())}


def clean(text: str) -> str:
    """Text without credentials in addresses."""
    return _SECRET.sub("***", _CREDENTIALS.sub("***@", text))


def git(folder: Path) -> dict[str, Any]:
    """Commit, branch, origin, whether there are uncommitted changes, and their SHA-256; empty outside a repository."""
    status = _git(folder, "status", "--porcelain=v2", "--branch")
    if status is None:
        return {}
    lines = status.decode("utf-8", "replace").splitlines()
    heads = {n: v for n, _, v in (ln[2:].partition(" ") for ln in lines if ln.startswith("# "))}
    found: dict[str, Any] = {"dirty": any(not ln.startswith("#") for ln in lines)}
    if heads.get("branch.oid", "(initial)") != "(initial)":
        found["commit"] = heads["branch.oid"]
    if heads.get("branch.head", "(detached)") != "(detached)":
        found["branch"] = heads["branch.head"]
    origin = _git(folder, "config", "--get", "remote.origin.url")
    if origin:
        found["origin"] = _CREDENTIALS.sub("", origin.decode("utf-8", "replace").strip())
    if found["dirty"] and "commit" in found:
        found["diff"] = hashlib.sha256(_git(folder, "diff", "HEAD", "--binary") or b"").hexdigest()
    return found


def _git(folder: Path, *arguments: str) -> bytes | None:
    command = ["git", "-C", str(folder), "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_GIT_SECONDS, check=False, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def hardware() -> dict[str, Any]:
    """CPU, cores, memory, GPUs, network adapters, limits, as found; what is not there is left out."""
    import psutil

    found: dict[str, Any] = {
        "fingerprint": machine_fingerprint(),
        "cpu": cpu_model(),
        "logical_cores": os.cpu_count(),
        "physical_cores": psutil.cpu_count(logical=False),
        "usable_cores": len(os.sched_getaffinity(0)),
        "memory": int(psutil.virtual_memory().total),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "gpus": machine.gpus(),
        "nics": nics(),
        "rdma": machine.rdma_devices(),
        "numa_nodes": len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))),
        "limits": {
            "memory": machine.memory(),
            "cpu": _read("/sys/fs/cgroup/cpu.max"),
        },
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    }
    return {k: v for k, v in found.items() if v not in (None, "", [], {})}


def cpu_model() -> str:
    """The processor's name, as the kernel gives it."""
    text = _read("/proc/cpuinfo")
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return named[1].strip() if named else platform.processor() or platform.machine()


def nics() -> list[dict[str, Any]]:
    """Physical network adapters with their driver and, where the kernel knows it, their rate in Mbit/s."""
    found = []
    for adapter in sorted(Path("/sys/class/net").glob("*")):
        if not (adapter / "device").exists():
            continue
        speed = _read(str(adapter / "speed"))
        driver = adapter / "device" / "driver"
        found.append(
            {
                "name": adapter.name,
                "driver": driver.resolve().name if driver.exists() else "",
                "mbit_per_second": int(speed) if speed.isdigit() else None,
            }
        )
    return found


def machine_fingerprint() -> str:
    """Names machines that are alike, before and after a reboot: processor, logical cores, GPUs."""
    parts = [cpu_model(), str(os.cpu_count()), *sorted(g["name"] for g in machine.gpus())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _read(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", "replace").strip()
    except OSError:
        return ""
