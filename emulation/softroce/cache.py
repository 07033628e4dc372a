"""The folder of this user in which finished images, package disks and the accelerator's probe are kept."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

if TYPE_CHECKING:
    from collections.abc import Iterator


def root() -> Path:
    """`$XDG_CACHE_HOME/harness/softroce`, by default under `~/.cache`."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if home else Path.home() / ".cache") / "harness" / "softroce"


@contextmanager
def entry(folder: Path) -> Iterator[Path | None]:
    """Fill a folder of the cache once, whoever asks: a half-filled one is never seen.

    Yields:
        A folder to fill, which takes its name when the block ends without an error; None where it is filled already.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if folder.is_dir():
            yield None
            return
        filling = folder.with_name(f"{folder.name}.filling")
        shutil.rmtree(filling, ignore_errors=True)
        filling.mkdir()
        try:
            yield filling
            filling.rename(folder)
        finally:
            shutil.rmtree(filling, ignore_errors=True)
