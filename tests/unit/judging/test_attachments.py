"""Drawings and texts that trials kept: shown in the page, unable to do anything there."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from harness import report
from harness.records import Artifact
from harness.report import attachments

SVG = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
PLAIN = f"""<?xml version="1.0" encoding="utf-8" standalone="no"?>
<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd">
<svg {SVG} width="20pt" height="10pt" viewBox="0 0 20 10" version="1.1">
 <defs><style type="text/css">*{{stroke-linejoin: round}}</style><path id="tick" d="M 0 0 L 0 3"/>
 <clipPath id="clip"><rect width="20" height="10"/></clipPath></defs>
 <g id="axes" clip-path="url(#clip)"><use xlink:href="#tick" x="5" style="fill: #1b1c1d"/></g>
 <text x="3" y="4" style="font-size: 9px">device 0 &lt; 1</text>
</svg>"""
HOSTILE = {
    "script": "<script>alert(1)</script>",
    "script of another namespace": '<script xmlns="http://www.w3.org/1999/xhtml">alert(1)</script>',
    "handler": '<rect onload="alert(1)" width="1"/>',
    "image": '<image href="http://evil.example/x.png"/>',
    "link": '<a href="javascript:alert(1)"><text>x</text></a>',
    "use of another file": '<use xlink:href="http://evil.example/x.svg#a"/>',
    "use of another file, plainly": '<use href="//evil.example/x.svg#a"/>',
    "HTML": '<foreignObject><iframe xmlns="http://www.w3.org/1999/xhtml" src="http://evil.example"/></foreignObject>',
    "style": "<style>@import url(http://evil.example/x.css);</style>",
    "fill from elsewhere": '<rect fill="url(http://evil.example/x.svg#a)" width="1"/>',
    "style from elsewhere": '<rect style="fill: url(\'http://evil.example/#a\')" width="1"/>',
    "escaped style": '<rect style="fill: \\75rl(http://evil.example/)" width="1"/>',
    "animation of a link": '<use xlink:href="#a"><set attributeName="href" to="http://evil.example/"/></use>',
    "style of the page": '<rect class="kind measured" width="1"/>',
    "end of the element": "<text>&lt;/svg&gt;&lt;script&gt;alert(1)&lt;/script&gt;</text>",
}
ALLOWED = {"svg", "g", "defs", "path", "clipPath", "rect", "use", "text"}


@pytest.fixture
def shown(make, tmp_path):
    """The page of a record with some artifacts; `files` by path in the trial's directory."""

    def write(files, **where):
        trial = tmp_path / "trial"
        for name, text in files.items():
            (trial / name).parent.mkdir(parents=True, exist_ok=True)
            (trial / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        kept = [Artifact(path=name, sha256="0" * 64, bytes=1) for name in files]
        record = make.record([make.value("steps", [1.0])], artifacts=kept, **where)
        folder = tmp_path / "report"
        path = report.write(make.experiment(), [record], directory=folder, formats=["html"], locate=lambda _: trial)
        return path["html"].read_text("utf-8")

    return write


def test_a_drawing_is_shown_in_the_page_with_a_link_to_the_file(shown):
    page = shown({"artifacts/plan.svg": PLAIN})
    (drawing,) = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert "device 0 &lt; 1" in drawing
    assert 'viewBox="0 0 20 10"' in drawing
    assert 'd="M 0 0 L 0 3"' in drawing
    assert "#1b1c1d" in drawing
    assert 'href="../trial/artifacts/plan.svg"' in page
    assert "default plan.svg" in page
    assert "<!DOCTYPE svg" not in page
    assert page.count("<style") == 1


def test_ids_of_two_drawings_are_apart_and_references_follow_them(shown):
    page = shown({"a.svg": PLAIN, "b.svg": PLAIN})
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids)) == 6
    references = re.findall(r'url\(#([^)]+)\)|xlink:href="#([^"]+)"', page)
    assert len(references) == 4
    assert {one or other for one, other in references} <= set(ids)


@pytest.mark.parametrize("evil", HOSTILE.values(), ids=HOSTILE)
def test_a_drawing_can_only_draw(evil):
    clean = attachments.sanitised(f'<svg {SVG} viewBox="0 0 1 1"><g>{evil}</g></svg>'.encode(), "x-")
    root = ET.fromstring(clean)
    assert {element.tag.partition("}")[2] for element in root.iter()} <= ALLOWED
    for element in root.iter():
        for name, value in element.items():
            assert not name.startswith(("on", "class")), name
            assert "evil" not in value
            assert not name.endswith("href") or value.startswith("#x-")
    assert "<script" not in clean
    assert "@import" not in clean


def test_the_whole_element_takes_no_room_of_its_own():
    clean = attachments.sanitised(
        f'<svg {SVG} width="9" height="7px" style="position: fixed; width: 100vw" onload="x()"/>'.encode(), "x-"
    )
    assert ET.fromstring(clean).attrib == {"viewBox": "0 0 9 7", "role": "img", "aria-label": ""}


def test_text_beside_what_is_left_out_stays():
    clean = attachments.sanitised(
        f'<svg {SVG} viewBox="0 0 1 1"><text>a<!-- c --><b/>d<tspan>e</tspan>f<i/>g</text></svg>'.encode(), "x-"
    )
    assert "".join(ET.fromstring(clean).itertext()) == "adefg"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"no drawing", "not well-formed XML"),
        (b"<html/>", "not SVG"),
        (f"<svg {SVG}/>".encode(), "has no size"),
        (f'<!DOCTYPE svg [<!ENTITY a "aaaa">]><svg {SVG} viewBox="0 0 1 1">&a;</svg>'.encode(), "declares entities"),
        (f"<svg {SVG} viewBox='0 0 1 1'>{'<g>' * 9000}{'</g>' * 9000}</svg>".encode(), "nested deeper than 64"),
        (
            f"<svg {SVG} viewBox='0 0 1 1'><g id='a'><use href='#b'/></g><use xlink:href='#a'/></svg>".encode(),
            "uses what uses something in turn",
        ),
        (PLAIN.encode("utf-16"), "not UTF-8"),
        (PLAIN.encode() + b" " * attachments.MOST_BYTES, "too large to show here"),
    ],
    ids=["text", "HTML", "no size", "entities", "depth", "uses", "encoding", "size"],
)
def test_a_drawing_that_cannot_be_shown_is_linked_and_says_why(shown, data, problem):
    page = shown({"plan.svg": data})
    assert "<svg" not in page
    assert problem in page
    assert 'href="../trial/plan.svg"' in page


def test_a_text_is_folded_and_escaped(shown):
    page = shown({"why.txt": "\nfirst <script>alert(1)</script>\x1b[31m\n\tsecond ₀▒\n"})
    (text,) = re.findall(r"<details><summary>.*?<pre>(.*?)</pre>", page, re.DOTALL)
    # The first newline after <pre> is markup; the text has one of its own.
    assert text == "\n\nfirst &lt;script&gt;alert(1)&lt;/script&gt;\ufffd[31m\n\tsecond ₀▒\n"
    assert 'href="../trial/why.txt"' in page


def test_of_a_long_text_the_beginning_is_shown(shown):
    page = shown({"why.txt": "a" * attachments.MOST_CHARACTERS + "b" * 1000})
    assert "only its beginning is shown" in page
    assert "aab" not in page


def test_what_is_beyond_the_first_few_is_linked(shown):
    more = {f"{n}.svg": PLAIN for n in range(attachments.MOST_DRAWN + 2)}
    more |= {f"{n:02d}.txt": "text" for n in range(attachments.MOST_TEXTS + 3)}
    page = shown(more)
    assert page.count("<svg") == attachments.MOST_DRAWN
    assert page.count("<pre>") == attachments.MOST_TEXTS
    assert "5 further files" in page
    assert all(f'href="../trial/{name}"' in page for name in more)


def test_nothing_outside_of_a_trial_is_shown(shown):
    page = shown({"../secret.txt": "secret", "../secret.svg": PLAIN, "../trace.json": "[]"})
    assert "secret" not in page
    assert "trace.json" not in page


def test_a_link_out_of_a_trial_is_not_followed(shown, tmp_path):
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial" / "a.txt").symlink_to(tmp_path / "elsewhere")
    page = shown({"a.txt": "secret", "b.txt": "public"})
    assert (tmp_path / "elsewhere").read_text("utf-8") == "secret"
    assert "secret" not in page
    assert "public" in page
