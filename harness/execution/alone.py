"""A rank's process that no zygote forked: `python -m harness.execution.alone DIRECTORY`, as guests start it.

It behaves as a forked one does: what is stopped for hanging says where it hung, memory has its limit, and threads an
engine left behind do not keep a finished trial alive.
"""

from __future__ import annotations

import faulthandler
import signal
import sys
from pathlib import Path
from typing import NoReturn

from harness.execution import child
from harness.execution.assignment import Assignment
from harness.execution.zygote import end_with, limit_data


def carry_out(directory: Path) -> NoReturn:
    """Carry out the assignment in a directory as the last thing this process does."""

    def act() -> int:
        faulthandler.enable()
        faulthandler.register(signal.SIGTERM, chain=True)
        if limit := Assignment.read(directory).data_limit:
            limit_data(limit)
        return child.carry_out(directory)

    end_with(act)


def main() -> NoReturn:
    """Carry out the assignment in the directory named on the command line."""
    carry_out(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
