"""`harness import`: read what other tools say of a cluster or of a program, and say what was found.

What a file is is seen from what it holds. Measured collectives and descriptions of hosts can be put into a profile; a
Chakra trace can be emulated on one.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import Exit, SpecError
from harness.output import emit, say

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from emulation.graph import Workload
    from emulation.io.host_fragment import Fragment
    from emulation.profile import Profile
    from emulation.wiring import LinkKind

    Found = tuple[dict[str, Any], list[str]]
    """What was found, for programs and for people."""

HEAD = 2**20
"""Bytes looked at to see what a file is; logs may have pages of warnings before their table."""


def run(args: argparse.Namespace) -> int:
    """Read one file, say what it is, and write what --to asks for."""
    from emulation.io import FormatError

    path = Path(args.file)
    reader = _reader(path)
    if args.to and not args.hardware:
        raise SpecError.single("--to needs --hardware: the profile that is completed, or emulated on")
    try:
        found, lines = reader(path, args)
    except FormatError as error:
        raise SpecError.single(str(error)) from error
    if args.json:
        emit(found | ({"file": args.to} if args.to else {}))
    else:
        say("\n".join(lines))
    return int(Exit.OK)


def _reader(path: Path) -> Callable[[Path, argparse.Namespace], Found]:
    """What reads a file, by what it holds."""
    from emulation.io import nccl_tests_log, nccl_xml, topo_matrix

    with path.open("rb") as file:
        head = file.read(HEAD).decode("utf-8", errors="replace")
    if path.suffix == ".et":
        return _trace
    if nccl_xml.recognises(head):
        return lambda path, args: _host(nccl_xml.read(path), "NCCL topology", args)
    if nccl_tests_log.recognises(head):
        return _measurements
    if topo_matrix.recognises(head):
        return lambda path, args: _host(topo_matrix.read(path), "nvidia-smi topo -m", args)
    raise SpecError.single(
        f"{path} is nothing that is understood",
        expected="output of nccl-tests (or its CSV), an NCCL topology file, nvidia-smi topo -m, a Chakra trace (.et)",
    )


def _measurements(path: Path, args: argparse.Namespace) -> Found:
    from emulation.graph import OPS
    from emulation.io import nccl_tests_log

    if args.op and args.op not in OPS:
        raise SpecError.single(f"{args.op!r} is no collective", expected=f"one of: {', '.join(OPS)}")
    rows = nccl_tests_log.read(path, op=args.op or None, ranks=args.ranks or None)
    first, sizes = rows[0], sorted({row.bytes for row in rows})
    found: dict[str, Any] = {
        "kind": "nccl-tests",
        "op": first.op,
        "ranks": first.ranks,
        "hosts": first.hosts,
        "rows": len(rows),
    }
    found |= {"sizes": [sizes[0], sizes[-1]], "busbw": max(row.busbw for row in rows)}
    lines = [
        f"nccl-tests: {first.op} of {first.ranks} ranks, hosts: {first.hosts}, {len(rows)} measurements of {sizes[0]} "
        f"to {sizes[-1]} bytes, busbw up to {max(row.busbw for row in rows) / 1e9:.4g} GB/s"
    ]
    if args.to:
        document = _document(args.hardware)
        link = _farthest(_checked(document), first.hosts)
        made = [table.model_dump(mode="json") for table in nccl_tests_log.tables(rows, link=link, source=_key(path))]
        replaced = {(table["op"], table["ranks"], table["hosts"]) for table in made}
        kept = [
            table
            for table in document.get("collective_tables", [])
            if (table["op"], table["ranks"], table.get("hosts", 1)) not in replaced
        ]
        document["sources"][_key(path)] = f"nccl-tests, {path.name}"
        document["collective_tables"] = kept + made
        lines.append(_write(document | {"name": Path(args.to).stem}, args))
    return found, lines


def _host(fragment: Fragment, kind: str, args: argparse.Namespace) -> Found:
    links = Counter(wire.kind for wire in fragment.wires)
    nics = {group: len(speeds) for group, speeds in fragment.nics.items()}
    found = {"kind": kind, "gpus": fragment.gpus, "nics": nics, "switches": fragment.switches, "links": dict(links)}
    found["notes"] = fragment.notes
    parts = [f"{fragment.gpus} gpu", *(f"{n} {name}" for name, n in {**nics, **fragment.switches}.items())]
    lines = [f"{kind}: {', '.join(parts)}; links: {', '.join(f'{n} {name}' for name, n in sorted(links.items()))}"]
    lines += [f"note: {note}" for note in fragment.notes]
    if args.to:
        lines.append(_write(fragment.onto(_document(args.hardware), name=Path(args.to).stem), args))
    return found, lines


def _trace(path: Path, args: argparse.Namespace) -> Found:
    from emulation.io import chakra

    prefix = path.with_name(path.name.removesuffix(".et").rpartition(".")[0])
    ranks = len(chakra.files(prefix))
    profile = _checked(_document(args.hardware)) if args.hardware else None
    workload = chakra.read(prefix, devices=_devices(prefix, ranks, profile))
    kinds = Counter(node.op or node.kind for node in workload.nodes)
    found: dict[str, Any] = {"kind": "chakra", "ranks": ranks, "nodes": dict(sorted(kinds.items()))}
    lines = [f"Chakra trace of {ranks} ranks: {', '.join(f'{n} {kind}' for kind, n in sorted(kinds.items()))}"]
    if profile is not None:
        seconds, said = _emulated(workload, profile, args)
        found |= {"hardware": profile.name, "seconds": seconds}
        lines += said
    return found, lines


def _devices(prefix: Path, ranks: int, profile: Profile | None) -> list[str]:
    """Where the ranks run: as the files say, if the profile has these; else its accelerators in order."""
    from emulation import layout
    from emulation.io import chakra

    named = chakra.devices(prefix)
    if profile is None:
        return named if all(named) else [f"rank{number}" for number in range(ranks)]
    there = layout.processors(profile)
    if all(name in there for name in named):
        return named
    return (layout.devices(profile) or there)[:ranks]


def _emulated(workload: Workload, profile: Profile, args: argparse.Namespace) -> tuple[float, list[str]]:
    from emulation.evaluate import simulate
    from emulation.graph import WorkloadError
    from emulation.io import chrome_trace
    from emulation.units import render

    try:
        result = simulate(workload, profile)
    except WorkloadError as error:
        raise SpecError.single(str(error)) from error
    low, high = (render(edge, "s") for edge in result.band())
    lines = [
        f"emulated on {profile.name}: {render(result.seconds, 's')} (80 % band {low} to {high}, grade {result.grade})"
    ]
    if args.to:
        chrome_trace.write(Path(args.to), result.timeline(), levels=result.levels())
        lines.append(f"timeline written to {args.to}; open it in https://ui.perfetto.dev")
    return result.seconds, lines


def _document(name: str) -> dict[str, Any]:
    """A profile as data; with its mistakes reported, if it has any."""
    from harness import hardware
    from harness.loading.document import read

    hardware.load_profile(name)
    return dict(read(hardware.path_of(name)).data)


def _checked(document: dict[str, Any]) -> Profile:
    from pydantic import ValidationError

    from emulation.profile import Profile

    try:
        return Profile.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        path = first.get("ctx", {}).get("path") or first["loc"]
        where = ".".join(map(str, path))
        raise SpecError.single(f"the profile would not hold together: {where}: {first['msg']}") from error


def _write(document: dict[str, Any], args: argparse.Namespace) -> str:
    import yaml

    profile = _checked(document)
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=110)
    Path(args.to).write_text(text, "utf-8")
    return f"profile {profile.name!r} written to {args.to}"


def _farthest(profile: Profile, hosts: int) -> LinkKind:
    """The kind of link that a group of accelerators crosses."""
    if hosts > 1:
        return "network"
    kinds = {link.kind for link in profile.hosts[0].links}
    return "nvlink" if "nvlink" in kinds else "pcie" if "pcie" in kinds else "cpu"


def _key(path: Path) -> str:
    """How a profile's figures name the file they are from."""
    return "".join(c if c.isalnum() else "-" for c in path.stem.lower()).strip("-") or "nccl-tests"
