import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "execution" / "engines"))

from fake.fixtures import make_trial

__all__ = ["make_trial"]
