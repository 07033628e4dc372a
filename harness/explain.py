"""What a spec comes to: every value with its origin, and the whole as YAML that loads again to the same keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from harness.errors import SpecError, nearest
from harness.load import leaves
from harness.loading.scalars import CORE_SCHEMA, TAG
from harness.loading.validation import dotted

if TYPE_CHECKING:
    from harness.load import Loaded
    from harness.loading.document import Keys
    from harness.trial import Trial


WIDEST = 48
"""Characters of a value that stands beside its origin; a longer one would push the origins out of sight."""


@dataclass(frozen=True)
class Explained:
    """One value."""

    path: str
    """Dotted."""
    value: Any
    """As the models write it: quantities in their base unit."""
    origin: str
    """`file:line:column`, `--set #n`, `sweep` or `default`."""


def shortened(value: Any) -> str:
    """A value as one line of at most `WIDEST` characters, and never as nothing at all."""
    text = " ".join(str(value).split()) or "''"
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 3].rstrip()}..."


def resolved(loaded: Loaded) -> dict[str, Any]:
    """The whole spec as plain data, defaults included, `extends` and overrides applied, the sweep not expanded."""
    data = loaded.experiment.model_dump(mode="json", by_alias=True, exclude={"extends"})
    data["engine"] = loaded.engine_spec.model_dump(mode="json", by_alias=True)
    return data


def explain(loaded: Loaded, path: str = "") -> list[Explained]:
    """Every value of the spec with its origin, or those at and below a dotted path.

    Raises:
        SpecError: the spec has no such path; the message has the nearest.
    """
    data = resolved(loaded)
    rows = [
        Explained(dotted(where), _at(data, where), loaded.origins.get(dotted(where), "default"))
        for where in leaves(data)
    ]
    kept = [row for row in rows if not path or row.path == path or row.path.startswith(f"{path}.")]
    if not kept:
        known = {".".join(row.path.split(".")[:n]) for row in rows for n in range(1, row.path.count(".") + 2)}
        raise SpecError.single(f"the spec has no value at '{path}'", suggestion=nearest(path, sorted(known)))
    return kept


def key_rows(trial: Trial) -> list[tuple[str, str]]:
    """The parts of a trial's run key as (dotted name, value) pairs, in the key's own order."""
    return [(dotted(where), str(_at(trial.key_parts, where))) for where in leaves(trial.key_parts)]


def to_yaml(loaded: Loaded) -> str:
    """The resolved spec as YAML. What it loads to has the same run keys as `loaded`."""
    return yaml.dump(resolved(loaded), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _at(data: Any, path: Keys) -> Any:
    for step in path:
        data = data[step]
    return data


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as something else, so that any reader gets it back as text."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the signature is the library's
        return True


for _tag, _pattern, _first in CORE_SCHEMA:
    _Dumper.add_implicit_resolver(TAG + _tag, _pattern, _first)
