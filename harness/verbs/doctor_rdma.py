"""What of `harness doctor` is about RDMA: devices and their addresses, limits, kernel modules, libraries."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emulation import rdma_devices
from emulation.units import render
from harness.verbs.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from emulation.rdma_devices import Port, RdmaDevice

ARENA = 1 << 30
"""Bytes of the arena that the locked-memory limit is held against."""
MODULES = ("ib_uverbs", "rdma_rxe")
"""Lets programs use verbs; makes an RDMA device of any network interface (Soft-RoCE)."""
LIBRARIES = "apt-get install libibverbs1 ibverbs-providers"
ELSEWHERE = "run with --on softroce or --on emulated, or on a machine with an RDMA adapter"


@dataclass(frozen=True)
class Machine:
    """Where to look; tests look elsewhere."""

    devices: Path = rdma_devices.SYSFS
    loaded: Path = Path("/sys/module")
    modules: Path = Path("/lib/modules") / platform.release()
    interfaces: Path = Path("/sys/class/net")


def findings(machine: Machine | None = None) -> Iterator[Finding]:
    """One finding a port, and one each for kernel, libraries, bindings and the locked-memory limit."""
    machine = machine or Machine()
    devices = rdma_devices.devices(machine.devices)
    states = {name: module_state(name, machine) for name in MODULES}
    yield _summary(devices, states["rdma_rxe"])
    for device in devices:
        for port in device.ports:
            yield _port(device, port, machine)
        limits = _limits(device.name)
        if limits:
            yield Finding(f"rdma {device.name} limits", limits)
    # Without a device nothing below stands in anybody's way.
    wanted = bool(devices)
    told = ", ".join(f"{name} {state}" for name, state in states.items())
    fix = "modprobe ib_uverbs" if wanted and states["ib_uverbs"] not in ("loaded", "built in") else ""
    yield Finding("rdma kernel", told, fix)
    yield _library(wanted)
    yield _bindings(wanted)
    yield locked_memory(wanted)


def module_state(name: str, machine: Machine) -> str:
    """`loaded`, `built in`, `available` (modprobe would load it), or `not in this kernel`."""
    if (machine.loaded / name).is_dir():
        return "loaded"
    for index, state in (("modules.builtin", "built in"), ("modules.dep", "available")):
        listed = machine.modules / index
        if listed.exists() and any(
            Path(line.partition(":")[0].strip()).name.partition(".")[0] == name
            for line in listed.read_text(encoding="utf-8").splitlines()
        ):
            return state
    return "not in this kernel"


def _summary(devices: tuple[RdmaDevice, ...], soft_roce: str) -> Finding:
    if devices:
        return Finding("rdma devices", ", ".join(device.name for device in devices))
    make_one = "modprobe rdma_rxe && rdma link add rxe0 type rxe netdev INTERFACE"
    return Finding("rdma devices", "none", ELSEWHERE if soft_roce == "not in this kernel" else make_one)


def _port(device: RdmaDevice, port: Port, machine: Machine) -> Finding:
    """What a port is, and the address that a channel through it would have."""
    gids = rdma_devices.gids(device.name, port.number, machine.devices)
    chosen = rdma_devices.choose_gid(port.link_layer, gids)
    kind = f"Soft-RoCE on {device.interface}" if device.software else device.driver or "unknown driver"
    said = [kind, port.link_layer, port.state, port.rate]
    interface = chosen.interface if chosen else device.interface
    if mtu := _path_mtu(device.name, port, interface, machine):
        said.append(mtu)
    routable = [gid for gid in gids if gid.kind == rdma_devices.ROCE_V2]
    if port.link_layer == rdma_devices.ETHERNET:
        said.append("RoCE v2 " + (", ".join(f"{gid.index}: {_text(gid)}" for gid in routable) or "none"))
    if chosen:
        said.append(f"would use {chosen.index}")
    fix = ""
    if not port.active:
        fix = f"ip link set {interface} up" if interface else "bring the port up: cable, switch, subnet manager"
    elif chosen is None:
        fix = f"ip address add ADDRESS/PREFIX dev {interface or 'INTERFACE'}"
    return Finding(f"rdma {device.name}/{port.number}", ", ".join(word for word in said if word), fix)


def _text(gid: rdma_devices.Gid) -> str:
    return str(gid.ipv4 or gid.address)


def _path_mtu(device: str, port: Port, interface: str, machine: Machine) -> str:
    """As the port says where a binding can ask it, else as the interface's frames allow."""
    asked = _ask(device, lambda context: int(context.query_port(port.number).active_mtu))
    if asked is not None:
        return f"MTU {128 << asked}"
    frames = machine.interfaces / interface / "mtu"
    if port.link_layer != rdma_devices.ETHERNET or not interface or not frames.exists():
        return ""
    fits = rdma_devices.roce_mtu(int(frames.read_text(encoding="ascii")))
    return f"MTU {fits} by its interface" if fits else "interface too small for RoCE"


def _limits(device: str) -> str:
    found = _ask(device, lambda context: context.query_device())
    if found is None:
        return ""
    return (
        f"{found.max_mr} regions, {found.max_qp} queue pairs of {found.max_qp_wr} requests, "
        f"{found.max_qp_rd_atom} reads under way, completion queues of {found.max_cqe}"
    )


def _ask(device: str, question: Any) -> Any:
    """The answer of an opened device; None where no binding can open it."""
    try:
        if find_spec("ibverbs"):
            found = next(known for known in import_module("ibverbs").get_device_list() if known.name == device)
            return question(found.open())
        if find_spec("pyverbs"):
            return question(import_module("pyverbs.device").Context(name=device))
    except (ImportError, OSError, StopIteration):
        return None
    return None


def _library(wanted: bool) -> Finding:
    try:
        ctypes.CDLL("libibverbs.so.1")
    except OSError:
        return Finding("libibverbs", "not found", LIBRARIES if wanted else "")
    drivers = sorted(path.stem for path in Path("/etc/libibverbs.d").glob("*.driver"))
    told = f"found, {len(drivers)} drivers" if drivers else "found, no drivers"
    return Finding("libibverbs", told, LIBRARIES if wanted and not drivers else "")


def _bindings(wanted: bool) -> Finding:
    there = []
    for name in ("ibverbs", "pyverbs"):
        if find_spec(name):
            try:
                there.append(f"{name} {version(name)}")
            except PackageNotFoundError:
                # Distributions ship pyverbs without metadata.
                there.append(name)
    fix = "pip install ibverbs" if wanted and not there else ""
    return Finding("verbs bindings", ", ".join(there) or "none", fix)


def locked_memory(wanted: bool) -> Finding:
    """The limit on memory that an adapter may pin, held against an arena of 1 GiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    told, need = _limit(soft), f"an arena of {render(ARENA, 'B')} needs as much"
    if os.geteuid() == 0:
        return Finding("locked memory", f"{told}, not enforced for root")
    if _enough(soft):
        return Finding("locked memory", told)
    fix = "ulimit -l unlimited"
    if not _enough(hard):
        fix = "add '* - memlock unlimited' to /etc/security/limits.conf and log in again"
    return Finding("locked memory", f"{told}; {need}", fix if wanted else "")


def _enough(limit: int) -> bool:
    return limit == resource.RLIM_INFINITY or limit >= ARENA


def _limit(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else f"at most {render(limit, 'B')}"
