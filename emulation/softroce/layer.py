"""Python packages for guests: a read-only disk filled by pip with wheels for the guest's Python."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from emulation.softroce import cache
from emulation.softroce.disk import make_disk
from emulation.softroce.failure import Refused
from emulation.softroce.tools import TO_BUILD, call, need

if TYPE_CHECKING:
    from pathlib import Path

GUEST_PYTHON = "3.11"
"""Of Debian bookworm."""


@dataclass(frozen=True)
class Layer:
    """A built disk of packages; a guest has it at `place`."""

    name: str
    disk: Path

    @property
    def place(self) -> str:
        """Where a guest mounts it."""
        return f"/opt/{self.name}"

    @property
    def about(self) -> dict[str, object]:
        """Requirements, size in bytes, seconds the build took."""
        told: dict[str, object] = json.loads((self.disk.parent / "about.json").read_text("utf-8"))
        return told

    @classmethod
    def build(cls, name: str, requirements: tuple[str, ...]) -> Layer:
        """The disk with some packages and all that they need, filled where it is not yet.

        Args:
            name: short; part of the place in the guest.
            requirements: as pip takes them; exact versions keep guest and host alike.

        Raises:
            ToolsMissing: programs that build it are not installed.
            Refused: the name is not plain.
            SoftRoceError: pip cannot provide them as wheels for the guest's Python.
        """
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise Refused(f"a layer's name is letters, digits and dashes; got {name!r}")
        folder = cls._folder(name, requirements)
        if not folder.is_dir():
            need(TO_BUILD)
            with cache.entry(folder) as filling:
                if filling is not None:
                    _fill(requirements, filling)
        return cls(name, folder / "packages.ext4")

    @classmethod
    def find(cls, name: str, requirements: tuple[str, ...]) -> Layer | None:
        """The disk where it is built."""
        folder = cls._folder(name, requirements)
        return cls(name, folder / "packages.ext4") if folder.is_dir() else None

    @staticmethod
    def _folder(name: str, requirements: tuple[str, ...]) -> Path:
        key = hashlib.sha256(json.dumps([GUEST_PYTHON, sorted(requirements)]).encode()).hexdigest()[:16]
        return cache.root() / "layers" / f"{name}-{key}"


def _fill(requirements: tuple[str, ...], into: Path) -> None:
    began = time.monotonic()
    tree = into / "tree"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    wheels = ["--target", str(tree), "--only-binary=:all:", "--python-version", GUEST_PYTHON]
    call([*pip, *wheels, *requirements], timeout=1800)
    for tests in [p for p in tree.rglob("tests") if p.is_dir()]:
        shutil.rmtree(tests)
    make_disk(tree, into / "packages.ext4", room=0)
    shutil.rmtree(tree)
    about = {
        "requirements": sorted(requirements),
        "disk_bytes": (into / "packages.ext4").stat().st_blocks * 512,
        "seconds": round(time.monotonic() - began, 1),
    }
    (into / "about.json").write_text(json.dumps(about, indent=1), "utf-8")
