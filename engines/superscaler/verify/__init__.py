"""Does a program compute what the model computes on one device? `verify` says, before anything runs.

The instruction lists of all ranks are judged as they are given. Trusted are the graph, the annotations of its operators
and the operators themselves (which a checker of their own proves); nothing that phase 3 noted down is.
"""

from engines.superscaler.verify.findings import INVARIANTS, LEVELS, Finding, Report
from engines.superscaler.verify.verification import verify

__all__ = ["INVARIANTS", "LEVELS", "Finding", "Report", "verify"]
