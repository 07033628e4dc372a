"""Drawings and texts that trials kept among their artifacts, made fit to stand in the page.

An engine's SVG is as untrusted as the rest of a record: only elements and attributes that draw are taken over, nothing
in them may point out of the drawing, and its ids are renamed so that they meet no other's on the page.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.judging.observations import TargetName, target_of
from harness.report import artifacts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.records import Record
    from harness.report.content import Locate

MOST_DRAWN = 6
"""Drawings shown for each target; the others are linked."""
MOST_TEXTS = 12
"""Texts shown for each target; the others are linked."""
MOST_BYTES = 2 * 2**20
"""Of a drawing that is shown."""
DEEPEST = 64
"""Elements within one another, of a drawing that is shown."""
MOST_CHARACTERS = 64 * 2**10
"""Of a text that are shown."""

_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_ELEMENTS = {
    "svg", "g", "defs", "symbol", "use", "path", "rect", "circle", "ellipse", "line", "polyline", "polygon", "text",
    "tspan", "title", "desc", "clipPath", "pattern", "linearGradient", "radialGradient", "stop",
}  # fmt: skip
_UNWANTED = {"class", "tabindex", "lang", "is", "slot", "part"}
"""Attributes by which the page's style or a browser's behaviour would take hold of a drawing."""
_REFERENCE = re.compile(r"url\(\s*(['\"]?)#([^'\")\s]+)\1\s*\)", re.IGNORECASE)
# A backslash escapes letters in CSS, so that `\75rl(` would be `url(`; a comment could part the word.
_FETCHES = re.compile(r"\\|/\*|url\(|image|src\(|import|expression|javascript:", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Attachment:
    """A file that a trial kept."""

    title: str
    target: TargetName
    path: Path
    svg: str = ""
    """The drawing as markup that is safe to insert."""
    text: str | None = None
    """The beginning of a text; to be escaped."""
    problem: str = ""
    """Why it is not shown, or not wholly."""


def drawings(records: Sequence[Record], locate: Locate) -> list[Attachment]:
    """Every `*.svg` that can be found on disk; the first few of each target are shown."""
    kept: list[Attachment] = []
    shown: Counter[TargetName] = Counter()
    for record, artifact, path in artifacts.found(records, locate, ".svg"):
        title, target = _title(record, artifact.path), target_of(record)
        shown[target] += 1
        if shown[target] > MOST_DRAWN:
            kept.append(Attachment(title, target, path))
        elif path.stat().st_size > MOST_BYTES:
            kept.append(Attachment(title, target, path, problem="the drawing is too large to show here"))
        else:
            kept.append(_drawing(title, target, path, f"attached-{len(kept)}-"))
    return kept


def texts(records: Sequence[Record], locate: Locate) -> list[Attachment]:
    """Every `*.txt` that can be found on disk; the first few of each target are shown."""
    kept: list[Attachment] = []
    shown: Counter[TargetName] = Counter()
    for record, artifact, path in artifacts.found(records, locate, ".txt"):
        title, target = _title(record, artifact.path), target_of(record)
        shown[target] += 1
        if shown[target] > MOST_TEXTS:
            kept.append(Attachment(title, target, path))
            continue
        with path.open(encoding="utf-8", errors="replace") as stream:
            text = stream.read(MOST_CHARACTERS + 1)
        cut = "only its beginning is shown" if len(text) > MOST_CHARACTERS else ""
        kept.append(Attachment(title, target, path, text=_CONTROL.sub("\ufffd", text[:MOST_CHARACTERS]), problem=cut))
    return kept


def _title(record: Record, path: str) -> str:
    return f"{record.cell} {path.rsplit('/', 1)[-1]}"


def _drawing(title: str, target: TargetName, path: Path, prefix: str) -> Attachment:
    try:
        return Attachment(title, target, path, svg=sanitised(path.read_bytes(), prefix, title))
    except ValueError as error:
        return Attachment(title, target, path, problem=str(error))


def sanitised(data: bytes, prefix: str, label: str = "") -> str:
    """An SVG document as an element that draws what it drew, and can do nothing else.

    Args:
        data: the document.
        prefix: put before its ids.
        label: what a screen reader says.

    Raises:
        ValueError: it is no SVG in UTF-8, declares entities, has no size, or nests too deep.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("the drawing is not UTF-8") from None
    # Entities that are declared in the document can make a small file grow without bound.
    if "<!ENTITY" in text:
        raise ValueError("the drawing declares entities")
    try:
        root = ET.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", text))
    except ET.ParseError:
        raise ValueError("the drawing is not well-formed XML") from None
    if root.tag != f"{_SVG}svg":
        raise ValueError("the drawing is not SVG")
    box = root.get("viewBox") or _box(root)
    _limit(root)
    clean = _cleaned(root, prefix)
    # The page decides how large a drawing is, and where it stands.
    clean.attrib = {"viewBox": box, "role": "img", "aria-label": label}
    ET.register_namespace("", _SVG.strip("{}"))
    ET.register_namespace("xlink", _LINK[1:].partition("}")[0])
    return ET.tostring(clean, encoding="unicode")


def _limit(root: ET.Element) -> None:
    """Refuse what would take a reader's browser, or this process, without end."""
    level = [root]
    for _ in range(DEEPEST):
        level = [child for element in level for child in element]
    if level:
        raise ValueError(f"the drawing is nested deeper than {DEEPEST}")
    use = f"{_SVG}use"
    reusing = {e.get("id") for e in root.iter() if any(inner.tag == use for inner in e.iter())} - {None}
    used = (element.get(_LINK) or element.get("href") or "" for element in root.iter(use))
    if any(reference[1:] in reusing for reference in used):
        # Ten uses of ten uses of ten uses, and so on: a few lines draw without end.
        raise ValueError("the drawing uses what uses something in turn")


def _box(root: ET.Element) -> str:
    sides = [re.match(r"\s*(\d+(?:\.\d+)?)\s*(?:px|pt)?\s*$", root.get(name, "")) for name in ("width", "height")]
    if not all(sides):
        raise ValueError("the drawing has no size")
    return "0 0 " + " ".join(side[1] for side in sides if side)


def _cleaned(element: ET.Element, prefix: str) -> ET.Element:
    clean = ET.Element(element.tag, _attributes(element, prefix))
    clean.text, clean.tail = element.text, element.tail
    last: ET.Element | None = None
    for child in element:
        # A comment's tag is a function.
        if isinstance(child.tag, str) and child.tag.removeprefix(_SVG) in _ELEMENTS and child.tag.startswith(_SVG):
            last = _cleaned(child, prefix)
            clean.append(last)
        elif last is not None:
            last.tail = (last.tail or "") + (child.tail or "")
        else:
            clean.text = (clean.text or "") + (child.tail or "")
    return clean


def _attributes(element: ET.Element, prefix: str) -> dict[str, str]:
    kept: dict[str, str] = {}
    for name, value in element.items():
        if name == "id":
            kept[name] = prefix + value
        elif name in (_LINK, "href"):
            if value.startswith("#"):
                kept[name] = f"#{prefix}{value[1:]}"
        elif not name.startswith(("on", "{", "aria-", "data-")) and name not in _UNWANTED:
            rest = _REFERENCE.sub("", value)
            if not _FETCHES.search(rest):
                kept[name] = _REFERENCE.sub(lambda found: f"url(#{prefix}{found[2]})", value)
    return kept
