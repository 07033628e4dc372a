import pytest

from emulation.profile import Profile
from harness import hardware, registry
from harness.errors import SpecError
from harness.load import load_yaml_model


def test_a_built_in_engine_is_found_without_looking_at_what_is_installed(monkeypatch):
    monkeypatch.setattr(registry, "_installed", lambda: pytest.fail("entry points were scanned"))
    entry = registry.find("rdma")
    assert (entry.name, entry.package) == ("rdma", "engines.rdma")
    assert entry.Spec.METRICS


def test_an_installed_engine_is_found_by_its_entry_point(install):
    install("toy", "toy_engine")
    entry = registry.find("toy")
    assert entry.package == "toy_engine"
    assert entry.Spec.VERSION == "3"
    assert registry.names() == [*registry.BUILT_IN, "toy"]


def test_an_unknown_engine_has_a_suggestion(install):
    install("toyota", "toy_engine")
    with pytest.raises(
        SpecError,
        match=r"no engine 'toyta'; expected one of: rdma, megatron, superscaler, toyota; did you mean 'toyota'\?",
    ):
        registry.find("toyta")


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ("import no_such_module_at_all\n", "ModuleNotFoundError"),
        ("1 / 0\n", "ZeroDivisionError"),
        ("raise SystemExit(3)\n", "SystemExit"),
        ("def broken(:\n", "SyntaxError"),
        ("x = 1\n", "AttributeError"),
        ("class Spec: pass\n", "is not a harness.api.EngineSpec"),
    ],
    ids=lambda value: value.split("\n")[0],
)
def test_a_broken_engine_is_listed_with_its_error_and_leaves_the_others_alone(install, spec, error):
    install("broken", "broken_engine", spec)
    install("toy", "toy_engine")
    rows = {row.name: row for row in registry.listing()}
    assert error in rows["broken"].error
    assert rows["toy"].error == ""
    assert rows["rdma"].built_in
    with pytest.raises(SpecError, match=error):
        registry.find("broken")


def test_a_built_in_engine_wins_over_an_installed_one_of_its_name(install):
    install("rdma", "other_rdma")
    assert registry.find("rdma").package == "engines.rdma"
    with pytest.warns(UserWarning, match=r"engine 'rdma' of other_rdma is hidden by the built-in engine"):
        rows = registry.listing()
    assert [row.package for row in rows if row.name == "rdma"] == ["engines.rdma"]


def test_two_packages_that_claim_one_name_are_refused(install):
    install("toy", "toy_engine")
    install("toy", "toy_engine_two")
    with pytest.raises(SpecError, match="several packages provide an engine 'toy'"):
        registry.find("toy")
    assert [row.error for row in registry.listing() if row.name == "toy"] == ["also provided by toy_engine_two"]


@pytest.mark.parametrize("name", hardware.names())
def test_every_shipped_profile_loads_under_its_own_name(name):
    assert hardware.load_profile(name).name == name


def test_an_unknown_profile_has_a_suggestion():
    with pytest.raises(SpecError, match="no hardware profile 'laptpo'"):
        hardware.load_profile("laptpo")


def test_a_profile_of_as_many_hosts_as_its_name_says():
    few, many = (hardware.load_profile(name) for name in ("a100x8-hdr-rails", "a100x8-hdr-rails@2048"))
    assert (few.capabilities().hosts, many.capabilities().hosts) == (2, 2048)
    assert (many.name, many.fabric) == ("a100x8-hdr-rails@2048", few.fabric)
    assert few.digest != many.digest
    assert Profile.model_validate_json(many.model_dump_json(by_alias=True)) == many


@pytest.mark.parametrize("name", ["a100x8-hdr@", "a100x8-hdr@0", "a100x8-hdr@two", "a100x8-hdr@1000000"])
def test_a_number_of_hosts_that_is_none_is_refused(name):
    assert not hardware.known(name)
    with pytest.raises(SpecError, match=r"has no number of hosts \(1 to 99999\) after the '@'"):
        hardware.load_profile(name)


def test_too_many_hosts_for_a_profile_are_placed_in_its_file(project):
    (project.root / "specs" / "hardware").mkdir()
    link = "{rate: {value: 1 GB/s, grade: prior, source: nccl}, latency: {value: 1 us, grade: prior, source: nccl}}"
    text = "extends: a100x8-hdr.yaml\nname: ring\nfabric:\n  switches: []\n  links: []\n  topology:\n"
    text += f"    kind: torus\n    shape: [4]\n    link: {link}\n"
    (project.root / "specs" / "hardware" / "ring.yaml").write_text(text)
    (project.root / "specs" / "hardware" / "a100x8-hdr.yaml").write_text(hardware.path_of("a100x8-hdr").read_text())
    assert hardware.load_profile("ring@4").capabilities().hosts == 4
    with pytest.raises(
        SpecError, match=r"ring\.yaml:8:5: error: 'fabric.topology.shape': a torus of 4 has 4 routers, .* 5 hosts"
    ):
        hardware.load_profile("ring@5")


def test_hosts_of_a_profile_with_several_groups_cannot_be_counted(project):
    (project.root / "specs" / "hardware").mkdir()
    (project.root / "specs" / "hardware" / "mixed.yaml").write_text("schema: 1\nname: mixed\nhosts: [{}, {}]\n")
    with pytest.raises(SpecError, match=r"mixed\.yaml:3:1: error: 'mixed@3' asks for 3 hosts"):
        hardware.load_profile("mixed@3")


def test_a_projects_own_profile_comes_before_the_shipped_one(project):
    (project.root / "specs" / "hardware").mkdir()
    (project.root / "specs" / "hardware" / "laptop.yaml").write_text("schema: 1\nname: laptop\ncolour: red\n")
    assert hardware.path_of("laptop").is_relative_to(project.root)
    with pytest.raises(SpecError, match=r"laptop\.yaml:3:1: error: unknown field 'colour'"):
        hardware.load_profile("laptop")


@pytest.mark.parametrize(
    ("written", "wrong", "line", "said"),
    [
        ("ends: [nic, cpu]", "ends: [nicc, cpu]", "nicc", "did you mean 'nic'"),
        ("cpu: xeon-e5-2690v4", "cpu: xeon-e5-2690", "xeon-e5-2690", "did you mean 'xeon-e5-2690v4'"),
        ("grade: datasheet, source: pcie", "grade: datasheet, source: pci", "pci", "did you mean 'pcie'"),
    ],
    ids=["link end", "cpu model", "source"],
)
def test_a_name_that_leads_nowhere_is_placed_where_it_stands(tmp_path, written, wrong, line, said):
    text = hardware.path_of("rdma-100g-pair").read_text("utf-8")
    assert text.count(written) == 1
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace(written, wrong), "utf-8")
    with pytest.raises(SpecError) as error:
        load_yaml_model(path, Profile)
    (problem,) = error.value.problems
    number, row = next((n, r) for n, r in enumerate(path.read_text("utf-8").splitlines(), 1) if wrong in r)
    column = row.index(line, row.index(wrong)) + 1
    if line == "pci":
        column = row.index("source: pci") + len("source: ") + 1
    assert (problem.position.line, problem.position.column) == (number, column)
    assert said in problem.what


def test_links_that_lead_nowhere_and_folders_are_no_profiles(tmp_path, monkeypatch):
    folder = tmp_path / "specs" / "hardware"
    (folder / "folder.yaml").mkdir(parents=True)
    (folder / "circle.yaml").symlink_to("circle.yaml")
    (tmp_path / "results").mkdir()
    monkeypatch.chdir(tmp_path)
    assert {"folder", "circle"}.isdisjoint(hardware.names())
    with pytest.raises(SpecError, match="no hardware profile 'circle'"):
        hardware.load_profile("circle")


def test_a_profile_that_is_named_otherwise_than_its_file_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "specs" / "hardware"
    folder.mkdir(parents=True)
    (tmp_path / "results").mkdir()
    (folder / "mine.yaml").write_text(hardware.path_of("laptop").read_text("utf-8"), "utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match=r"mine.yaml:2:7: error: the profile is named 'laptop', and its file mine.yaml"):
        hardware.load_profile("mine")


@pytest.mark.parametrize(
    ("written", "wrong", "said"),
    [
        ("{value: 400 ns", "{value: 1e300 s", "'1e300 s'; expected at most 86400"),
        ("{value: 15.75 GB/s", "{value: 1e-300 B/s", "'1e-300 B/s'; expected at least 1"),
        ("rdma: true", "rdma: false", "'hosts.0.software.one_sided': host 'host' has no adapter with `rdma: true`"),
    ],
    ids=["time without end", "rate of nothing", "one-sided writes without an adapter"],
)
def test_a_profile_of_what_cannot_be_is_refused(tmp_path, written, wrong, said):
    text = hardware.path_of("rdma-100g-pair").read_text("utf-8")
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace(written, wrong, 1), "utf-8")
    with pytest.raises(SpecError) as error:
        load_yaml_model(path, Profile)
    assert said in str(error.value)
