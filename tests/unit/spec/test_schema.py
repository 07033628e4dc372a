import json
from pathlib import Path

import jsonschema
import pytest

from harness import schema
from harness.loading.document import compose, read

ROOT = Path(__file__).resolve().parents[3]
SCHEMAS = ROOT / "specs" / "schema"
FILES = [
    *((path, "experiment") for path in sorted(ROOT.glob("specs/*.yaml"))),
    *((path, "experiment") for path in sorted(ROOT.glob("specs/*/*.yaml")) if path.parent.name != "hardware"),
    *((path, "experiment") for path in sorted(ROOT.glob("docs/engine-template/specs/*.yaml"))),
    *((path, "hardware") for path in sorted(ROOT.glob("specs/hardware/*.yaml"))),
    *((path, "published") for path in sorted(ROOT.glob("results/published/*.yaml"))),
]


def validator(name):
    text = json.loads((SCHEMAS / f"{name}.schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(text)
    return jsonschema.Draft202012Validator(text)


@pytest.mark.parametrize("name", sorted(schema.files()))
def test_the_committed_schema_is_current(name):
    assert (SCHEMAS / name).read_text("utf-8") == schema.files()[name], "run 'harness schema' and commit the result"


@pytest.mark.parametrize(("path", "name"), FILES, ids=[str(path.relative_to(ROOT)) for path, _ in FILES])
def test_every_shipped_file_fits_its_schema(path, name):
    assert [(e.json_path, e.message) for e in validator(name).iter_errors(read(path).data)] == []


GOOD = "schema: 1\nname: x\nengine: {name: rdma, sizes: [1 KiB]}\n"


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        GOOD.replace("rdma, sizes: [1 KiB]", "elsewhere, anything: 1"),
        "extends: other.yaml\n",
        "extends: other.yaml\nengine: {sizes: [1 KiB]}\n",
        GOOD + "on: [{backend: local}]\n",
        GOOD + "limits: {timeout: 3 s}\n",
    ],
    ids=["whole", "engine of another package", "extends alone", "extends with fields", "targets", "quantity"],
)
def test_the_schema_allows(text):
    assert validator("experiment").is_valid(compose(text, "f").data)


@pytest.mark.parametrize(
    "text",
    [
        GOOD + "colour: red\n",
        GOOD.replace("sizes", "sises"),
        GOOD.replace("schema: 1", "schema: 2"),
        GOOD.replace("name: x", "name: a/b"),
        GOOD + "limits: {timeout: 3}\n",
        GOOD + "on: {backend: emulatd}\n",
        "schema: 1\nname: x\n",
        "schema: 1\nname: x\nengine: {sizes: [1 KiB]}\n",
    ],
    ids=["key", "engine key", "version", "name", "bare number", "backend", "no engine", "no engine name"],
)
def test_the_schema_refuses(text):
    assert not validator("experiment").is_valid(compose(text, "f").data)


def test_fields_carry_their_documentation():
    text = json.loads((SCHEMAS / "experiment.schema.json").read_text("utf-8"))
    assert text["properties"]["description"]["description"] == "The question this experiment answers."
    assert "laptop" not in json.dumps(text["$defs"]["Target"]["properties"]["hardware"].get("enum", ""))
