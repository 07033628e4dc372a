"""What may go wrong with a cluster of guests, by type."""

from __future__ import annotations


class SoftRoceError(Exception):
    """The guests cannot do what was asked; the message says why and what to do about it."""


class Refused(SoftRoceError):
    """What was asked for makes no cluster, no wire or no layer: a figure is out of its range."""


class ToolsMissing(SoftRoceError):
    """This machine lacks programs that build or boot guests; the message is the command that installs them."""


class GuestError(SoftRoceError):
    """A guest answered a request with an error of its own."""


class GuestLost(SoftRoceError):
    """A guest stopped answering, or its QEMU process ended."""
