"""Telling people and programs how a run is going.

The runner reports events to a `Listener`. On a terminal they become a live display, in a log plain lines, and for
programs one JSON document a line. All of it goes to standard error, so that results can be piped.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.records import Record
    from harness.trial import Trial


@dataclass(frozen=True)
class Event:
    """Something that happened to a trial."""

    kind: Literal["start", "retry", "waiting", "record", "cached"]
    """`waiting`: another process is at it; `cached`: its record was there already."""
    trial: Trial
    record: Record | None
    done: int
    """Trials that have a record by now."""
    total: int
    eta: float | None = None
    """Seconds that are probably left; None before anything has been timed."""


class Listener(Protocol):
    """Whoever wants to know."""

    def on(self, event: Event) -> None:
        """Called by the runner; must return quickly."""


class Silent:
    """Says nothing."""

    def on(self, event: Event) -> None:
        """Nothing."""


class Lines:
    """One line a finished trial: for logs and continuous integration."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def on(self, event: Event) -> None:
        """Write a line where something ended or is being done again."""
        if event.kind == "start":
            return
        self._stream.write(f"[{event.done}/{event.total}] {describe(event)}\n")
        self._stream.flush()


class Json:
    """One JSON document a line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def on(self, event: Event) -> None:
        """Write it."""
        self._stream.write(json.dumps(document(event), ensure_ascii=False) + "\n")
        self._stream.flush()


class Live:
    """A display that changes in place: finished lines above, the running trials and the time left below."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live as Display

        self._running: dict[str, float] = {}
        self._last: Event | None = None
        self._console = Console(stderr=True)
        self._display = Display(
            console=self._console, get_renderable=self._bottom, refresh_per_second=4, transient=True
        )

    def __enter__(self) -> Live:
        self._display.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._display.stop()

    def on(self, event: Event) -> None:
        """Keep what is running, and print what has ended."""
        name = f"{event.trial.spec} {event.trial.cell} on {event.trial.target.backend}"
        self._last = event
        if event.kind in {"start", "retry"}:
            self._running[name] = time.monotonic()
        else:
            self._running.pop(name, None)
        if event.kind not in {"start", "waiting"}:
            self._console.print(f"[{event.done}/{event.total}] {describe(event)}", highlight=False, markup=False)

    def _bottom(self) -> Any:
        from rich.text import Text

        now = time.monotonic()
        # The display's own thread asks; the copy is whole whatever the runner does meanwhile.
        lines = [f"  {name}  {now - since:.0f} s" for name, since in list(self._running.items())]
        if self._last is not None:
            left = "" if self._last.eta is None else f", about {duration(self._last.eta)} left"
            lines.append(f"  {self._last.done} of {self._last.total} done{left}")
        return Text("\n".join(lines))


@contextlib.contextmanager
def listener(*, as_json: bool = False, quiet: bool = False) -> Iterator[Listener]:
    """The listener that fits where the output goes."""
    if as_json:
        yield Json(sys.stderr)
    elif quiet:
        yield Silent()
    elif sys.stderr.isatty():
        with Live() as live:
            yield live
    else:
        yield Lines(sys.stderr)


def describe(event: Event) -> str:
    """An event in words."""
    trial = event.trial
    name = f"{trial.spec} {trial.cell} on {trial.target.backend}:{trial.target.hardware}"
    if event.kind == "waiting":
        return f"{name}: another process is at it, waiting"
    if event.record is None:
        return f"{name}: {event.kind}"
    words = f"{name}: {event.record.state}"
    if event.kind == "cached":
        return f"{words} (recorded before)"
    if event.record.failure is not None:
        first = event.record.failure.message.splitlines() or [""]
        where = f" at {event.record.failure.where}" if event.record.failure.where else ""
        words += f": {first[0]}{where}"
    again = "; trying again" if event.kind == "retry" else ""
    return f"{words} ({duration(event.record.seconds)}){again}"


def document(event: Event) -> dict[str, Any]:
    """An event as JSON values."""
    failure = event.record.failure if event.record else None
    return {
        "event": event.kind,
        "key": event.trial.key,
        "spec": event.trial.spec,
        "cell": event.trial.cell,
        "backend": event.trial.target.backend,
        "hardware": event.trial.target.hardware,
        "state": event.record.state.value if event.record else None,
        "seconds": event.record.seconds if event.record else None,
        "failure": failure.message if failure else None,
        "done": event.done,
        "total": event.total,
        "eta": event.eta,
    }


def duration(seconds: float) -> str:
    """Seconds for a person: `0.3 s`, `12 s`, `4 min`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
