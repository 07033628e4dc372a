"""Packets through a line of first-in-first-out stages, in closed form.

Stage *k* is done with packet *i* at ``D[k][i] = max(D[k-1][i] + lag[k], D[k][i-1]) + service[k]``. With equal packets
this is a longest path through a grid whose rows have one weight each: a path that comes in at stage *j* goes up to *k*
and takes all its steps sideways in the dearest row between, so that

    D[k][n] = max over j <= k of  free[j] + sum(service[j..k]) + sum(lag[j+1..k]) + (n - 1) max(service[j..k])

where ``free[j]`` is when stage *j* is done with everything before. All times are integers, so the two agree exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def passed(free: Sequence[int], service: Sequence[int], lag: Sequence[int], count: int) -> list[int]:
    """When each stage is done with the last of `count` equal packets that are all ready before the first stage.

    Args:
        free: when each stage is done with what came before; of the first one also, when the packets are ready.
        service: time that each stage takes for one packet.
        lag: time from the stage before to each stage (of the first one unused); may be negative, where a stage begins
            with a packet before the one before has the end of it.
        count: packets, at least one.
    """
    done: list[int] = []
    if count == 1:
        for stage, took in enumerate(service):
            ready = done[-1] + lag[stage] if stage else free[0]
            done.append(max(ready, free[stage]) + took)
        return done
    for last in range(len(free)):
        total = slowest = 0
        best: int | None = None
        for first in range(last, -1, -1):
            total += service[first]
            slowest = max(slowest, service[first])
            through = free[first] + total + (count - 1) * slowest
            best = through if best is None else max(best, through)
            total += lag[first]
        assert best is not None
        done.append(best)
    return done
