import json
import subprocess
import sys

import pytest
from pydantic import ValidationError

from emulation.figures import BytesCurve, corrected, weakest
from emulation.profile import Profile

SHIPPED = ["laptop", "v100x8-nvlink", "a100x8-hdr", "h100x8-ndr", "rdma-100g-pair", "ethernet-10g-pair"]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_profile_survives_a_dump_and_names_itself(shipped, name):
    profile = shipped(name)
    again = Profile.model_validate(profile.model_dump(mode="json", by_alias=True))
    assert (again, again.digest, profile.name) == (profile, profile.digest, name)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_figure_has_a_listed_source_and_every_source_a_figure(shipped, name):
    profile = shipped(name)
    assert {figure.source for _, figure in profile.figures()} == set(profile.sources)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("laptop", (1, 0, 0, False)),
        ("v100x8-nvlink", (1, 8, 32e9, False)),
        ("a100x8-hdr", (2, 8, 80e9, True)),
        ("h100x8-ndr", (2, 8, 80e9, True)),
        ("rdma-100g-pair", (2, 0, 0, True)),
        ("ethernet-10g-pair", (2, 0, 0, False)),
    ],
)
def test_capabilities_of_shipped_profiles(shipped, name, expected):
    found = shipped(name).capabilities()
    assert (found.hosts, found.gpus, found.gpu_memory, found.rdma) == expected
    assert found.memory >= 16e9


def test_digest_is_about_what_can_change_a_result(document):
    plain, described = (Profile.model_validate(document(description=text)) for text in ("", "words"))
    faster = Profile.model_validate(document(rate="11 GB/s"))
    assert plain.digest == described.digest != faster.digest


def _set(document, path, value):
    document = json.loads(json.dumps(document))
    place = document
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return document


LINK = ("hosts", 0, "links", 0)
MISTAKES = [
    ("unknown-model", ("hosts", 0, "devices", 0, "model"), "gpo", "did you mean 'gpu'"),
    ("cpu-is-a-gpu", ("hosts", 0, "cpu"), "gpu", "no cpu model"),
    ("unknown-end", (*LINK, "ends"), ["gpu", "swich"], "did you mean 'switch'"),
    ("one-end", (*LINK, "ends"), ["gpu"], "needs two ends"),
    ("no-ends", (*LINK, "ends"), [], "either `ends` or `pairs`"),
    ("pair-of-unknown", (*LINK, "pairs"), [["gpu0", "gpu9"]], "either `ends` or `pairs`"),
    ("mesh-of-two-groups", (*LINK, "pairing"), "mesh", "`mesh` is for a group with itself"),
    ("index-of-unequal-groups", (*LINK, "pairing"), "index", "groups of one size"),
    ("link-named-twice", ("hosts", 0, "links", 1, "name"), "nvlink", "'nvlink' is used twice"),
    ("group-named-twice", ("hosts", 0, "nics", 0, "name"), "gpu", "names two groups"),
    ("zero-rate", (*LINK, "rate", "value"), "0 B/s", "greater than or equal to 1"),
    ("rate-without-unit", (*LINK, "rate", "value"), 5, "needs a unit"),
    ("unknown-source", (*LINK, "rate", "source"), "tset", "did you mean 'test'"),
    ("unknown-grade", (*LINK, "rate", "grade"), "guessed", "'measured', 'prior' or 'datasheet'"),
    ("no-links-at-all", ("hosts", 0, "links"), [], "no chain of links joins"),
    ("no-hosts", ("hosts",), [], "at least 1 item"),
    ("hosts-apart", ("fabric",), {}, "no chain of links joins"),
    ("fabric-end-unknown", ("fabric", "links", 0, "ends"), ["nic", "leav"], "did you mean 'leaf'"),
    ("too-many-links", ("hosts", 0, "count"), 65536, None),
    ("unknown-key", ("hosts", 0, "colour"), "red", "Extra inputs"),
    ("missing-figure", ("hosts", 0, "software", "tcp"), None, "Field required"),
]


@pytest.mark.parametrize(("path", "value", "message"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_mistake_in_a_profile_gets_one_clear_message(document, path, value, message):
    wrong = _set(document(hosts=2), path, value)
    if message is None:
        wrong["fabric"]["links"][0].update(ends=["nic", "nic"], pairing="mesh")
        message = "at most 2,000,000"
    with pytest.raises(ValidationError, match=message.replace("(", r"\(")) as caught:
        Profile.model_validate(wrong)
    assert caught.value.error_count() == 1


def test_error_context_has_the_path_of_the_blamed_key(document):
    wrong = _set(document(), ("hosts", 0, "devices", 0, "model"), "gpo")
    with pytest.raises(ValidationError) as caught:
        Profile.model_validate(wrong)
    (error,) = caught.value.errors()
    assert [*error["loc"], *error["ctx"]["path"]] == ["hosts", 0, "devices", 0, "model"]


def _curve(*points):
    knots = [{"at": f"{at} B", "value": value} for at, value in points]
    return {"grade": "measured", "source": "test", "points": knots}


@pytest.mark.parametrize(
    ("size", "value"), [(1, 0.2), (10, 0.2), (100, 0.3), (1000, 0.4), (10**9, 0.4)], ids=lambda v: str(v)
)
def test_curve_is_linear_in_the_logarithm_and_clamped(size, value):
    curve = BytesCurve.model_validate(_curve((10, 0.2), (1000, 0.4)))
    assert curve.value_at(size) == pytest.approx(value)


def test_curve_below_its_range_is_one_grade_weaker():
    curve = BytesCurve.model_validate(_curve((10, 0.2), (1000, 0.4)))
    assert [curve.grade_at(size) for size in (9, 10, 5000)] == ["prior", "measured", "measured"]


@pytest.mark.parametrize(
    "points", [[(10, 0.2), (10, 0.3)], [(10, 0.2), (5, 0.3)], [(1, 0.2), (2, 0.5), (3, 0.4)]], ids=str
)
def test_curve_that_turns_or_goes_back_is_refused(points):
    with pytest.raises(ValidationError, match=r"rising|only rise or only fall"):
        BytesCurve.model_validate(_curve(*points))


def test_grades_combine_to_the_weakest_and_an_efficiency_corrects_a_datasheet():
    assert weakest(["measured", "datasheet", "prior"]) == "datasheet"
    assert corrected("datasheet", "measured") == "measured"
    assert corrected("prior", "measured") == "prior"


def test_validating_a_profile_imports_nothing_heavy():
    code = (
        "import sys, emulation.profile, emulation.evaluate, emulation.graph;"
        "print([m for m in ('numpy', 'simpy', 'networkx', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
