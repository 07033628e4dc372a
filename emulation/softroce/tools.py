"""The programs of this machine that build and boot guests, and the Debian packages that have them."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from emulation.softroce.failure import SoftRoceError, ToolsMissing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

QEMU = "qemu-system-x86_64"

TO_BOOT: Mapping[str, str] = {QEMU: "qemu-system-x86", "setpriv": "util-linux", "timeout": "coreutils"}
"""Program -> Debian package, of what boots a guest."""

TO_BUILD: Mapping[str, str] = {
    "apt-get": "apt",
    "apt-cache": "apt",
    "dpkg": "dpkg",
    "mmdebstrap": "mmdebstrap",
    "modprobe": "kmod",
    "depmod": "kmod",
    "cpio": "cpio",
    "zstd": "zstd",
    "xz": "xz-utils",
    "mke2fs": "e2fsprogs",
}
"""Program -> Debian package, of what builds an image."""

SEARCHED = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs are looked for after PATH: an ordinary user's PATH often lacks the sbin folders."""


def path() -> str:
    """PATH, with the folders of system programs behind it."""
    return f"{os.environ.get('PATH', '')}:{SEARCHED}"


def missing(programs: Mapping[str, str]) -> tuple[str, ...]:
    """The Debian packages of the programs that are not there, each once, in order."""
    return tuple(dict.fromkeys(package for name, package in programs.items() if not shutil.which(name, path=path())))


def installing(packages: Sequence[str]) -> str:
    """The command that installs Debian packages."""
    sudo = "" if os.geteuid() == 0 else "sudo "
    return f"{sudo}apt-get install --no-install-recommends {' '.join(packages)}"


def need(programs: Mapping[str, str]) -> None:
    """Check that programs are there.

    Raises:
        ToolsMissing: some are not; the message is one command.
    """
    if packages := missing(programs):
        raise ToolsMissing(f"Soft-RoCE guests need programs this machine lacks; install them: {installing(packages)}")


def call(
    command: Sequence[str], *, folder: Path | None = None, timeout: float = 600.0, given: str | None = None
) -> str:
    """What a program of this machine prints.

    Args:
        command: the program and its arguments.
        folder: to run in; this process's own where not given.
        timeout: seconds it may take.
        given: its standard input; nothing where not given.

    Raises:
        SoftRoceError: it failed, or took too long; the message holds the end of what it said.
    """
    environment = {**os.environ, "PATH": path(), "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            timeout=timeout,
            input=given,
            stdin=subprocess.DEVNULL if given is None else None,
            capture_output=True,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SoftRoceError(f"{command[0]} was still running after {timeout:g} s") from None
    except OSError as error:
        raise SoftRoceError(f"cannot run {command[0]}: {error}") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-2000:]
        raise SoftRoceError(f"{' '.join(command[:2])} failed with exit code {done.returncode}: {said}")
    return done.stdout
