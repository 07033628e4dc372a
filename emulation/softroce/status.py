"""What of the guests this machine has: programs, images, package disks, running guests."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emulation.softroce import accelerator, cache
from emulation.softroce.failure import SoftRoceError
from emulation.softroce.image import Image, images
from emulation.softroce.machine import CONTROL_TAG
from emulation.softroce.tools import QEMU, TO_BOOT, TO_BUILD, installing, missing


@dataclass(frozen=True)
class Built:
    """An image in the cache."""

    key: str
    kernel: str
    disk_bytes: int
    current: bool
    """Whether it is what would be built now."""


@dataclass(frozen=True)
class Guest:
    """A guest that runs, whoever started it."""

    pid: int
    folder: str
    """Its control folder."""


@dataclass(frozen=True)
class Status:
    """All of it."""

    install: str
    """The command that installs the programs that are missing; empty where none is."""
    why_not_kvm: str
    cache: str
    cache_bytes: int
    images: tuple[Built, ...]
    layers: tuple[str, ...]
    guests: tuple[Guest, ...]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def look() -> Status:
    """Look at this machine; starts nothing but the package manager's look-up of versions."""
    packages = missing({**TO_BOOT, **TO_BUILD})
    current = None
    if not packages:
        try:
            current = Image.find()
        except SoftRoceError:
            # Without package lists nobody can say what would be built now.
            current = None
    folder = cache.root()
    return Status(
        install=installing(packages) if packages else "",
        why_not_kvm=accelerator.why_not_kvm(current or next(iter(images()), None)),
        cache=str(folder),
        cache_bytes=sum(p.stat().st_blocks * 512 for p in folder.rglob("*") if p.is_file()),
        images=tuple(_built(image, current) for image in images()),
        layers=tuple(sorted(p.parent.name for p in (folder / "layers").glob("*/about.json"))),
        guests=tuple(_guests()),
    )


def _built(image: Image, current: Image | None) -> Built:
    about: Any = image.about
    is_current = current is not None and current.folder == image.folder
    return Built(image.folder.name, image.release, about["disk_bytes"], is_current)


def _guests() -> list[Guest]:
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = place.read_bytes().decode("utf-8", "replace").split("\0")
        except OSError:
            # It ended meanwhile.
            continue
        if Path(words[0]).name == QEMU:
            shared = next((word for word in words if word.startswith(f"local,id={CONTROL_TAG},path=")), "")
            if shared:
                found.append(Guest(int(place.parent.name), shared.split("path=")[1].split(",security_model")[0]))
    return sorted(found, key=lambda guest: guest.pid)
