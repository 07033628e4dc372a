"""What a plan space allows, as data: the same search over fewer choices.

A peer's planner is a set of constraints (see `presets`), and so is what a person knows about a model. `Space` is what
a YAML file holds; its fields say what they leave out by their defaults, which allow everything.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from harness.api import PlanError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engines.superscaler.graph import Op

Recompute = Literal["none", "block", "mixed"]
Schedule = Literal["gpipe", "1f1b", "interleaved", "zero-bubble"]
Family = Literal["pipeline", "interlaced", "3f1b"]

_CHOICES = {"recompute": get_args(Recompute), "schedules": get_args(Schedule), "families": get_args(Family)}


@dataclass(frozen=True)
class Rule:
    """What operators whose name or target matches may do."""

    pattern: str = "*"
    """Of the operator's name (`layers.*.attention.qkv`), its target (`linear`), or `module:` and its module's."""
    identifiers: tuple[str, ...] | None = None
    """On which it may be split; None for all."""
    least: int = 1
    """Into at least so many parts."""
    most: int = 2**30
    """Into at most so many parts."""
    replica: bool = True
    """Whether devices may repeat one another's work on it."""
    one: bool = False
    """Whether it is split along one identifier by all devices, or not at all."""
    batch: bool | None = None
    """Along the outermost mesh axis: True if on the batch's identifier alone."""
    devices: tuple[int, ...] = ()
    """It lies on these; empty for wherever."""
    stage: int | None = None
    """It is in this stage."""
    recompute: int | None = None
    """Operators with the same number are recomputed together."""

    def matches(self, op: Op) -> bool:
        """Whether it says anything of an operator."""
        if self.pattern.startswith("module:"):
            return fnmatch.fnmatchcase(op.module, self.pattern.removeprefix("module:"))
        return fnmatch.fnmatchcase(op.name, self.pattern) or fnmatch.fnmatchcase(op.target, self.pattern)


@dataclass(frozen=True)
class Space:
    """A plan space."""

    name: str = "full"
    rules: tuple[Rule, ...] = ()
    dims: tuple[int, ...] = (1, 2, 3)
    """How many axes a stage's mesh may have."""
    powers: bool = True
    """Whether axes are powers of two (of what the devices allow) or any divisor."""
    stages: tuple[int, int] = (1, 2**30)
    """Least and most."""
    equal_stages: bool = False
    """Whether all stages have equally many devices and the same mesh (Megatron's uniform degrees)."""
    passes: bool = True
    """Whether a layer that is applied several times may be in another stage each time, else always in the same one."""
    layouts: Literal["any", "data", "megatron"] = "any"
    """Of operators: any split; all on the batch; or tensor parallel in Megatron's way by data parallel."""
    zero: tuple[int, ...] = (0, 1, 2, 3)
    recompute: tuple[Recompute, ...] = ("none", "block", "mixed")
    """No layer, all layers, or some of them."""
    parts: tuple[int, ...] = (1, 2, 4, 8)
    """Of co-shard; 1 is none. Without it, every stage has layers in pieces."""
    schedules: tuple[Schedule, ...] = ("1f1b", "gpipe", "interleaved", "zero-bubble")
    families: tuple[Family, ...] = ("pipeline", "interlaced", "3f1b")
    order: tuple[tuple[str, int, str, int], ...] = field(default=())
    """(operator A, its micro-batch, operator B, its micro-batch): A before B."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Space:
        """From what a YAML file holds.

        Raises:
            PlanError: a key that a space does not have; the message has the nearest.
        """
        known = {f.name for f in fields(cls)}
        for key in data:
            if key not in known:
                raise PlanError(f"a plan space has no {key!r}; did you mean {nearest(key, known)!r}?")
        values = {key: _frozen(value) for key, value in data.items() if key != "rules"}
        for key, choices in _CHOICES.items():
            for value in values.get(key, ()):
                if value not in choices:
                    raise PlanError(
                        f"{key} of a plan space has no {value!r}; did you mean {nearest(str(value), choices)!r}? "
                        f"There are {', '.join(choices)}"
                    )
        rule_keys = {f.name for f in fields(Rule)}
        rules = []
        for rule in data.get("rules", ()):
            for key in rule:
                if key not in rule_keys:
                    raise PlanError(f"a rule has no {key!r}; did you mean {nearest(key, rule_keys)!r}?")
            rules.append(Rule(**{key: _frozen(value) for key, value in rule.items()}))
        return cls(**values, rules=tuple(rules))

    def with_rules(self, rules: Sequence[Rule]) -> Space:
        """The same with more rules."""
        return replace(self, rules=(*self.rules, *rules))


def _frozen(value: Any) -> Any:
    return tuple(_frozen(one) for one in value) if isinstance(value, list | tuple) else value
