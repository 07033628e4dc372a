"""What a guest is made of, and the key under which a built one is kept."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import resources

from emulation.softroce.failure import SoftRoceError
from emulation.softroce.tools import TO_BUILD, call, need

SUITE = "bookworm"

KERNELS = ("linux-image-6.12-amd64", "linux-image-amd64")
"""Meta packages, best first: concrete kernels vanish from the archive. The cloud flavour has no rdma_rxe."""

PACKAGES = (
    "busybox-static",
    "ibverbs-providers",
    "ibverbs-utils",
    "iproute2",
    "iputils-ping",
    "kmod",
    "perftest",
    "procps",
    "python3",
    "python3-pyverbs",
    "rdma-core",
)

MODULES = (
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio-rng",
    "ext4",
    "9p",
    "9pnet_virtio",
    "veth",
    "sch_netem",
    "ib_uverbs",
    "rdma_ucm",
    "rdma_rxe",
    # rdma_rxe asks the crypto interface for crc32 by name, so that its dependencies do not list these.
    "crc32_generic",
    "crc32-pclmul",
    "libcrc32c",
)

FOR_ROOT = ("virtio_pci", "virtio_blk", "ext4", "9p", "9pnet_virtio")
"""What the first file system of a boot must have to mount the second and the control folder."""

LAYOUT = 1
"""Raised when `image.py` lays an image out differently."""


@dataclass(frozen=True)
class Recipe:
    """A guest by the names of its parts; versions come from this machine's package lists."""

    suite: str = SUITE
    kernels: tuple[str, ...] = KERNELS
    packages: tuple[str, ...] = PACKAGES
    modules: tuple[str, ...] = MODULES

    @cached_property
    def kernel(self) -> str:
        """The concrete kernel package that the first meta package with a candidate stands for.

        Raises:
            SoftRoceError: the package lists know none of them.
        """
        need(TO_BUILD)
        for meta in self.kernels:
            found = re.search(r"Depends: (linux-image-\S+)", _quiet(["apt-cache", "depends", meta]))
            if found:
                return found[1]
        raise SoftRoceError(
            f"the package lists of this machine know no kernel for a guest ({', '.join(self.kernels)}): "
            f"run 'apt-get update', on Debian {self.suite} or with its sources"
        )

    @cached_property
    def versions(self) -> dict[str, str]:
        """Each package's candidate version, the kernel's among them.

        Raises:
            SoftRoceError: a package has none.
        """
        names = [*self.packages, self.kernel]
        said = call(["apt-cache", "policy", *names])
        candidates = dict(re.findall(r"^(\S+):\n(?:.*\n)?\s*Candidate: (\S+)", said, re.MULTILINE))
        for name in names:
            if candidates.get(name, "(none)") == "(none)":
                raise SoftRoceError(f"no Debian package {name} in this machine's lists: run 'apt-get update'")
        return {name: candidates[name] for name in names}

    @cached_property
    def key(self) -> str:
        """Changes when anything does that a built image holds."""
        first = resources.files("emulation.softroce").joinpath("guest/first").read_text("utf-8")
        told = json.dumps([LAYOUT, asdict(self), self.versions, first], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16]


def _quiet(command: list[str]) -> str:
    try:
        return call(command)
    except SoftRoceError:
        return ""
