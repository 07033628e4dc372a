"""From what pydantic says to what a person can act on.

pydantic reports `loc=('on', 'list[Target]', 0, 'backend'), type='literal_error'`. A user needs the place in the file,
what stands there, what was expected, and the nearest valid choice. The steps are: walk `loc` against the document to
drop the names of union members, say the type of mistake in plain words, and for an unknown key look up the fields that
its section does have.
"""

from __future__ import annotations

import re
import typing
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from harness.errors import Problem, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pydantic_core import ErrorDetails

    from harness.loading.document import Keys

_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text (in quotes if it looks like a number)",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "none_required": "nothing (null)",
}
_WITH_LIMIT = {
    "greater_than": ("gt", "more than {}"),
    "greater_than_equal": ("ge", "at least {}"),
    "less_than": ("lt", "less than {}"),
    "less_than_equal": ("le", "at most {}"),
    "multiple_of": ("multiple_of", "a multiple of {}"),
    "string_pattern_mismatch": ("pattern", "text that matches {}"),
    "string_too_short": ("min_length", "at least {} characters"),
    "string_too_long": ("max_length", "at most {} characters"),
    "too_short": ("min_length", "at least {} items"),
    "too_long": ("max_length", "at most {} items"),
}


def problems(error: ValidationError, data: Any, model: type[BaseModel], within: Keys = ()) -> list[Problem]:
    """Every mistake that a model found in `data`, one for each place, without positions.

    Args:
        error: what validation raised.
        data: what was validated.
        model: what it was validated against.
        within: the path of `data` in its document.
    """
    found: dict[tuple[Keys, bool], Problem] = {}
    for detail in error.errors(include_url=False):
        path = document_path(detail, data)
        problem = _problem(detail, path, data, model, within)
        slot = (path, detail["type"] == "extra_forbidden")
        found[slot] = _either(found[slot], problem) if slot in found else problem
    deeper = {path[:length] for path, _ in found for length in range(len(path))}
    # A section that may be a mapping or a list is refused by one form as a whole while the other looks inside it.
    found = {s: p for s, p in found.items() if s[0] not in deeper or p.expected not in {"a list", "a mapping"}}
    meant = {(p.path[:-1], p.suggestion) for (_, unknown), p in found.items() if unknown and p.suggestion}
    # A required key that was misspelt is one mistake, not an unknown key and a missing one.
    return [
        p for (path, unknown), p in found.items() if unknown or (p.path[:-1], p.path[-1] if path else "") not in meant
    ]


def document_path(detail: ErrorDetails, data: Any) -> Keys:
    """The path in the document that an error's `loc` means: without tags of unions and names of model classes."""
    path: list[str | int] = []
    here = data
    location = detail["loc"]
    for place, step in enumerate(location):
        known = step in here if isinstance(here, dict) else isinstance(here, list) and step in range(len(here))
        if known:
            here = here[step]
        elif not (detail["type"] == "missing" and place == len(location) - 1):
            continue
        path.append(step)
    kind = str(detail.get("ctx", {}).get("discriminator", "")).strip("'")
    if detail["type"] == "union_tag_invalid" and isinstance(here, dict) and kind in here:
        path.append(kind)
    return (*path, *_blamed(detail, here))


def _blamed(detail: ErrorDetails, data: Any) -> Iterator[str | int]:
    """The keys that a cross-field check blames, below the model that holds it, as far as the document has them."""
    for step in detail.get("ctx", {}).get("path", ()):
        known = step in data if isinstance(data, dict) else isinstance(data, list) and step in range(len(data))
        if not known:
            return
        data = data[step]
        yield step


def describe(value: Any) -> str:
    """What a value is, for a sentence: `the text 'abc'`, `the number 3`, `a list of 2`."""
    if value is None:
        return "empty (null)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {value if len(value) <= 60 else value[:57] + '...'!r}"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return "a mapping" if isinstance(value, dict) else repr(value)


def dotted(path: Iterable[str | int]) -> str:
    """A path as a user writes it: `on.0.hardware`."""
    return ".".join(map(str, path))


def fields(model: type[BaseModel]) -> list[str]:
    """The keys a section may have, in the order the model declares them."""
    return [info.alias or name for name, info in model.model_fields.items()]


def models_at(model: type[BaseModel], path: Iterable[str | int]) -> list[type[BaseModel]]:
    """The models that a path may lead to (several for a union; none for a scalar or a free mapping)."""
    here: list[Any] = [model]
    for step in path:
        here = [inner for annotation in here for inner in _step(annotation, step)]
    return list(dict.fromkeys(m for annotation in here for m in _models(annotation)))


def resolves(model: type[BaseModel], path: Iterable[str | int]) -> bool:
    """Whether a path names something a document of this model may hold."""
    here: list[Any] = [model]
    for step in path:
        here = [inner for annotation in here for inner in _step(annotation, step)]
    return bool(here)


def _step(annotation: Any, step: str | int) -> Iterator[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, info in annotation.model_fields.items():
            if step == (info.alias or name):
                yield info.annotation
        return
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (list, tuple, set, frozenset):
        if isinstance(step, int) or step.isdigit():
            yield from (a for a in arguments if a is not ...)
        elif origin is list:
            # A section that may be one mapping or a list of them is reached by either path.
            yield from (i for a in arguments if _models(a) for i in _step(a, step))
    elif origin is dict:
        yield arguments[1]
    elif arguments:
        for argument in arguments:
            yield from _step(argument, step)
    elif annotation is Any:
        yield Any


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (list, dict, tuple, set, frozenset):
        return []
    return [m for a in typing.get_args(annotation) for m in _models(a)]


def _either(first: Problem, second: Problem) -> Problem:
    wanted = [first.expected, *([second.expected] if second.expected not in first.expected else [])]
    return Problem(first.path, first.what, " or ".join(filter(None, wanted)), first.suggestion or second.suggestion)


def _problem(detail: ErrorDetails, path: Keys, data: Any, model: type[BaseModel], within: Keys) -> Problem:
    kind, context = detail["type"], detail.get("ctx", {})
    whole = (*within, *path)
    name = f"'{dotted(whole)}'" if whole else "the document"
    said: Callable[..., Problem] = lambda what, expected="", hint="": Problem(whole, what, expected, hint)  # noqa: E731
    if kind == "extra_forbidden":
        return _unknown(path, data, model, within)
    if kind == "missing":
        section = f" in '{dotted(whole[:-1])}'" if whole[:-1] else ""
        return said(f"missing field '{whole[-1]}'{section}", _meaning(path, model))
    value = _at(data, path)
    if kind == "union_tag_not_found":
        tag = str(context.get("discriminator", "")).strip("'")
        known = sorted({word for owner in models_at(model, path) for word in _words(owner, tag)})
        return said(f"missing field '{tag}' in {name}", f"one of: {', '.join(known)}")
    if kind in {"literal_error", "enum", "union_tag_invalid"}:
        choices = re.findall(r"'([^']*)'", str(context.get("expected") or context.get("expected_tags", "")))
        text = str(context.get("expected") or context.get("expected_tags", ""))
        hint = nearest(value, choices) if isinstance(value, str) else ""
        return said(f"{name} is {describe(value)}", f"one of {text}" if len(choices) > 1 else text, hint)
    if kind in {"value_error", "assertion_error"}:
        return _custom(detail, value, whole, name)
    if kind in _WITH_LIMIT:
        key, words = _WITH_LIMIT[kind]
        meaning = _description(path, model).split("; ")[0]
        if meaning and (kind == "string_pattern_mismatch" or context.get("max_length") == 0):
            return said(f"{name} is {describe(value)}", meaning[:1].lower() + meaning[1:])
        return said(f"{name} is {describe(value)}", words.format(_limit(context.get(key))))
    expected = _EXPECTED.get(kind, "")
    if not expected and isinstance(value, dict | list):
        return said(f"{name}: {detail['msg']}")
    if not expected:
        return said(f"{name} is {describe(value)}: {detail['msg'][:1].lower()}{detail['msg'][1:]}")
    return said(f"{name} is {describe(value)}", expected)


def _limit(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _at(data: Any, path: Keys) -> Any:
    """What the document says; pydantic's `input` may be what a validator made of it."""
    for step in path:
        data = data[step]
    return data


def _custom(detail: ErrorDetails, value: Any, whole: Keys, name: str) -> Problem:
    """A validator's own words; those of quantities and of cross-field checks already say what was expected."""
    reason = str(detail.get("ctx", {}).get("error") or detail["msg"])
    what, _, expected = reason.partition("; expected ")
    if reason.startswith("expected "):
        return Problem(whole, f"{name} is {describe(value)}", reason.removeprefix("expected "))
    told = isinstance(value, dict | list) or (isinstance(value, str) and repr(value) in what)
    shown = f"{name}: {what}" if told else f"{name} is {describe(value)}: {what}"
    return Problem(whole, shown, expected)


def _unknown(path: Keys, data: Any, model: type[BaseModel], within: Keys) -> Problem:
    whole = (*within, *path)
    meant = _meant(models_at(model, path[:-1]), _at(data, path[:-1]))
    allowed = sorted({f for m in meant for f in fields(m)}, key=str)
    ordered = [f for m in meant for f in fields(m)]
    listed = ", ".join(dict.fromkeys(ordered))
    section = f" in '{dotted(whole[:-1])}'" if whole[:-1] else ""
    hint = nearest(str(whole[-1]), allowed)
    expected = f"one of: {listed}" if listed else ""
    return Problem(whole, f"unknown field '{whole[-1]}'{section}", expected, hint, at_key=True)


def _meant(models: list[type[BaseModel]], section: Any) -> list[type[BaseModel]]:
    """Of several models, those whose tag (a field of fixed words, `kind`) is what the section says it is."""
    fitting = [
        m
        for m in models
        if isinstance(section, dict)
        and all(section.get(tag) in words for tag in m.model_fields if (words := _words(m, tag)) and tag in section)
    ]
    return fitting or models


def _words(model: type[BaseModel], field: str) -> tuple[Any, ...]:
    """The fixed words that a field may be; none where it may be something else."""
    info = model.model_fields.get(field)
    literal = info is not None and typing.get_origin(info.annotation) is typing.Literal
    return typing.get_args(info.annotation) if info is not None and literal else ()


def _meaning(path: Keys, model: type[BaseModel]) -> str:
    """What a missing field is for."""
    text = _description(path, model).split("; ")[0].split(". ")[0]
    return f"'{path[-1]}: ...' ({text})" if text else f"'{path[-1]}: ...'"


def _description(path: Keys, model: type[BaseModel]) -> str:
    """A field's documentation, in one line."""
    for owner in models_at(model, path[:-1]):
        for name, info in owner.model_fields.items():
            if path and path[-1] == (info.alias or name):
                return " ".join((info.description or "").split()).rstrip(".")
    return ""
