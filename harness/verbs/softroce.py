"""`harness softroce`: guests with real RDMA verbs, to build, to run commands in, and to enter."""

from __future__ import annotations

import re
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import guests, project
from harness.errors import BackendError, EnvironmentLacks, Exit, SpecError
from harness.output import columns, complain, emit, say

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from emulation.softroce import Cluster, Ended, Host, Task, Wire
    from emulation.units import Dimension

TIMED_OUT = 124
"""Exit code of a command that was stopped for its time, as coreutils' `timeout` has it."""
BY_SIGNAL = 128
"""Exit code of a command that a signal ended, less the signal's number, as shells have it."""
LOOK = 0.05
"""Seconds between two looks at what commands print."""
SHELL = 'cd "$(cat /run/folder 2>/dev/null || echo /)"; eval "$0"; code=$?; pwd > /run/folder; exit $code'


def run(args: argparse.Namespace) -> int:
    """Carry out the action that was named.

    Raises:
        SpecError: an option makes no sense.
        EnvironmentLacks: this machine lacks what guests need.
        BackendError: a guest did not come up, or got lost.
    """
    if args.command and args.action != "run":
        raise SpecError.single(f"'{args.action}' takes no command", expected="nothing behind --")
    action = {"build": _build, "run": _run, "shell": _shell, "status": _status, "clean": _clean}[args.action]
    with _told():
        return action(args)


@contextmanager
def _told() -> Iterator[None]:
    """Errors of the guests as errors of the harness."""
    from emulation.softroce import Refused, SoftRoceError, ToolsMissing

    try:
        yield
    except ToolsMissing as error:
        raise EnvironmentLacks(str(error)) from error
    except Refused as error:
        raise SpecError.single(str(error)) from error
    except SoftRoceError as error:
        raise BackendError(str(error)) from error


def _build(args: argparse.Namespace) -> int:
    """Build what is not built yet, and say what there is."""
    from emulation.softroce import Image

    image = Image.build()
    disks = guests.layers(args.packages)
    if args.json:
        emit({"image": {**image.about, "folder": str(image.folder)}, "layers": [d.about for d in disks]})
        return int(Exit.OK)
    _describe(image.about, image.folder)
    for disk in disks:
        about: Any = disk.about
        _line(f"layer {disk.name}", f"{_size(about['disk_bytes'])}, built in {about['seconds']} s")
        _line("", ", ".join(about["requirements"]))
    return int(Exit.OK)


def _run(args: argparse.Namespace) -> int:
    """Boot guests, run the command in each (or in one), and pass on the first exit code that is not 0."""
    from emulation.units import DURATION

    if not args.command:
        raise SpecError.single("no command to run", expected="harness softroce run [options] -- COMMAND ...")
    puts = [_pair(text) for text in args.put]
    timeout = _quantity("--timeout", args.timeout, DURATION)
    with _cluster(args) as cluster:
        chosen = _chosen(cluster, args)
        for host in chosen:
            for source, place in puts:
                host.put(source, place)
        ends = _together(cluster, chosen, args.command, timeout, printed=not args.json)
        fetched = [_fetch(host, place) for place in args.get for host in chosen]
        counters = {host.number: host.counters() for host in chosen if not host.lost}
    code = next((c for c in (_exit_code(end) for end in ends) if c), int(Exit.OK))
    if args.json:
        told = [
            {"guest": h.number, **vars(e), "output": _printed(h, "output"), "errors": _printed(h, "errors")}
            for h, e in zip(chosen, ends, strict=True)
        ]
        emit({"guests": told, "counters": counters, "logs": str(cluster.folder), "fetched": fetched})
    else:
        complain(f"logs: {cluster.folder}")
    return code


def _shell(args: argparse.Namespace) -> int:
    """Boot guests and run what is typed; `@1` turns to guest 1, the end of the input ends."""
    with _cluster(args) as cluster:
        host = _chosen(cluster, args)[0]
        complain(f"{len(cluster)} guests are up. Commands go to one of them, @N to another; 'exit' ends.")
        while (line := _typed(f"guest{host.number}> ")) not in (None, "exit"):
            assert line is not None
            if re.fullmatch(r"@\d+", line):
                number = int(line[1:])
                if number < len(cluster):
                    host = cluster[number]
                else:
                    complain(f"there are guests 0 to {len(cluster) - 1}")
            elif line:
                end = _together(cluster, [host], ["bash", "-c", SHELL, line], None, printed=True)[0]
                if end.code:
                    complain(f"exit code {end.code}")
    return int(Exit.OK)


def _status(args: argparse.Namespace) -> int:
    """What is built, how guests are accelerated, what is missing, which clusters run."""
    from emulation.softroce import status

    found = status.look()
    if args.json:
        emit(found.as_json())
        return int(Exit.OK)
    _line("programs", f"missing; {found.install}" if found.install else "all there")
    _line("accelerator", f"tcg (no KVM: {found.why_not_kvm})" if found.why_not_kvm else "kvm")
    _line("cache", f"{found.cache}, {_size(found.cache_bytes)}")
    for image in found.images:
        note = "" if image.current else ", of an older recipe or package list"
        _line("image", f"{image.key}: kernel {image.kernel}, {_size(image.disk_bytes)}{note}")
    if not found.images:
        _line("image", "none; harness softroce build")
    for layer in found.layers:
        _line("layer", layer)
    for guest in found.guests:
        _line("running", f"process {guest.pid}: {guest.folder}")
    return int(Exit.OK)


def _clean(args: argparse.Namespace) -> int:
    """Delete images and disks; running guests keep what they have open."""
    from emulation.softroce import cache

    folder = cache.root()
    there = folder.is_dir()
    shutil.rmtree(folder, ignore_errors=True)
    emit({"deleted": str(folder) if there else None}) if args.json else say(
        f"deleted {folder}" if there else "nothing was built"
    )
    return int(Exit.OK)


# What an action needs


@contextmanager
def _cluster(args: argparse.Namespace) -> Iterator[Cluster]:
    from emulation.softroce import Cluster, Share
    from emulation.units import BYTES

    folder = _logs(args)
    shared = folder / "share"
    code = guests.code()
    cluster = Cluster(
        args.hosts,
        folder,
        wire=_wire(args),
        memory=int(_quantity("--memory", args.memory, BYTES)),
        layers=guests.layers(args.packages),
        shares=[Share(shared, "/share", writable=True), *(Share(f, str(f)) for f in code)],
        python_path=[str(f) for f in code],
    )
    shared.mkdir(parents=True)
    complain(f"booting {args.hosts} guests ({cluster.accelerator}, kernel {cluster.image.release}) ...")
    with cluster:
        yield cluster


def _logs(args: argparse.Namespace) -> Path:
    """A new folder, so that the logs of an earlier run are kept."""
    from datetime import UTC, datetime

    if args.to:
        folder = Path(args.to)
        if folder.exists() and any(folder.iterdir()):
            raise SpecError.single(f"--to {args.to} is not empty", expected="a new folder")
        return folder
    return project.root() / "results" / "softroce" / datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")


def _wire(args: argparse.Namespace) -> Wire:
    from emulation.softroce import Wire
    from emulation.units import DURATION, FRACTION, RATE

    delay = 0.0 if args.delay == "0" else _quantity("--delay", args.delay, DURATION)
    rate = _quantity("--rate", args.rate, RATE) * 8 if args.rate else 0.0
    return Wire(loss=_quantity("--loss", args.loss, FRACTION), delay=delay, rate=rate)


def _quantity(option: str, text: str, dimension: Dimension) -> float:
    from emulation.units import parse

    try:
        return parse(text, dimension)
    except ValueError as error:
        raise SpecError.single(f"{option} {text}: {error}") from error


def _pair(text: str) -> tuple[Path, str]:
    """FILE or FILE:PLACE; a file goes to /tmp under its own name."""
    name, _, place = text.partition(":")
    source = Path(name)
    if not source.is_file():
        raise SpecError.single(f"--put {text}: there is no file {name}")
    if place and not place.startswith("/"):
        raise SpecError.single(f"--put {text}: {place!r} is not absolute", expected=f"/{place}")
    return source, place or f"/tmp/{source.name}"


def _chosen(cluster: Cluster, args: argparse.Namespace) -> list[Host]:
    if args.host < 0:
        return list(cluster.hosts)
    if args.host >= len(cluster):
        raise SpecError.single(f"--host {args.host}", expected=f"a guest, 0 to {len(cluster) - 1}")
    return [cluster[args.host]]


# Running and printing


def _together(
    cluster: Cluster, hosts: Sequence[Host], command: Sequence[str], timeout: float | None, *, printed: bool
) -> list[Ended]:
    """Run a command in several guests at a time and print what it prints as it comes."""
    import time

    tasks: list[Task] = []
    for host in hosts:
        for name in ("output", "errors"):
            (host.folder / f"{name}.log").write_bytes(b"")
        output, errors = "/control/output.log", "/control/errors.log"
        tasks.append(host.start(command, timeout=timeout, folder="/root", output=output, errors=errors))
    tails = [_Tail(host, several=len(cluster) > 1 and len(hosts) > 1) for host in hosts]
    try:
        over = False
        while not over:
            over = all(task.over for task in tasks)
            if printed:
                for tail in tails:
                    tail.show(last=over)
            if not over:
                time.sleep(LOOK)
    except KeyboardInterrupt:
        for task in tasks:
            task.signal(9)
        raise
    return [task.wait(0) for task in tasks]


class _Tail:
    """Prints what a guest's command has printed since the last look, whole lines, each behind the guest's number."""

    def __init__(self, host: Host, *, several: bool) -> None:
        self._prefix = f"[{host.number}] ".encode() if several else b""
        self._files = [(host.folder / "output.log", sys.stdout), (host.folder / "errors.log", sys.stderr)]
        self._shown = [0, 0]

    def show(self, *, last: bool) -> None:
        """Print what is new; at the last look also a line without an end."""
        for index, (path, stream) in enumerate(self._files):
            with path.open("rb") as file:
                file.seek(self._shown[index])
                new = file.read()
            if not last:
                new = new[: new.rfind(b"\n") + 1]
            self._shown[index] += len(new)
            for line in new.splitlines(keepends=True):
                stream.write((self._prefix + line).decode("utf-8", "replace"))
            stream.flush()


def _printed(host: Host, name: str) -> str:
    return (host.folder / f"{name}.log").read_text("utf-8", "replace")


def _fetch(host: Host, place: str) -> str:
    target = host.folder / "fetched" / Path(place).name
    host.get(place, target)
    return str(target)


def _exit_code(end: Ended) -> int:
    if end.timed_out:
        return TIMED_OUT
    return end.code if end.code >= 0 else BY_SIGNAL - end.code


def _typed(prompt: str) -> str | None:
    try:
        return input(prompt if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None


def _describe(about: dict[str, Any], folder: Path) -> None:
    _line("kernel", about["kernel"])
    _line("image", f"{folder} (key {about['key']})")
    _line("size", f"{_size(about['disk_bytes'])} on disk, {_size(about['tree_bytes'])} of files")
    _line("built in", f"{about['seconds']} s")
    packages = [f"{name} {version}" for name, version in sorted(about["packages"].items())]
    _line("packages", packages[0])
    for package in packages[1:]:
        _line("", package)


def _size(value: float) -> str:
    from emulation.units import render

    return render(round(value / 2**20) * 2**20, "B") if value >= 2**20 else render(value, "B")


def _line(name: str, text: object) -> None:
    say(columns([(f"{name:12}", str(text))], indent=""))
