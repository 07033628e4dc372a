"""XML as a tree of elements that know their line, from files that nobody vouches for.

A document type or an entity is refused where it begins: what entities expand to can be made larger than any memory
(the "billion laughs"), and what they refer to can be any file. These topology files need neither.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from xml.parsers import expat

from emulation.io import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

LARGEST_FILE = 16 * 2**20
DEEPEST = 256
MOST_ELEMENTS = 65_536
"""As many as NCCL itself takes (NCCL_GRAPH_XML_MAX_NODES)."""


@dataclass
class Element:
    """An element, its attributes as text, and where it stands."""

    path: Path
    line: int
    name: str
    attributes: Mapping[str, str]
    children: list[Element] = field(default_factory=list)

    def refuse(self, what: str) -> FormatError:
        """An error that names file, line and element."""
        return FormatError(f"{self.path}:{self.line}: <{self.name}>: {what}")

    def all(self, name: str) -> list[Element]:
        """Its children of one name."""
        return [child for child in self.children if child.name == name]

    def text(self, name: str) -> str:
        """An attribute that has to be there."""
        if name not in self.attributes:
            raise self.refuse(f"lacks the attribute {name}")
        return self.attributes[name]

    def whole(self, name: str, default: int | None = None) -> int:
        """An attribute that is a whole number, decimal or with 0x."""
        text = self.text(name) if default is None else self.attributes.get(name, str(default))
        try:
            return int(text, 0)
        except ValueError:
            raise self.refuse(f"{name}={text!r} is not a whole number") from None


def parse(path: Path) -> Element:
    """The outermost element of a file.

    Raises:
        FormatError: not XML, too large or deep, or with a document type or entities; names file and line.
    """
    data = path.read_bytes()
    if len(data) > LARGEST_FILE:
        raise FormatError(f"{path}: {len(data)} bytes; at most {LARGEST_FILE} are read")
    reader = _Reader(path)
    try:
        reader.parser.Parse(data, True)
    except expat.ExpatError as error:
        raise FormatError(f"{path}:{error.lineno}: not well-formed XML: {expat.ErrorString(error.code)}") from error
    return reader.top[0]


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.top: list[Element] = []
        self.open: list[Element] = []
        self.count = 0
        self.parser: Any = expat.ParserCreate()
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = lambda _: self.open.pop()
        self.parser.StartDoctypeDeclHandler = self._declared
        self.parser.EntityDeclHandler = self._declared

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        element = Element(self.path, self.parser.CurrentLineNumber, name, attributes)
        self.count += 1
        if self.count > MOST_ELEMENTS or len(self.open) >= DEEPEST:
            raise element.refuse(f"more than {MOST_ELEMENTS} elements, or more than {DEEPEST} within one another")
        (self.open[-1].children if self.open else self.top).append(element)
        self.open.append(element)

    def _declared(self, *_: Any) -> None:
        line = self.parser.CurrentLineNumber
        raise FormatError(f"{self.path}:{line}: document types and entities are not read; remove the declaration")


def below(element: Element, name: str) -> Iterator[Element]:
    """Every element of one name under another, in the order of the file."""
    for child in element.children:
        if child.name == name:
            yield child
        yield from below(child, name)
