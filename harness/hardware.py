"""Hardware profiles by name: `a100x8-hdr` is `specs/hardware/a100x8-hdr.yaml`, and `a100x8-hdr@128` has 128 hosts.

The project that is worked in comes first; a profile it does not have is taken from the one the harness came with.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from harness import project
from harness.errors import Problem, SpecError, nearest

if TYPE_CHECKING:
    from pathlib import Path

    from emulation.profile import Profile
    from harness.loading.document import Document


def folders() -> list[Path]:
    """Where profiles are looked for, in order."""
    return list(dict.fromkeys([project.hardware(), project.shipped() / "specs" / "hardware"]))


def names() -> list[str]:
    """Every profile that can be named, sorted."""
    return sorted({path.stem for folder in folders() for path in folder.glob("*.yaml") if path.is_file()})


def split(name: str) -> tuple[str, int | None]:
    """Name of the file, and how many hosts there are to be: (`a100x8-hdr`, 128); None for as many as the file says."""
    found = re.fullmatch(r"(.+)@([1-9]\d{0,4})", name)
    return (found[1], int(found[2])) if found else (name, None)


def known(name: str) -> bool:
    """Whether a name leads to a profile."""
    return split(name)[0] in names()


def unknown(name: str) -> SpecError:
    """What to say of a name that no profile has."""
    there = names()
    base, at, _ = name.partition("@")
    if at and base in there:
        what = f"{name!r} has no number of hosts (1 to 99999) after the '@'"
        return SpecError.single(what, expected=f"'{base}' or, with 128 hosts, '{base}@128'")
    return SpecError.single(
        f"no hardware profile {name!r}", expected=f"one of: {', '.join(there)}", suggestion=nearest(base, there)
    )


def path_of(name: str) -> Path:
    """The file of a profile.

    Raises:
        SpecError: there is none; the message has the nearest name.
    """
    if not known(name):
        raise unknown(name)
    file = f"{split(name)[0]}.yaml"
    return next(path for folder in folders() if (path := folder / file).is_file())


def load_profile(name: str) -> Profile:
    """Read and check a profile.

    Raises:
        SpecError: there is no such profile, or the file has mistakes (each with its place).
    """
    from emulation.profile import Profile
    from harness.load import checked
    from harness.loading.inherit import read_with_bases

    path = path_of(name)
    document = read_with_bases(path)
    base, hosts = split(name)
    if hosts is not None:
        document = _with_hosts(document, name, hosts)
    profile = checked(document, Profile)
    if split(profile.name)[0] != base:
        # Records name the profile; two files of one name could not be told apart in them.
        what = f"the profile is named {profile.name!r}, and its file {path.name}"
        raise SpecError([document.place(Problem(("name",), what, f"'name: {base}'"))])
    return profile


def _with_hosts(document: Document, name: str, hosts: int) -> Document:
    """The document with so many hosts of its one group, under the name that says so."""
    from harness.loading.grafting import with_value

    groups = document.data.get("hosts") if isinstance(document.data, dict) else None
    if not isinstance(groups, list) or len(groups) != 1:
        what = f"{name!r} asks for {hosts} hosts of a profile that does not have one group of them"
        raise SpecError([document.place(Problem(("hosts",), what, "one group of hosts"))])
    data = with_value(document.data, ("hosts", 0, "count"), hosts)
    if isinstance(data.get("name"), str):
        data = with_value(data, ("name",), f"{data['name']}@{hosts}")
    return replace(document, data=data)
