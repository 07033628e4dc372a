"""A guest image: a kernel, a first file system and a root disk, built once from Debian packages."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from emulation.softroce import cache
from emulation.softroce.disk import make_disk, tree_bytes
from emulation.softroce.failure import SoftRoceError
from emulation.softroce.recipe import FOR_ROOT, Recipe
from emulation.softroce.tools import TO_BUILD, call, need

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ROOM = 128 << 20
"""Free bytes on the root disk, for what a guest writes outside of memory and shares."""


@dataclass(frozen=True)
class Image:
    """A built image in its folder of the cache."""

    folder: Path

    @classmethod
    def find(cls, recipe: Recipe | None = None) -> Image | None:
        """The image of a recipe where it is built.

        Raises:
            SoftRoceError: the recipe's versions cannot be told on this machine.
        """
        folder = _folder(recipe or Recipe())
        return cls(folder) if folder.is_dir() else None

    @classmethod
    def build(cls, recipe: Recipe | None = None) -> Image:
        """The image of a recipe, built where it is not yet; needs root, and a minute or so.

        Raises:
            ToolsMissing: programs that build it are not installed.
            SoftRoceError: this is not root, or a step failed.
        """
        recipe = recipe or Recipe()
        folder = _folder(recipe)
        if not folder.is_dir():
            if os.geteuid() != 0:
                raise SoftRoceError("building a guest image makes device nodes and owners: run it as root")
            need(TO_BUILD)
            with cache.entry(folder) as filling:
                if filling is not None:
                    _build(recipe, filling)
        return cls(folder)

    @property
    def kernel(self) -> Path:
        """The kernel to boot."""
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """The first file system."""
        return self.folder / "initrd"

    @property
    def disk(self) -> Path:
        """The root disk, an ext4 that guests write to only in their own overlays."""
        return self.folder / "root.ext4"

    @property
    def about(self) -> dict[str, object]:
        """Key, kernel release and package versions, sizes in bytes, seconds the build took."""
        told: dict[str, object] = json.loads((self.folder / "about.json").read_text("utf-8"))
        return told

    @property
    def release(self) -> str:
        """The kernel's release, such as 6.12.0-amd64."""
        return str(self.about["kernel"])


def images() -> tuple[Image, ...]:
    """Every image in the cache, the newest first."""
    folders = [p.parent for p in (cache.root() / "images").glob("*/about.json")]
    return tuple(Image(f) for f in sorted(folders, key=lambda f: f.stat().st_mtime, reverse=True))


def _folder(recipe: Recipe) -> Path:
    return cache.root() / "images" / recipe.key


def _build(recipe: Recipe, into: Path) -> None:
    began = time.monotonic()
    kernel = into / "kernel"
    kernel.mkdir()
    call(["apt-get", "download", "-q", recipe.kernel], folder=kernel)
    call(["dpkg", "-x", str(next(kernel.glob("*.deb"))), str(kernel)])
    release = next((kernel / "lib" / "modules").iterdir()).name
    call(["depmod", "-b", str(kernel), release])
    shutil.copy(kernel / "boot" / f"vmlinuz-{release}", into / "vmlinuz")
    root = into / "root"
    _debootstrap(recipe, root)
    order = _install_modules(kernel, root, release, recipe.modules)
    for place in ("control", "share", "opt/py"):
        (root / place).mkdir(parents=True, exist_ok=True)
    _make_initrd(root, release, into / "initrd")
    make_disk(root, into / "root.ext4", room=ROOM)
    about = {
        "key": recipe.key,
        "kernel": release,
        "packages": recipe.versions,
        "modules": len(order),
        "tree_bytes": tree_bytes(root),
        "disk_bytes": (into / "root.ext4").stat().st_blocks * 512,
        "initrd_bytes": (into / "initrd").stat().st_size,
        "seconds": round(time.monotonic() - began, 1),
    }
    shutil.rmtree(root)
    shutil.rmtree(kernel)
    (into / "about.json").write_text(json.dumps(about, indent=1), "utf-8")


def _debootstrap(recipe: Recipe, root: Path) -> None:
    left_out = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*")
    call(
        [
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            '--aptopt=APT::Install-Recommends "false"',
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in left_out),
            f"--include={','.join(recipe.packages)}",
            recipe.suite,
            str(root),
        ]
    )


def _install_modules(kernel: Path, root: Path, release: str, wanted: Sequence[str]) -> tuple[str, ...]:
    """Copy modules and all that they depend on, unpacked: busybox cannot load packed ones.

    Returns:
        Their files in the kernel package, in an order in which they can be loaded.
    """
    into = root / "lib" / "modules" / release
    shutil.rmtree(into.parent, ignore_errors=True)
    order = _dependencies(kernel, release, wanted)
    for name in order:
        place = into / name.partition(f"lib/modules/{release}/")[2]
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, place)
        if name.endswith(".xz"):
            call(["xz", "-d", str(place)])
    for listing in kernel.glob(f"lib/modules/{release}/modules.*"):
        if listing.name.startswith("modules.builtin") or listing.name == "modules.order":
            shutil.copy(listing, into)
    call(["depmod", "-b", str(root), release])
    return order


def _dependencies(root: Path, release: str, wanted: Sequence[str]) -> tuple[str, ...]:
    """Files of modules in an order in which they can be loaded; what the kernel has built in is left out."""
    files: dict[str, None] = {}
    for module in wanted:
        for line in call(["modprobe", "-d", str(root), "-S", release, "-D", module]).splitlines():
            kind, _, rest = line.partition(" ")
            if kind == "insmod":
                files[rest.split()[0]] = None
    return tuple(files)


def _make_initrd(root: Path, release: str, to: Path) -> None:
    tree = to.with_name("first")
    for place in ("bin", "dev", "proc", "root", "modules"):
        (tree / place).mkdir(parents=True)
    shutil.copy(root / "bin" / "busybox", tree / "bin" / "busybox")
    (tree / "bin" / "sh").symlink_to("busybox")
    order = _dependencies(root, release, FOR_ROOT)
    for name in order:
        shutil.copy(name, tree / "modules")
    (tree / "modules" / "order").write_text("".join(f"{name.rpartition('/')[2]}\n" for name in order))
    init = tree / "init"
    init.write_text(resources.files("emulation.softroce").joinpath("guest/first").read_text("utf-8"))
    init.chmod(0o755)
    names = "\n".join(str(p.relative_to(tree)) for p in sorted(tree.rglob("*")))
    archive = to.with_name("first.cpio")
    call(["cpio", "-o", "-H", "newc", "--quiet", "-O", str(archive)], folder=tree, given=names)
    call(["zstd", "-q", "-9", "--rm", str(archive), "-o", str(to)])
    shutil.rmtree(tree)
