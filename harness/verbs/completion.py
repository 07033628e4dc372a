"""`harness completion`: the line that switches on completion in a shell."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from harness.errors import EnvironmentLacks, Exit
from harness.output import say

if TYPE_CHECKING:
    import argparse


def run(args: argparse.Namespace) -> int:
    """Print what to evaluate in the shell's start-up file.

    Raises:
        EnvironmentLacks: argcomplete is not installed.
    """
    if find_spec("argcomplete") is None:
        raise EnvironmentLacks("completion needs argcomplete: pip install 'harness[completion]'")
    from argcomplete import shellcode

    say(shellcode(["harness"], shell=args.shell))
    return int(Exit.OK)
