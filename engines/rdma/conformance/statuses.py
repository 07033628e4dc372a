"""How each provider may answer a mistake.

The InfiniBand specification names one status where adapters have latitude, and Soft-RoCE uses it: measured on rxe of
Linux 6.1 and 6.12, a wrong local key ends `LOCAL_OPERATION` or `FLUSHED`, a message too long for the posted buffer
`REMOTE_OPERATION`. A hardware adapter answers as the specification does. The other two providers always do.
"""

from __future__ import annotations

from enum import StrEnum

from engines.rdma.device import Status


class Mistake(StrEnum):
    """What a case does wrong."""

    LOCAL = "the local side is not a live region of this device, is left, or lacks the right"
    REMOTE = "the remote key is unknown, the region is left, or lacks the right"
    STALE = "the descriptor is from before the peer's reset"
    TOO_LONG = "the message is longer than the peer's buffers"
    NOT_READY = "the peer has no buffer posted"
    GONE = "the peer is gone"
    KILLED = "the peer's process is killed while the request is under way"


_SPECIFICATION = {
    Mistake.LOCAL: {Status.LOCAL_PROTECTION},
    Mistake.REMOTE: {Status.REMOTE_ACCESS},
    # The specification knows no epochs; a provider that does says so, and one that does not finds the key unknown.
    Mistake.STALE: {Status.STALE_REGION, Status.REMOTE_ACCESS},
    Mistake.TOO_LONG: {Status.REMOTE_INVALID},
    Mistake.NOT_READY: {Status.RECEIVER_NOT_READY},
    Mistake.GONE: {Status.RETRY_EXCEEDED},
    Mistake.KILLED: {Status.RETRY_EXCEEDED},
}
_SOFT_ROCE = {
    Mistake.LOCAL: {Status.LOCAL_OPERATION, Status.FLUSHED},
    Mistake.TOO_LONG: {Status.REMOTE_OPERATION},
    # The kernel takes a dead process's objects down last made first: its memory, then the queue pair, which until then
    # answers that there is no such memory.
    Mistake.KILLED: {Status.REMOTE_ACCESS},
}


def allowed(provider: str, mistake: Mistake) -> frozenset[Status]:
    """The statuses in which a request with this mistake may end."""
    latitude = _SOFT_ROCE.get(mistake, set()) if provider == "verbs" else set()
    return frozenset(_SPECIFICATION[mistake] | latitude)
