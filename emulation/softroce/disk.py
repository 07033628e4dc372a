"""Disks for guests: a folder as an ext4 file, sparse."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulation.softroce.tools import call

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = 4096
INODE = 256


def tree_bytes(folder: Path) -> int:
    """Bytes of the files of a folder."""
    return sum(p.lstat().st_size for p in folder.rglob("*") if not p.is_dir() or p.is_symlink())


def make_disk(folder: Path, to: Path, *, room: int) -> None:
    """An ext4 without a journal that holds a folder's files.

    Args:
        folder: whose files.
        to: the file to make.
        room: free bytes to leave.

    Raises:
        SoftRoceError: mke2fs failed.
    """
    entries = [p.lstat() for p in folder.rglob("*")]
    blocks = sum(-(-e.st_size // BLOCK) + 1 for e in entries)
    # Two hundredths for block maps and group descriptors, and one inode more than half again as many as are needed.
    inodes = 1024 + len(entries) * 3 // 2
    size = int((blocks * BLOCK + inodes * INODE + room) * 1.02) + (16 << 20)
    with to.open("wb") as file:
        file.truncate(-(-size // BLOCK) * BLOCK)
    features = ["-O", "^has_journal,^resize_inode", "-m", "0", "-N", str(inodes), "-b", str(BLOCK)]
    call(["mke2fs", "-q", "-F", "-t", "ext4", *features, "-d", str(folder), str(to)])
