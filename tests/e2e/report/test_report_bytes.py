"""Another interpreter, another order of its sets: the same report."""

import os
import subprocess
import sys
from pathlib import Path

FACTORY = Path(__file__).parents[2] / "unit" / "judging" / "factory.py"


def test_bytes_do_not_depend_on_the_hash_seed(tmp_path):
    code = (
        "import importlib.util, sys; from pathlib import Path; from harness import report;"
        "s = importlib.util.spec_from_file_location('f', sys.argv[1]); f = importlib.util.module_from_spec(s);"
        "s.loader.exec_module(f);"
        "report.write(f.quickstart(), [f.transports(), f.transports(backend='emulated')], directory=Path(sys.argv[2]))"
    )
    for seed in ("1", "2"):
        arguments = [sys.executable, "-c", code, str(FACTORY), str(tmp_path / seed)]
        subprocess.run(arguments, check=True, env={**os.environ, "PYTHONHASHSEED": seed})
    for path in (tmp_path / "1").iterdir():
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes(), path.name
