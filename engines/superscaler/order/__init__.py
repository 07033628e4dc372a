"""op-order: in which order the blocks of a plan run.

`schedules` has those with names, `check` tests any, `merge` makes one order of the devices' lists, `timeline` says how
long one takes, and `best` finds one for given durations and room.
"""

from engines.superscaler.order.best import Best, best
from engines.superscaler.order.check import check
from engines.superscaler.order.greedy import greedy
from engines.superscaler.order.merge import merge
from engines.superscaler.order.pipeline import Pipeline
from engines.superscaler.order.schedules import (
    folded,
    forward_only,
    gpipe,
    interlaced,
    interleaved,
    looped,
    one_f_one_b,
    recycling,
    zero_bubble,
    zero_bubble_v,
)
from engines.superscaler.order.timeline import Placed, bubble, held, in_flight, makespan, timeline

__all__ = [
    "Best",
    "Pipeline",
    "Placed",
    "best",
    "bubble",
    "check",
    "folded",
    "forward_only",
    "gpipe",
    "greedy",
    "held",
    "in_flight",
    "interlaced",
    "interleaved",
    "looped",
    "makespan",
    "merge",
    "one_f_one_b",
    "recycling",
    "timeline",
    "zero_bubble",
    "zero_bubble_v",
]
