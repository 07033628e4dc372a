"""Whether QEMU can use this machine's own virtualisation, found out by booting a guest with it."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from emulation.softroce import cache
from emulation.softroce.failure import SoftRoceError
from emulation.softroce.line import Line
from emulation.softroce.machine import Accelerator, Machine

if TYPE_CHECKING:
    from emulation.softroce.image import Image

PROBE = 20.0
"""Seconds: a guest on real virtualisation is up in two or three, one that cannot start says so at once or hangs."""


def usable(image: Image) -> Accelerator:
    """`kvm` where a guest was seen to boot with it, else `tcg`; looked up once per boot of this machine and image.

    The device node alone says nothing: hypervisors exist that offer one on which no distribution kernel starts.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    known = _remembered(image)
    if known is None:
        known = probe(image)
        _remember(image, known)
    return "tcg" if known else "kvm"


def why_not_kvm(image: Image | None) -> str:
    """Why guests here are emulated in software; empty where they are not. Boots nothing."""
    if not Path("/dev/kvm").exists():
        return "no /dev/kvm"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "/dev/kvm is not open to this user"
    known = _remembered(image) if image else None
    return "not tried yet" if known is None else known


def probe(image: Image) -> str:
    """Boot a guest with KVM; why it did not come up, or nothing where it did."""
    with tempfile.TemporaryDirectory(prefix="softroce-probe-") as folder:
        machine = Machine(image=image, control=Path(folder), memory=512 << 20, accelerator="kvm", lifetime=PROBE * 2)
        powered = machine.start(":\n")
        line = Line(powered.stream, "the guest")
        try:
            line.ask("ping", PROBE)
        except SoftRoceError:
            return f"a guest did not boot with it: {powered.last_words.partition('; ')[0]}"
        finally:
            powered.kill()
            line.close()
    return ""


def _file() -> Path:
    return cache.root() / "kvm.json"


def _circumstances(image: Image) -> str:
    started = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
    return f"{started} {image.folder.name}"


def _remembered(image: Image) -> str | None:
    try:
        told = json.loads(_file().read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return str(told["why_not"]) if told.get("circumstances") == _circumstances(image) else None


def _remember(image: Image, why_not: str) -> None:
    aside = _file().with_suffix(f".{os.getpid()}")
    aside.write_text(json.dumps({"circumstances": _circumstances(image), "why_not": why_not}), "utf-8")
    aside.replace(_file())
