"""What runs on the nodes of a Ray cluster: watchmen over single ranks, and the board they share.

Nothing here imports Ray before it runs on a node; the driver turns these classes into actors.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.backends import machine
from harness.backends.group import RankGroup, Share
from harness.backends.process import Zygote
from harness.errors import StoreError
from harness.execution import assignment, rendezvous

if TYPE_CHECKING:
    from harness.backends.base import Capabilities
    from harness.backends.outcome import Remains, Stopped

RELAY_FIRST, RELAY_LAST = 0.005, 0.1
"""Seconds between looks at the board: ranks meet at the start, and should not be disturbed later."""


@dataclass(frozen=True)
class Report:
    """What one rank left, brought back from its node."""

    remains: Remains
    stopped: Stopped | None
    files: dict[str, bytes] = field(repr=False)
    """Logs, journal and artifacts by path, relative to the attempt's directory."""
    hardware: dict[str, Any]
    problem: str = ""
    """Why there is no result for a reason outside the trial (the node's disk is full)."""


class Board:
    """Every key that a rank has published, in order."""

    def __init__(self) -> None:
        self._published: list[tuple[str, str]] = []

    def publish(self, new: dict[str, str]) -> None:
        """Put up keys."""
        self._published.extend(new.items())

    def since(self, position: int) -> list[tuple[str, str]]:
        """Keys put up from a position on."""
        return self._published[position:]


class Watchman:
    """Starts one rank on its node, watches over it, and brings back what it leaves."""

    def __init__(self, board: Any) -> None:
        self._board = board
        self._group: RankGroup | None = None
        self._asked = ""
        self._place = Path(tempfile.mkdtemp(prefix="harness-ray-"))

    def carry_out(self, dump: dict[str, Any], rank: int, scratch: str, grace: float) -> Report:
        """Run the rank to its end."""
        trial = assignment.load(dump)
        shared = Path(tempfile.gettempdir()) / scratch
        shared.mkdir(exist_ok=True)
        zygote = Zygote()
        share = Share((rank,), address=_address() if trial.ranks > 1 else "127.0.0.1", scratch=str(shared))
        try:
            self._group = RankGroup(trial, self._place, zygote, mode="run", grace=grace, share=share)
            return self._watch(self._group, _Relay(self._board, self._place / "rendezvous"))
        finally:
            zygote.close()

    def node(self) -> str:
        """The node it is on."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def stop(self, reason: str) -> None:
        """Ask the rank to end: `cancel` for the user, `peer` because another rank ended badly."""
        self._asked = reason

    def clean(self, scratch: str) -> None:
        """Delete what was needed on this node."""
        shutil.rmtree(self._place, ignore_errors=True)
        shutil.rmtree(Path(tempfile.gettempdir()) / scratch, ignore_errors=True)

    def _watch(self, group: RankGroup, relay: _Relay) -> Report:
        while True:
            try:
                outcome = group.poll()
            except StoreError as error:
                return self._report(group, str(error))
            if outcome is not None:
                # A key set just before the end is one that another rank may be waiting for.
                relay.turn()
                return self._report(group)
            asked, self._asked = self._asked, ""
            if asked == "cancel":
                group.cancel()
            elif asked:
                group.give_up()
            time.sleep(min(group.pause(), relay.turn()))

    def _report(self, group: RankGroup, problem: str = "") -> Report:
        from harness import provenance

        files = {
            str(p.relative_to(self._place)): p.read_bytes()
            for folder in ("artifacts", *(f"rank{r}" for r in group.ranks))
            for p in sorted((self._place / folder).rglob("*"))
            if p.is_file()
        }
        (remains,) = group.remains()
        return Report(remains, group.stopped, files, provenance.hardware(), problem)


class _Relay:
    """Copies keys between the rank's own rendezvous directory and the board."""

    def __init__(self, board: Any, directory: Path) -> None:
        self._board = board
        self._directory = directory
        self._position = 0
        self._known: set[str] = set()
        self._pause = RELAY_FIRST

    def turn(self) -> float:
        """Copy both ways once.

        Returns:
            Seconds to wait before the next turn.
        """
        if self._board is None:
            return RELAY_LAST
        import ray

        own = {k: v for k, v in rendezvous.keys(self._directory).items() if k not in self._known}
        if own:
            ray.get(self._board.publish.remote(own))
        self._known.update(own)
        news = ray.get(self._board.since.remote(self._position))
        self._position += len(news)
        for key, value in news:
            if key not in self._known:
                rendezvous.publish(self._directory, key, value)
                self._known.add(key)
        self._pause = RELAY_FIRST if own or news else min(self._pause * 1.2, RELAY_LAST)
        return self._pause


def look_around() -> Capabilities:
    """What the node that this runs on has, whatever Ray hides from it."""
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    return machine.capabilities()


def _address() -> str:
    import ray

    return str(ray.util.get_node_ip_address())
