"""Where specs, profiles and results are looked for, in a project, outside of one, and from an installed wheel."""

import pytest

from harness import hardware, project, references


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A project of the user's, worked in from one of its folders."""
    for name in ("specs/hardware", "specs/deep", "results"):
        (tmp_path / "own" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "own" / "specs" / "deep")
    return tmp_path / "own"


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """An installation without a checkout, that has its data under `share`."""
    for name in ("specs/hardware", "results/published"):
        (tmp_path / "site" / "share" / "harness" / name).mkdir(parents=True)
    monkeypatch.setattr(project, "_ABOVE", tmp_path / "site")
    return tmp_path / "site"


def test_a_project_is_found_from_any_folder_in_it(own):
    assert project.root() == own
    assert project.runs() == own / "results" / "runs"


def test_a_profile_that_a_project_adds_stands_beside_the_shipped_ones(own):
    text = hardware.path_of("laptop").read_text("utf-8")
    (own / "specs" / "hardware" / "mine.yaml").write_text(text.replace("name: laptop", "name: mine"), "utf-8")
    assert {"mine", "laptop"} <= set(hardware.names())
    assert hardware.load_profile("mine").name == "mine"
    assert hardware.path_of("laptop").parent == project.shipped() / "specs" / "hardware"


def test_a_project_without_published_tables_has_the_shipped_ones(own):
    assert "rdma" in references.load_all().papers()
    (own / "results" / "published").mkdir()
    assert references.load_all().papers() == []


def test_outside_of_a_project_a_wheel_keeps_results_in_the_working_directory(wheel, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert project.runs() == tmp_path / "elsewhere" / "results" / "runs"
    assert project.published() == wheel / "share" / "harness" / "results" / "published"
    assert hardware.folders()[-1] == wheel / "share" / "harness" / "specs" / "hardware"


def test_outside_of_a_project_a_checkout_is_the_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert project.root() == project.shipped()
