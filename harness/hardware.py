"""Hardware profiles by name: `a100x8-hdr` is `specs/hardware/a100x8-hdr.yaml`.

The project that is worked in comes first; a profile it does not have is taken from the one the harness came with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness import project
from harness.errors import Problem, SpecError, nearest

if TYPE_CHECKING:
    from pathlib import Path

    from emulation.profile import Profile


def folders() -> list[Path]:
    """Where profiles are looked for, in order."""
    return list(dict.fromkeys([project.hardware(), project.shipped() / "specs" / "hardware"]))


def names() -> list[str]:
    """Every profile that can be named, sorted."""
    return sorted({path.stem for folder in folders() for path in folder.glob("*.yaml") if path.is_file()})


def unknown(name: str) -> SpecError:
    """What to say of a name that no profile has."""
    known = names()
    return SpecError.single(
        f"no hardware profile {name!r}", expected=f"one of: {', '.join(known)}", suggestion=nearest(name, known)
    )


def path_of(name: str) -> Path:
    """The file of a profile.

    Raises:
        SpecError: there is none; the message has the nearest name.
    """
    if name not in names():
        raise unknown(name)
    return next(path for folder in folders() if (path := folder / f"{name}.yaml").is_file())


def load_profile(name: str) -> Profile:
    """Read and check a profile.

    Raises:
        SpecError: there is no such profile, or the file has mistakes (each with its place).
    """
    from emulation.profile import Profile
    from harness.load import load_yaml_model
    from harness.loading.document import read

    path = path_of(name)
    profile = load_yaml_model(path, Profile)
    if profile.name != name:
        # Records name the profile; two files of one name could not be told apart in them.
        document = read(path)
        what = f"the profile is named {profile.name!r}, and its file {path.name}"
        raise SpecError([document.place(Problem(("name",), what, f"'name: {name}'"))])
    return profile
