"""JSON Schema (2020-12) for editors: completion and red lines while a spec is written.

Generated from the models that `load` validates with, so that an editor and `harness validate` cannot disagree about a
field. An editor knows less than the loader in three places, and the schema is the more lenient there: a field may
come from `extends` or from the sweep, so an engine's and a profile's fields are required at no depth; another package
may bring an engine; and the names of hardware profiles and papers are files, which are not baked in.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from harness import registry
from harness.spec import Experiment

if TYPE_CHECKING:
    from pydantic import BaseModel

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def files() -> dict[str, str]:
    """Name and text of each schema file under `specs/schema`."""
    from emulation.profile import Profile
    from harness.references import PaperFile

    schemas = {
        "experiment.schema.json": experiment_schema(),
        "hardware.schema.json": _extending(_document(Profile, "A hardware profile: a cluster as data.")),
        "published.schema.json": _document(PaperFile, "Published figures of one paper, cell by cell."),
    }
    return {name: json.dumps(schema, indent=2, ensure_ascii=False) + "\n" for name, schema in schemas.items()}


def experiment_schema() -> dict[str, Any]:
    """The schema of a spec file, with the fields of each built-in engine."""
    schema = _document(Experiment, "A spec: one experiment.")
    required = schema.pop("required", [])
    schema["properties"]["engine"] = {
        "type": "object",
        "description": "Which engine, and the engine's own fields.",
        "properties": {"name": {"type": "string", "examples": list(registry.BUILT_IN)}},
    }
    complete = {"required": required, "properties": {"engine": {"required": ["name"]}}}
    schema["anyOf"] = [{"required": ["extends"]}, complete]
    schema["allOf"] = []
    for name in registry.BUILT_IN:
        fields, definitions = _engine(name)
        schema["$defs"] |= {f"engine-{name}": fields, **definitions}
        named = {"properties": {"engine": {"properties": {"name": {"const": name}}, "required": ["name"]}}}
        then = {"properties": {"engine": {"$ref": f"#/$defs/engine-{name}"}}}
        schema["allOf"].append({"if": {**named, "required": ["engine"]}, "then": then})
    return schema


def _document(model: type[BaseModel], description: str) -> dict[str, Any]:
    schema = _untitled(model.model_json_schema(by_alias=True))
    return {"$schema": DIALECT, **schema, "description": description}


def _extending(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a file whose fields, at any depth, may come from the one it extends."""
    extends = {"type": "string", "description": "Another profile that this one starts from, relative to this file."}
    definitions = {name: _optional(text) for name, text in schema["$defs"].items()}
    return _optional(schema) | {"properties": {"extends": extends, **schema["properties"]}, "$defs": definitions}


def _optional(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key != "required"}


def _engine(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The schema of an engine's section and of the models it uses."""
    model = registry.find(name).Spec
    schema = _untitled(model.model_json_schema(by_alias=True, ref_template=f"#/$defs/engine-{name}-{{model}}"))
    inner = schema.pop("$defs", {})
    return _optional(schema), {f"engine-{name}-{part}": _optional(text) for part, text in inner.items()}


def _untitled(schema: Any) -> Any:
    """The schema without pydantic's titles, which only repeat the names of fields."""
    if isinstance(schema, list):
        return [_untitled(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: _untitled(value) for key, value in schema.items() if not (key == "title" and isinstance(value, str))}
