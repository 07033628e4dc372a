import importlib.util
from pathlib import Path

# The small cluster and the shipped profiles are the unit tests' own.
_unit = Path(__file__).resolve().parents[2] / "unit" / "emulation" / "conftest.py"
_module = importlib.util.module_from_spec(importlib.util.spec_from_file_location("emulation_fixtures", _unit))
_module.__spec__.loader.exec_module(_module)
small, shipped, document = _module.small, _module.shipped, _module.document
