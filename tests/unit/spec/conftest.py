"""An engine that is installed as a user's would be (a folder with an entry point), and a project to work in."""

import sys
from types import SimpleNamespace

import pytest

SPEC = '''
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from emulation.units import Bytes, Strict
from harness.api import Better, EngineSpec, Metric, MetricKind, Problem


class Fast(Strict):
    kind: Literal["fast"]
    speed: float = 1.0


class Slow(Strict):
    kind: Literal["slow"]
    reason: str


class Spec(EngineSpec):
    """Copies things."""

    name: Literal["toy"]
    size: Bytes = Field(gt=0)
    """Bytes copied."""
    piece: Bytes = 1024
    rate: float = 1.0
    flag: bool = False
    tags: list[str] = Field(default_factory=list)
    options: dict[str, int] = Field(default_factory=dict)
    how: Annotated[Fast | Slow, Field(discriminator="kind")] = Fast(kind="fast")
    colour: str = "red"

    VERSION: ClassVar[str] = "3"
    UNHASHED: ClassVar[frozenset[str]] = frozenset({"colour"})
    METRICS: ClassVar[tuple[Metric, ...]] = (
        Metric("copy_time", "s", MetricKind.TIME, Better.LOWER, "time of a copy", ("way",)),
    )

    def check(self):
        if self.piece > self.size:
            yield Problem(("piece",), "the piece is larger than the whole", "at most size")
'''


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package with an entry point: `install(name, package, spec module)`."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    packages = []

    def make(name, package, spec=SPEC):
        (site / package).mkdir()
        (site / package / "__init__.py").write_text("")
        (site / package / "spec.py").write_text(spec)
        metadata = site / f"{package}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[harness.engines]\n{name} = {package}\n")
        packages.append(package)

    yield make
    for module in [m for m in sys.modules if m.split(".")[0] in packages]:
        del sys.modules[module]


@pytest.fixture
def project(tmp_path, monkeypatch, install):
    """A folder that is a project, with the engine `toy` installed; `project.write(text)` gives a spec file."""
    install("toy", "toy_engine")
    root = tmp_path / "project"
    for folder in ("specs", "results"):
        (root / folder).mkdir(parents=True)
    monkeypatch.chdir(root)

    def write(text, name="spec.yaml"):
        path = root / "specs" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path.relative_to(root)

    return SimpleNamespace(root=root, write=write)


@pytest.fixture
def steady(monkeypatch):
    """What stands behind a backend is the same on every machine."""
    monkeypatch.setattr("harness.resolve.place", lambda backend, on="": {"there": backend, "on": on})
