"""Fluids on links: who is moving, how fast, and who is done next.

Rates change only when an activity starts, ends or is altered, or a link is. All changes of one instant are taken
together; then the rates of the connected part that was touched (activities and links that reach one another) are
computed anew, and nobody else's. An activity whose rate did not change keeps the finish time it was given, so untouched
ones cannot drift.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from emulation.evaluate.sharing import fair_rates
from emulation.units import PICOSECONDS_PER_SECOND

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from emulation.topology import DirectedLink


class Stalled(RuntimeError):
    """An activity that cannot progress: a link on its way has no capacity."""


@dataclass
class Activity:
    """Bytes in motion."""

    weights: tuple[tuple[int, float], ...]
    cap: float
    remaining: float
    """At time `since`."""
    rate: float = 0.0
    since: int = 0
    """Picoseconds."""
    finish: int = -1
    version: int = 0
    """Raised with every new finish time, so that an old one can be told."""


class Fluids:
    """The activities now in motion, by number (numbers only rise, so order is order of arrival)."""

    def __init__(self, links: Sequence[DirectedLink], describe: Callable[[int], str] = str) -> None:
        self._links = links
        self._describe = describe
        self._moving: dict[int, Activity] = {}
        self._users: dict[int, dict[int, None]] = {}
        self._touched: dict[int, None] = {}
        self._due: list[tuple[int, int, int]] = []
        self._busy_since: dict[int, int] = {}
        self.busy: dict[int, int] = {}
        """Link -> picoseconds in which anything moved over it."""
        self.solves = 0

    @property
    def changed(self) -> bool:
        """Whether rates have to be computed anew."""
        return bool(self._touched)

    def start(self, number: int, activity: Activity, now: int) -> None:
        """Put an activity in motion; it has no rate until `settle`."""
        activity.since = now
        self._moving[number] = activity
        self._touched[number] = None
        self._enter(number, now)

    def alter(self, number: int, weights: tuple[tuple[int, float], ...], cap: float, now: int) -> None:
        """Let an activity go on over other links or with another cap; it keeps what it has left."""
        activity = self._moving[number]
        if weights != activity.weights:
            self._leave(number, now)
            activity.weights = weights
            self._enter(number, now)
        activity.cap = cap
        self._touched[number] = None

    def stretch(self, number: int, factor: float, now: int) -> None:
        """Let what an activity has left be this many times as much."""
        activity = self._moving[number]
        self._advance(activity, now)
        activity.remaining *= factor
        # Its rate may well be what it was; without one it is given a new time to finish.
        activity.rate = 0.0
        self._touched[number] = None

    def alter_links(self, links: Sequence[DirectedLink]) -> None:
        """Let the links have other capacities from now on."""
        for number, users in self._users.items():
            if links[number].capacity != self._links[number].capacity:
                self._touched.update(users)
        self._links = links

    def stop(self, number: int, now: int) -> None:
        """Take an activity out before it is done."""
        self._remove(number, now)

    @property
    def moving(self) -> list[int]:
        """Numbers of the activities in motion (or standing still), in order of arrival."""
        return sorted(self._moving)

    def finished(self, now: int) -> list[int]:
        """Take out what is done by `now`, in order of arrival."""
        done: list[int] = []
        while self._due and self._due[0][0] <= now:
            _, number, version = heapq.heappop(self._due)
            activity = self._moving.get(number)
            if activity is not None and activity.version == version:
                done.append(number)
                self._remove(number, now)
        return sorted(done)

    def next_finish(self) -> int | None:
        """When the next activity is done at the present rates."""
        while self._due:
            finish, number, version = self._due[0]
            if number in self._moving and self._moving[number].version == version:
                return finish
            heapq.heappop(self._due)
        return None

    def settle(self, now: int, *, patient: bool = False) -> None:
        """Compute the rates of everything that the changes since the last call can have touched.

        Raises:
            Stalled: an activity was given no rate, and `patient` does not say that links will change yet; the message
                names the link.
        """
        numbers = self._component()
        self._touched.clear()
        if not numbers:
            return
        self.solves += 1
        moving = [self._moving[number] for number in numbers]
        capacities = {link: self._links[link].capacity for a in moving for link, _ in a.weights}
        rates = fair_rates(capacities, [a.weights for a in moving], [a.cap for a in moving])
        for number, activity, rate in zip(numbers, moving, rates, strict=True):
            if rate <= 0 and not patient:
                raise Stalled(self._explain(number))
            if rate != activity.rate:
                self._move(number, activity, rate, now)

    def _move(self, number: int, activity: Activity, rate: float, now: int) -> None:
        self._advance(activity, now)
        activity.rate = rate
        activity.version += 1
        if not rate:
            return
        wait = 0.0 if math.isinf(rate) else activity.remaining / rate * PICOSECONDS_PER_SECOND
        activity.finish = now + round(wait)
        heapq.heappush(self._due, (activity.finish, number, activity.version))

    @staticmethod
    def _advance(activity: Activity, now: int) -> None:
        if activity.rate:
            passed = (now - activity.since) / PICOSECONDS_PER_SECOND
            activity.remaining = max(0.0, activity.remaining - activity.rate * passed)
        activity.since = now

    def _component(self) -> list[int]:
        """Everything that shares a link, directly or through others, with what was touched."""
        seen = dict.fromkeys(number for number in self._touched if number in self._moving)
        links: dict[int, None] = {}
        queue = list(seen)
        for number in queue:
            for link, _ in self._moving[number].weights:
                if link not in links:
                    links[link] = None
                    fresh = [user for user in self._users[link] if user not in seen]
                    seen.update(dict.fromkeys(fresh))
                    queue += fresh
        return sorted(seen)

    def _remove(self, number: int, now: int) -> None:
        self._leave(number, now)
        del self._moving[number]
        self._touched.pop(number, None)

    def _enter(self, number: int, now: int) -> None:
        for link, _ in self._moving[number].weights:
            if not self._users.setdefault(link, {}):
                self._busy_since[link] = now
            self._users[link][number] = None

    def _leave(self, number: int, now: int) -> None:
        for link, _ in self._moving[number].weights:
            users = self._users[link]
            del users[number]
            self._touched.update(users)
            if not users:
                self.busy[link] = self.busy.get(link, 0) + now - self._busy_since.pop(link)

    def _explain(self, number: int) -> str:
        activity = self._moving[number]
        dead = [self._links[link].name for link, _ in activity.weights if self._links[link].capacity <= 0]
        return f"{self._describe(number)} makes no progress: link {', '.join(dead) or 'unknown'} has no capacity"
