"""Where an experiment runs: the spec's targets, narrowed or replaced by `--on`.

`--on BACKEND` keeps the spec's targets of that backend (those that leave the choice open count too); a spec without
one gets one, with the hardware of its first target. `--on BACKEND:PROFILE` is that one target and no other.
What `auto` comes to is decided by `resolve`, which knows the needs of each cell.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from harness import hardware
from harness.errors import Position, Problem, SpecError, nearest
from harness.loading.document import excerpt
from harness.loading.keys import RAY_SCHEME
from harness.spec import Target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.spec import Experiment

OPTION = "--on"
BACKENDS: tuple[str, ...] = get_args(Target.model_fields["backend"].annotation)


@dataclass(frozen=True)
class Wish:
    """What `--on` asks for."""

    backend: str = ""
    profile: str = ""


def parse(on: str, swept: Sequence[str] = ()) -> Wish:
    """Read the value of `--on`.

    Args:
        on: `local`, `emulated`, `softroce`, `ray` or `auto`; `emulated:PROFILE` and such; `ray://HOST:PORT`; or empty.
        swept: paths of the sweep, which `--on` must not contradict.

    Raises:
        SpecError: it is none of these, or the spec sweeps what it sets.
    """
    if on.startswith(RAY_SCHEME):
        if not re.fullmatch(r"[^\s/:]+:\d+|\[[0-9a-fA-F:.]+\]:\d+", on.removeprefix(RAY_SCHEME)):
            raise _refused(on, Problem((), f"{on!r} names no Ray cluster", "ray://HOST:PORT, as in ray://head:10001"))
        backend, profile = "ray", ""
    else:
        backend, _, profile = on.partition(":")
    if on and backend not in BACKENDS:
        expected = "one of auto, local, emulated, emulated:PROFILE, softroce, softroce:PROFILE, ray, ray://HOST:PORT"
        raise _refused(on, Problem((), f"no backend {backend!r}", expected, nearest(backend, BACKENDS)))
    if on.endswith(":"):
        raise _refused(on, Problem((), f"{on!r} names no hardware profile", f"{backend}:PROFILE"))
    if profile and not hardware.known(profile):
        raise _refused(on, hardware.unknown(profile).problems[0])
    for path, given in (("on.backend", backend), ("on.hardware", profile)):
        if given and path in swept:
            raise _refused(on, Problem((), f"'{path}' is swept by the spec, and given by --on", "one of the two"))
    return Wish(backend, profile)


def _refused(on: str, problem: Problem) -> SpecError:
    where = Position(OPTION, 1, 1, max(1, len(on)))
    return SpecError([Problem((), problem.what, problem.expected, problem.suggestion, where, excerpt((on,), where))])


def wanted(experiment: Experiment, wish: Wish) -> list[Target]:
    """The targets to run on, each once."""
    stated = experiment.on if isinstance(experiment.on, list) else [experiment.on]
    stated = stated or [Target()]
    if wish.profile:
        return [_target(wish.backend, wish.profile)]
    if not wish.backend:
        return _distinct(stated)
    if wish.backend == "auto":
        return _distinct([_target("auto", target.hardware) for target in stated])
    kept = [t for t in stated if t.backend in (wish.backend, "auto")] or stated[:1]
    return _distinct([_target(wish.backend, target.hardware) for target in kept])


def _target(backend: str, profile: str) -> Target:
    return Target.model_validate({"backend": backend, "hardware": profile})


def _distinct(targets: Sequence[Target]) -> list[Target]:
    return list({(t.backend, t.hardware): t for t in targets}.values())
