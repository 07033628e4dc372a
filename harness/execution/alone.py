"""A rank's process that no zygote forked: `python -m harness.execution.alone DIRECTORY`, as guests start it.

It behaves as a forked one does: what is stopped for hanging says where it hung, memory has its limit, and threads an
engine left behind do not keep a finished trial alive.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from harness.execution import child
from harness.execution.assignment import Assignment
from harness.execution.zygote import limit_data


def carry_out(directory: Path) -> NoReturn:
    """Carry out the assignment in a directory as the last thing this process does."""
    code = child.EXIT_JOURNAL
    try:
        faulthandler.enable()
        faulthandler.register(signal.SIGTERM, chain=True)
        if limit := Assignment.read(directory).data_limit:
            limit_data(limit)
        code = child.carry_out(directory)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                continue
        os._exit(code)


def main() -> NoReturn:
    """Carry out the assignment in the directory named on the command line."""
    carry_out(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
