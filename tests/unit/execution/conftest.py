import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent / "engines"))

from fake.fixtures import execute, make_trial, store

__all__ = ["execute", "make_trial", "store"]
