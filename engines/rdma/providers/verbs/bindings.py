"""Which Python binding of libibverbs is here."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from engines.rdma.device import ProviderUnavailable, Unavailable

if TYPE_CHECKING:
    from engines.rdma.providers.verbs.adapter import Binding

BINDINGS = ("ibverbs", "pyverbs")
"""In the order of preference: the wheel installs anywhere, pyverbs belongs to the system's Python."""
ADVICE = "pip install ibverbs (or apt-get install python3-pyverbs), and apt-get install libibverbs1 ibverbs-providers"


def load(wanted: str = "auto") -> Binding:
    """The binding of this name, or with `auto` the first that can be loaded.

    Raises:
        ValueError: no such binding.
        ProviderUnavailable: it, or libibverbs under it, is not installed.
    """
    if wanted != "auto" and wanted not in BINDINGS:
        raise ValueError(f"no binding {wanted!r}; there are auto, {', '.join(BINDINGS)}")
    missing = []
    for name in BINDINGS if wanted == "auto" else (wanted,):
        try:
            return _load(name)
        except ImportError as error:
            missing.append(f"{name}: {error}")
    raise ProviderUnavailable(Unavailable.LIBRARY, f"{'; '.join(missing)}; {ADVICE}")


def _load(name: str) -> Binding:
    if name == "ibverbs":
        from engines.rdma.providers.verbs.binding_ibverbs import Wheel

        return Wheel()
    from engines.rdma.providers.verbs.binding_pyverbs import Packaged

    return Packaged()


def devices(binding: Binding) -> list[str]:
    """Names of this machine's RDMA devices; at least one.

    Raises:
        ProviderUnavailable: the kernel has no RDMA, or there is no device.
    """
    try:
        names = list(binding.devices())
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOENT, errno.ENODEV):
            raise
        raise ProviderUnavailable(
            Unavailable.KERNEL, "the kernel has no RDMA devices to offer (module ib_uverbs is not loaded)"
        ) from error
    if not names:
        raise ProviderUnavailable(
            Unavailable.DEVICE,
            "this machine has no RDMA device; Soft-RoCE makes one of a network interface: "
            "modprobe rdma_rxe && rdma link add rxe0 type rxe netdev eth0",
        )
    return names
