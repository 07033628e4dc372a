"""`harness ls`: what there is to name in a spec, and what has been recorded."""

from __future__ import annotations

from textwrap import shorten
from typing import TYPE_CHECKING, Any

from harness.errors import Exit, SpecError, nearest
from harness.output import columns, complain, emit, say

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable


def run(args: argparse.Namespace) -> int:
    """List one kind of thing; a second word narrows it to one name."""
    lister: Callable[[argparse.Namespace], list[dict[str, Any]]] = globals()[f"_{args.what}"]
    rows = lister(args)
    if args.json:
        emit(rows)
    elif rows:
        say(columns([tuple(rows[0]), *(tuple(map(_text, row, row.values())) for row in rows)], indent=""))
    else:
        complain(f"no {args.what}")
    return int(Exit.OK)


def _text(column: str, value: Any) -> str:
    """A cell of the table; a description is cut to its beginning, and whole in JSON."""
    return shorten(str(value), 80, placeholder=" ...") if column == "description" else str(value)


def _only(rows: list[dict[str, Any]], name: str, key: str) -> list[dict[str, Any]]:
    if not name:
        return rows
    kept = [row for row in rows if row[key] == name]
    if not kept:
        raise SpecError.single(f"no {key} {name!r}", suggestion=nearest(name, [str(r[key]) for r in rows]))
    return kept


def _specs(args: argparse.Namespace) -> list[dict[str, Any]]:
    from harness import project
    from harness.loading.document import read

    root = project.root()
    rows = []
    for path in sorted((root / "specs").rglob("*.yaml")):
        if path.is_relative_to(root / "specs" / "hardware"):
            continue
        try:
            data = read(path).data
        except SpecError as error:
            complain(str(error))
            continue
        if not isinstance(data, dict):
            complain(f"{path.relative_to(root)}: not a spec: expected a mapping")
            continue
        engine = data.get("engine", {})
        rows.append(
            {
                "name": data.get("name", ""),
                "engine": engine.get("name", "") if isinstance(engine, dict) else "",
                "file": str(path.relative_to(root)),
                "description": " ".join(str(data.get("description", "")).split()),
            }
        )
    return _only(rows, args.name, "name")


def _engines(args: argparse.Namespace) -> list[dict[str, Any]]:
    from harness import registry

    rows: list[dict[str, Any]] = [
        {"name": found.name, "package": found.package, "state": found.error or "ok"} for found in registry.listing()
    ]
    return _only(rows, args.name, "name")


def _hardware(args: argparse.Namespace) -> list[dict[str, Any]]:
    from harness import hardware

    rows = []
    for name in [args.name] if args.name and hardware.known(args.name) else hardware.names():
        try:
            profile = hardware.load_profile(name)
        except SpecError as error:
            if name == args.name:
                raise
            complain(str(error))
            continue
        has = profile.capabilities()
        rows.append(
            {
                "name": name,
                "hosts": has.hosts,
                "gpus/host": has.gpus,
                "rdma": "yes" if has.rdma else "no",
                "grade": str(profile.grade),
                "calibrated": profile.calibration.date[:10] if profile.calibration else "",
                "digest": profile.digest[:12],
                "description": " ".join(profile.description.split()),
            }
        )
    return _only(rows, args.name, "name")


def _metrics(args: argparse.Namespace) -> list[dict[str, Any]]:
    from harness import registry

    return [
        {
            "engine": name,
            "metric": metric.name,
            "unit": metric.unit,
            "better": str(metric.better),
            "labels": ",".join(metric.labels),
            "description": metric.description,
        }
        for name in ([args.name] if args.name else registry.names())
        for metric in registry.find(name).Spec.METRICS
    ]


def _references(args: argparse.Namespace) -> list[dict[str, Any]]:
    from emulation.units import render
    from harness import references

    published = references.load_all()
    papers = [args.name] if args.name else published.papers()
    return [
        {
            "path": found.path,
            "value": "not known" if found.value is None else render(found.value, found.unit),
            "bound": str(found.bound),
            "source": found.place,
        }
        for paper in papers
        for table in published.paper(paper).tables
        for found in published.select(f"{paper}/{table}")
    ]


def _runs(args: argparse.Namespace) -> list[dict[str, Any]]:
    from harness.verbs import stores

    store = stores.opened(args)
    entries = store.list(spec=args.name)
    known = [] if entries or not args.name else sorted({entry.spec for entry in store.list()})
    if known:
        raise SpecError.single(f"no runs of {args.name!r}", suggestion=nearest(args.name, known))
    return [
        {
            "key": e.key if args.json else e.key[:12],
            "spec": e.spec,
            "cell": e.cell,
            "backend": e.backend,
            "hardware": e.hardware,
            "state": e.state,
            "started": e.started,
            "seconds": e.seconds if args.json else f"{e.seconds:.2f}",
        }
        for e in entries
    ]
