"""YAML text to plain data, with the place of every key and every value.

PyYAML's C parser reads the text; what this module adds is what a spec needs and a general loader lacks:

* the scalars of YAML 1.2's core schema, so that `1e6` is a number, `NO` a word and `3:25` a word, where PyYAML's
  own YAML 1.1 rules give a word, `False` and 205;
* a `Spot` for each path, so that a later stage can say `file:line:column` about any value;
* refusal, each with its place, of what is never meant: duplicate keys, keys that are not text, custom tags,
  infinities, and files built to exhaust the reader (size, depth, aliases of aliases).

Mistakes that leave the rest readable are collected in `Document.problems`; those that do not (a syntax error,
another encoding) are raised at once. Anchors, aliases and merge keys (`<<`) work, within the caps.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import yaml
from yaml.composer import Composer
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from harness.errors import Position, Problem, SpecError
from harness.loading.scalars import CORE_SCHEMA, TAG, CoreResolver, scalar

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

MAX_BYTES = 2**20
MAX_DEPTH = 64
MAX_NODES = 100_000

Keys = tuple[str | int, ...]
"""A path in a document: mapping keys and list indices."""

_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufeff\ufffe\uffff]")
_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
_EXCERPT_WIDTH = 110


@dataclass(frozen=True)
class Spot:
    """Where a value stands, and the key it stands under (list items and the whole document have none)."""

    value: Position
    key: Position | None = None
    block: bool = False
    """Whether the key points to the value better than its own first character: a mapping, a list, or nothing."""


@dataclass(frozen=True)
class Document:
    """What one or several merged files say."""

    file: str
    """The file that was asked for, as the user wrote it."""
    data: Any
    spots: Mapping[Keys, Spot]
    sources: Mapping[str, tuple[str, ...]]
    """File name to its lines, for excerpts."""
    problems: tuple[Problem, ...] = ()
    broken: frozenset[Keys] = field(default=frozenset())
    """Paths whose value could not be read; what a model says about them is not worth telling."""

    def locate(self, path: Keys, *, key: bool = False) -> Position:
        """The place of a path's value (or key), or of the nearest part of the document that holds it."""
        for length in range(len(path), -1, -1):
            spot = self.spots.get(path[:length])
            if spot is None:
                continue
            wants_key = key or spot.block or length < len(path)
            return spot.key if wants_key and spot.key else spot.value
        return Position(self.file, 1, 1)

    def place(self, problem: Problem) -> Problem:
        """The problem with its position and excerpt filled in from its path."""
        position = problem.position or self.locate(problem.path, key=problem.at_key)
        return replace(problem, position=position, excerpt=excerpt(self.sources.get(position.file, ()), position))


def excerpt(lines: tuple[str, ...], position: Position) -> str:
    """The line before and the line itself, numbered, with a caret under the mistake; empty where there is no text."""
    if not 1 <= position.line <= len(lines):
        return ""
    width = len(str(position.line))
    shown = []
    for number in range(max(1, position.line - 1), position.line + 1):
        text = "".join(c if c.isprintable() else " " for c in lines[number - 1])
        shown.append((number, text))
    start = position.column - 1
    shift = max(0, start - _EXCERPT_WIDTH * 2 // 3) if len(shown[-1][1]) > _EXCERPT_WIDTH else 0
    rows = [f"  {number:>{width}} | {text[shift : shift + _EXCERPT_WIDTH]}".rstrip() for number, text in shown]
    here = shown[-1][1]
    indent = _columns(here[shift:start].ljust(start - shift))
    length = max(1, _columns(here[start : min(start + position.length, shift + _EXCERPT_WIDTH)]))
    return "\n".join([*rows, f"  {' ' * width} | {' ' * indent}{'^' * length}"])


def _columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def read(path: Path, *, shown: str = "") -> Document:
    """Read one YAML file.

    Args:
        path: the file.
        shown: its name in messages, where that is not `str(path)`.

    Raises:
        SpecError: the file cannot be read, is not UTF-8 or is not YAML.
    """
    name = shown or str(path)
    return compose(read_text(path, name), name)


def read_text(path: Path, name: str) -> str:
    """The file's text, if it is UTF-8 (with or without a byte order mark) of at most `MAX_BYTES`.

    Raises:
        SpecError: it is something else.
    """
    start = Position(name, 1, 1)
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SpecError.single(f"cannot read the file: {reason}", position=start) from None
    if len(raw) > MAX_BYTES:
        raise SpecError.single(
            "the file is larger than 1 MiB", expected="a spec, which is a few kilobytes", position=start
        )
    return _decode(raw, name)


def _decode(raw: bytes, name: str) -> str:
    start = Position(name, 1, 1)
    wide = raw[:2] in (b"\xff\xfe", b"\xfe\xff") or raw[:4] == b"\x00\x00\xfe\xff"
    if wide or (len(raw) > 1 and b"\x00" in raw[:2]):
        raise SpecError.single("the file is encoded as UTF-16 or UTF-32", expected="UTF-8", position=start)
    try:
        return raw.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        before = raw[: error.start].removeprefix(b"\xef\xbb\xbf").decode("utf-8")
        lines = _BREAK.split(before)
        where = Position(name, len(lines), len(lines[-1]) + 1)
        raise SpecError.single(
            f"byte 0x{raw[error.start]:02x} is not UTF-8 text", expected="a file saved as UTF-8", position=where
        ) from None


def compose(text: str, name: str, *, empty: bool = False) -> Document:
    """Plain data and places from YAML text.

    Args:
        text: one YAML document.
        name: what messages call it.
        empty: whether no content at all is a value (null) rather than a mistake.

    Raises:
        SpecError: it is not one well-formed YAML document within the caps.
    """
    lines = tuple(_BREAK.split(text))
    sources = {name: lines}
    found = _FORBIDDEN.search(text)
    if found:
        before = _BREAK.split(text[: found.start()])
        where = Position(name, len(before), len(before[-1]) + 1)
        raise _fatal(f"control character U+{ord(found[0]):04X}", "printable text", where, lines)
    try:
        node = _Loader(text).get_single_node()
    except yaml.YAMLError as error:
        raise _syntax_error(error, name, lines) from None
    if node is None:
        if empty:
            return Document(name, None, {(): Spot(Position(name, 1, len(text) + 1), block=True)}, sources)
        raise _fatal("the file is empty", "a YAML mapping", Position(name, 1, 1), lines)
    builder = _Builder(name, lines)
    data = builder.build(node, (), None, ())
    return Document(name, data, builder.spots, sources, tuple(builder.problems), frozenset(builder.broken))


def _fatal(what: str, expected: str, where: Position, lines: tuple[str, ...]) -> SpecError:
    return SpecError([Problem((), what, expected, "", where, excerpt(lines, where))])


def _syntax_error(error: yaml.YAMLError, name: str, lines: tuple[str, ...]) -> SpecError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    where = Position(name, min(line, len(lines)), column if line <= len(lines) else len(lines[-1]) + 1)
    text = lines[where.line - 1]
    if text[where.column - 1 : where.column] == "\t" or (text[: where.column].strip() == "" and "\t" in text[:column]):
        tab = Position(name, where.line, text.index("\t") + 1)
        return _fatal("a tab where indentation is due", "spaces", tab, lines)
    if isinstance(error, _CapError):
        return _fatal(str(error.problem), error.expected, where, lines)
    what = " ".join(str(part) for part in (getattr(error, "context", ""), getattr(error, "problem", "")) if part)
    if "single document" in what:
        return _fatal("a second document begins here", "one YAML document a file", where, lines)
    return _fatal(f"not well-formed YAML: {what or type(error).__name__}", "", where, lines)


class _CapError(yaml.MarkedYAMLError):
    """A limit on the shape of a document is exceeded."""

    expected = f"at most {MAX_DEPTH} levels"


if yaml.__with_libyaml__:
    from yaml._yaml import CParser as _Events
else:
    from yaml.parser import Parser
    from yaml.reader import Reader
    from yaml.scanner import Scanner

    class _Events(Reader, Scanner, Parser):  # type: ignore[no-redef]
        """The same events from pure Python, for an interpreter without libyaml."""

        def __init__(self, stream: str) -> None:
            Reader.__init__(self, stream)
            Scanner.__init__(self)
            Parser.__init__(self)


class _Loader(Composer, CoreResolver, _Events):
    """Events of the C parser, composed in Python so that the depth is known before the stack is spent."""

    def __init__(self, text: str) -> None:
        _Events.__init__(self, text)
        Composer.__init__(self)
        CoreResolver.__init__(self)
        self.depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            event: Any = self.peek_event()
            raise _CapError(problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Builder:
    """Turns nodes into data, noting each path's place and collecting what is wrong."""

    def __init__(self, file: str, lines: tuple[str, ...]) -> None:
        self.file = file
        self.lines = lines
        self.spots: dict[Keys, Spot] = {}
        self.problems: list[Problem] = []
        self.broken: set[Keys] = set()
        self.count = 0

    def build(self, node: Node, path: Keys, key: Position | None, within: tuple[int, ...]) -> Any:
        """The data of a node; `within` are the collections it lies in, to find one that contains itself."""
        where = self._position(node)
        self._count(where)
        if id(node) in within or len(within) > MAX_DEPTH:
            reason = "an alias to something it is part of" if id(node) in within else "aliases nested too deep"
            raise _fatal(reason, f"at most {MAX_DEPTH} levels", where, self.lines)
        self.spots[path] = Spot(where, key, block=not isinstance(node, ScalarNode) or where.length == 0)
        if isinstance(node, ScalarNode):
            return self._scalar(node, path, where)
        if node.tag not in (TAG + "map", TAG + "seq"):
            self._refuse(path, f"tag {_shown_tag(node.tag)}", "plain YAML without custom tags", where)
        if isinstance(node, SequenceNode):
            inner = (*within, id(node))
            return [self.build(child, (*path, i), None, inner) for i, child in enumerate(node.value)]
        return self._mapping(node, path, (*within, id(node)))

    def _count(self, where: Position) -> None:
        self.count += 1
        if self.count > MAX_NODES:
            what = f"more than {MAX_NODES} values once aliases are expanded"
            raise _fatal(what, "a smaller document", where, self.lines)

    def _mapping(self, node: Node, path: Keys, within: tuple[int, ...]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merges: list[Node] = []
        for key_node, value_node in node.value:
            where = self._position(key_node)
            if key_node.tag == TAG + "merge":
                merges.append(value_node)
            elif not isinstance(key_node, ScalarNode) or key_node.tag != TAG + "str":
                shown = repr(key_node.value) if isinstance(key_node, ScalarNode) else "a list or mapping"
                self._add(
                    path,
                    f"{shown} is not text, as every key must be",
                    f"a quoted key such as '{_word(key_node)}'",
                    where,
                )
            elif key_node.value in result:
                first = self.spots[(*path, key_node.value)].key
                line = f"; the first is in line {first.line}" if first else ""
                self._add((*path, key_node.value), f"duplicate key {key_node.value!r}{line}", "each key once", where)
            else:
                result[key_node.value] = self.build(value_node, (*path, key_node.value), where, within)
        for value_node in merges:
            self._merge(value_node, result, path, within)
        return result

    def _merge(self, node: Node, result: dict[str, Any], path: Keys, within: tuple[int, ...]) -> None:
        # What stands in the mapping itself wins over what is merged in, and an earlier merge over a later one.
        for source in node.value if isinstance(node, SequenceNode) else [node]:
            if not isinstance(source, MappingNode):
                self._add(
                    path, "a merge key (<<) of something else than mappings", "<<: *anchor", self._position(source)
                )
                continue
            if id(source) in within:
                raise _fatal("an alias to something it is part of", "", self._position(source), self.lines)
            inner = self._mapping_nodes(source, within)
            for key_node, value_node in inner:
                if key_node.value not in result:
                    where = self._position(key_node)
                    result[key_node.value] = self.build(value_node, (*path, key_node.value), where, within)

    def _mapping_nodes(self, node: MappingNode, within: tuple[int, ...]) -> Iterator[tuple[ScalarNode, Node]]:
        """Key and value nodes of a mapping that is merged into another, its own merges after its own keys."""
        self._count(self._position(node))
        deeper = []
        for key_node, value_node in node.value:
            if key_node.tag == TAG + "merge":
                deeper.append(value_node)
            elif isinstance(key_node, ScalarNode) and key_node.tag == TAG + "str":
                yield key_node, value_node
        for value_node in deeper:
            for source in value_node.value if isinstance(value_node, SequenceNode) else [value_node]:
                if isinstance(source, MappingNode) and id(source) not in within and len(within) <= MAX_DEPTH:
                    yield from self._mapping_nodes(source, (*within, id(node)))

    def _scalar(self, node: ScalarNode, path: Keys, where: Position) -> Any:
        tag = node.tag.removeprefix(TAG)
        if tag in {"str", "merge"}:
            return node.value
        if tag == "timestamp" or tag not in {"null", "bool", "int", "float"}:
            return self._refuse(path, f"tag {_shown_tag(node.tag)}", "plain YAML without custom tags", where)
        pattern = next(p for name, p, _ in CORE_SCHEMA if name == tag)
        if not pattern.match(node.value):
            return self._refuse(path, f"{node.value!r} is not of the type !!{tag}", "", where)
        try:
            return scalar(tag, node.value)
        except ValueError as error:
            return self._refuse(path, str(error), "a finite number of at most 64 bits", where)

    def _refuse(self, path: Keys, what: str, expected: str, where: Position) -> None:
        self.broken.add(path)
        self._add(path, what, expected, where)

    def _add(self, path: Keys, what: str, expected: str, where: Position) -> None:
        self.problems.append(Problem(path, what, expected, "", where, excerpt(self.lines, where)))

    def _position(self, node: Node) -> Position:
        start, end = node.start_mark, node.end_mark
        line = start.line + 1
        text = self.lines[start.line] if start.line < len(self.lines) else ""
        stop = end.column if end.line == start.line else len(text.rstrip())
        return Position(self.file, line, start.column + 1, stop - start.column)


def _shown_tag(tag: str) -> str:
    return f"'!!{tag.removeprefix(TAG)}'" if tag.startswith(TAG) else repr(tag)


def _word(node: Node) -> str:
    return str(node.value) if isinstance(node, ScalarNode) else "name"
