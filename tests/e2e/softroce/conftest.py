import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "unit" / "execution" / "engines"))

from fake.fixtures import make_trial, store

__all__ = ["make_trial", "store"]
