"""`harness doctor`: what this machine can run, and which command gets the rest."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from harness.errors import Exit
from harness.output import columns, emit, say
from harness.verbs.finding import Finding

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

EXTRAS = {
    "rdma": ("grpc", "google.protobuf"),
    "ray": ("ray",),
    "report": ("jinja2", "matplotlib", "pyarrow"),
    "models": ("torch", "transformers"),
    "completion": ("argcomplete",),
}


def run(args: argparse.Namespace) -> int:
    """Print every finding; always 0, because lacking a GPU is no failure."""
    from harness.verbs import doctor_rdma

    findings = [*_machine(), *_devices(), *doctor_rdma.findings(), *_guests(), *_extras()]
    if args.json:
        emit([asdict(f) for f in findings])
        return int(Exit.OK)
    say(columns([("ok" if not f.fix else "--", f.what, f.found) for f in findings], indent=""))
    lacking = [f for f in findings if f.fix]
    if lacking:
        say("\nto get the rest:")
        say(columns([(f.what, f.fix) for f in lacking]))
    return int(Exit.OK)


def _machine() -> Iterator[Finding]:
    from emulation.units import render
    from harness import project

    yield Finding("python", sys.version.split()[0])
    yield Finding("cores", str(len(os.sched_getaffinity(0))))
    yield Finding("memory", render(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "B"))
    yield Finding("git", shutil.which("git") or "not found", "" if shutil.which("git") else "apt-get install git")
    runs = project.runs()
    there = runs if runs.exists() else next(p for p in runs.parents if p.exists())
    writable = os.access(there, os.W_OK)
    yield Finding("results", f"{runs} {'writable' if writable else 'read-only'}", "" if writable else "use --out DIR")


def _devices() -> Iterator[Finding]:
    from harness import backends

    machine = backends.capabilities("local")
    gpus = f"{machine.gpus}" if machine.gpus else "none"
    yield Finding("gpus", gpus, "" if machine.gpus else "run with --on emulated, or on a machine with GPUs")


def _guests() -> Iterator[Finding]:
    """What guests with real verbs need, and how they would be accelerated; boots nothing."""
    from emulation.softroce import status

    found = status.look()
    yield Finding("softroce tools", "missing" if found.install else "all there", found.install)
    built = next((f"{image.kernel}, {image.key}" for image in found.images if image.current), "not built")
    yield Finding("softroce image", built, "" if found.images or found.install else "harness softroce build")
    why = found.why_not_kvm
    # Lacking KVM costs time and nothing else: there is nothing to fix.
    yield Finding("softroce guests", f"emulated in software: {why}" if why else "kvm")


def _extras() -> Iterator[Finding]:
    from importlib.metadata import PackageNotFoundError, packages_distributions, version
    from importlib.util import find_spec

    owners = packages_distributions()
    for extra, modules in EXTRAS.items():
        missing = [m for m in modules if find_spec(m.split(".")[0]) is None]
        versions = []
        for module in modules:
            try:
                versions.append(f"{module} {version(owners.get(module.split('.')[0], [module])[0])}")
            except PackageNotFoundError:
                versions.append(f"{module} missing")
        fix = f"pip install 'harness[{extra}]'" if missing else ""
        yield Finding(f"extra {extra}", ", ".join(versions), fix)
