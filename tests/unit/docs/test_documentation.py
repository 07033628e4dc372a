"""What the documentation tells a reader to type or to open exists."""

import re
import shlex
from pathlib import Path

import pytest

from harness import cli

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "engines").rglob("*.md")])


def page_id(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_relative_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_harness_commands_in_the_text_parse(page):
    for line in re.findall(r"^(?:    |\$ )(?:\.venv/bin/)?(harness [^\n#]*)", page.read_text("utf-8"), re.MULTILINE):
        verb, *arguments = shlex.split(line)[1:]
        assert verb in cli.VERBS or verb.startswith("-"), line
        cli._parsed([verb, *arguments])


def test_every_runtime_dependency_has_its_sentence():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = [d for group in project["optional-dependencies"].values() for d in group]
    text = (ROOT / "docs" / "dependencies.md").read_text("utf-8").casefold()
    for requirement in [*project["dependencies"], *extras]:
        name = re.split(r"[<>=; \[]", requirement)[0].casefold()
        assert name.startswith("types-") or name in text, f"{name} is not explained in docs/dependencies.md"


def test_the_make_targets_named_in_the_readme_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for page in PAGES:
        for named in re.findall(r"`make ([a-z-]+)", page.read_text("utf-8")):
            assert named in targets, f"{page.name}: make {named}"
