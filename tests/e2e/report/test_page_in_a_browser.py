"""The page as a browser shows it: visible, legible in both themes and at phone width, and silent on the network."""

from __future__ import annotations

import html
import json
import re

import pytest

pytestmark = pytest.mark.browser

MEASURE = """
<script>
const boxes = name => [...document.querySelectorAll(name)].map(e => {
  const b = e.getBoundingClientRect();
  return {width: b.width, height: b.height, shown: e.checkVisibility(), folded: !!e.closest("details:not([open])")};
});
const rgb = text => text.match(/[0-9.]+/g).slice(0, 3).map(Number);
const light = text => rgb(text).map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const ground = getComputedStyle(document.body).backgroundColor;
const contrast = colour => {
  const [a, b] = [light(colour), light(ground)].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
};
const worst = (name, property) =>
  Math.min(...[...document.querySelectorAll(name)].map(e => contrast(getComputedStyle(e)[property])));
const words = ".kind, .word, .value, .interval, .place, .ratio, .empty, .why, h1, h2, td, th, dt, dd, a, figcaption";
const found = {
  dark: light(ground) < 0.2,
  tables: boxes("table"), drawings: boxes("svg"), captions: boxes("figcaption"), text: boxes("svg text"),
  page: document.documentElement.scrollWidth, window: document.documentElement.clientWidth,
  worst: worst(words, "color"), drawn: worst("svg text", "fill"),
  fetched: performance.getEntriesByType("resource").map(e => e.name),
};
const out = document.createElement("pre"); out.id = "measured"; out.textContent = JSON.stringify(found);
document.body.appendChild(out);
</script>
"""


@pytest.fixture
def measured(page, dump, tmp_path):
    """What a script finds on a copy of the page that has one; the page itself has none."""

    def run(*flags, width=1280):
        copy = tmp_path / "measured.html"
        copy.write_text(page.read_text("utf-8").replace("</body>", MEASURE + "</body>"), "utf-8")
        text = dump(copy.as_uri(), *flags, width=width)
        return json.loads(html.unescape(re.search(r'<pre id="measured">(.*?)</pre>', text, re.DOTALL)[1]))

    return run


THEMES = {"light": "--blink-settings=preferredColorScheme=1", "dark": "--blink-settings=preferredColorScheme=0"}


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", [1280, 500], ids=["desk", "phone"])
def test_tables_and_drawings_are_visible_and_legible(measured, theme, width):
    found = measured(THEMES[theme], width=width)
    assert found["dark"] is (theme == "dark")
    open_tables = [box for box in found["tables"] if not box["folded"]]
    # Two metrics, the verdicts, the scores, the trials without a result.
    assert len(open_tables) == 5
    # Two metrics on three targets, two scatter plots, one timeline.
    assert len(found["drawings"]) == 2 * 3 + 2 + 1
    for box in [*open_tables, *found["drawings"]]:
        assert box["shown"]
        assert box["width"] > 200
        assert box["height"] > 40
    assert all(box["height"] >= 8 and box["shown"] for box in found["text"])
    assert found["page"] <= found["window"], "the page scrolls sideways"
    # WCAG 2 AA for text.
    assert found["worst"] >= 4.5
    assert found["drawn"] >= 4.5
    assert found["fetched"] == []


def visit(dump, recorder, text):
    record = recorder(text)
    dump("http://report.test/index.html", f"--proxy-server=http://127.0.0.1:{record.port}")
    assert ("report.test", "/index.html") in record.asked
    return record


def test_nothing_is_fetched_from_the_network(page, dump, recorder):
    own = visit(dump, recorder, "<!DOCTYPE html><title>empty</title>")
    seen = visit(dump, recorder, page.read_text("utf-8"))
    # Whatever the browser asks for on its own account, it asks for with an empty page, too.
    assert {ask for ask in seen.asked if ask[0] not in own.hosts() - {"report.test"}} <= {
        ("report.test", "/index.html"),
        ("report.test", "/favicon.ico"),
    }


def test_the_recorder_would_notice_a_fetch(dump, recorder):
    seen = visit(dump, recorder, '<!DOCTYPE html><img src="http://elsewhere.test/picture.png">')
    assert ("elsewhere.test", "/picture.png") in seen.asked
