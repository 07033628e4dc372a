"""The front door stays light, its surface is frozen, and a wrong command line is answered helpfully."""

import json
import os
import subprocess
import sys

import pytest

from harness import cli

HEAVY = ("pydantic", "yaml", "numpy", "networkx", "simpy", "torch", "ray", "rich", "scipy", "duckdb", "psutil")


def modules_after(*argv, **environment):
    """Top-level modules a fresh interpreter holds after one command line."""
    program = (
        "import sys, json, atexit\n"
        "atexit.register(lambda: sys.stderr.write('\\nMODULES ' + json.dumps(sorted(sys.modules))))\n"
        "from harness.cli import main\n"
        f"sys.exit(main({list(argv)!r}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )
    return {name.split(".")[0] for name in json.loads(done.stderr.rsplit("MODULES ", 1)[1])}


@pytest.mark.parametrize("argv", [("--help",), ("--version",), ("run", "--help"), ("nonsense",)], ids=" ".join)
def test_nothing_heavy_is_imported_before_a_verb_is_known(argv):
    assert modules_after(*argv).isdisjoint(HEAVY)


def test_completion_imports_nothing_heavy():
    pytest.importorskip("argcomplete")
    read, write = os.pipe()
    program = (
        "import sys, json, os, argcomplete\n"
        "from harness.cli import parser\n"
        "argcomplete.autocomplete(parser(), exit_method=lambda code: None,"
        " output_stream=open(os.environ['OUT_FD'] and int(os.environ['OUT_FD']), 'w'))\n"
        "sys.stdout.write(json.dumps(sorted(sys.modules)))\n"
    )
    environment = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "COMP_LINE": "harness val",
        "COMP_POINT": "11",
        "OUT_FD": str(write),
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        pass_fds=(write,),
        check=True,
    )
    os.close(write)
    with os.fdopen(read) as completions:
        assert "validate" in completions.read()
    assert {name.split(".")[0] for name in json.loads(done.stdout)}.isdisjoint(HEAVY)


def test_the_surface_is_frozen():
    """A verb or option that comes or goes is a decision: change this list with the changelog."""
    sub = next(a for a in cli.parser()._actions if a.dest == "verb")
    surface = {
        verb: sorted(max(a.option_strings, key=len) for a in parser._actions if a.option_strings and a.dest != "help")
        for verb, parser in sub.choices.items()
    }
    running = ["--fail-fast", "--jobs", "--json", "--junit", "--mode", "--no-report", "--on", "--out"]
    running += ["--quiet", "--set"]
    assert surface == {
        "run": [*running, "--verbose"],
        "predict": [*running, "--verbose"],
        "validate": ["--json", "--on", "--set"],
        "plan": ["--json", "--on", "--set"],
        "explain": ["--json", "--on", "--set", "--yaml"],
        "ls": ["--json", "--out"],
        "show": ["--json", "--out"],
        "status": ["--json", "--on", "--out", "--set"],
        "compare": ["--json", "--out", "--predictions"],
        "calibrate": ["--json", "--name", "--only", "--quick", "--to"],
        "check-emulator": ["--data", "--held-out", "--json", "--seeds", "--update"],
        "report": ["--json", "--junit", "--on", "--out", "--set", "--to"],
        "import": ["--hardware", "--json", "--op", "--ranks", "--to"],
        "export": ["--json", "--out", "--to"],
        "schema": ["--check", "--json"],
        "softroce": [
            *("--delay", "--get", "--host", "--hosts", "--json", "--loss", "--memory", "--put", "--rate", "--timeout"),
            *("--to", "--with"),
        ],
        "doctor": ["--json"],
        "reindex": ["--json", "--out"],
        "clean": ["--all", "--json", "--out"],
        "completion": ["--json"],
    }


def test_every_verb_has_its_module():
    for verb in cli.VERBS:
        assert callable(__import__(cli.module_of(verb), fromlist=["run"]).run)


@pytest.mark.parametrize(
    ("argv", "hint"),
    [(("rnu",), "'run'"), (("run", "x.yaml", "--mode", "cache"), "'cached'"), (("run", "x.yaml", "--jsn"), "'--json'")],
    ids=["verb", "choice", "option"],
)
def test_a_slip_on_the_command_line_suggests_what_was_meant(argv, hint, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(argv)
    assert exit_.value.code == 2
    assert hint in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    done = subprocess.run(
        f"{sys.executable} -m harness ls engines | true",
        shell=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("run a.yaml --on local b.yaml -q c.yaml", {"specs": ["a.yaml", "b.yaml", "c.yaml"], "on": "local"}),
        ("explain a.yaml --on emulated engine.x", {"specs": ["a.yaml"], "path": "engine.x"}),
        ("explain --json a.yaml", {"specs": ["a.yaml"], "path": ""}),
        ("ls runs --out there mine", {"what": "runs", "name": "mine", "out": "there"}),
        ("ls --json runs", {"what": "runs", "name": "", "json": True}),
        ("compare one --json two", {"runs": ["one", "two"]}),
        ("compare --predictions", {"runs": []}),
        ("export --to x.csv mine", {"spec": "mine", "to": "x.csv"}),
        ("clean --out there mine", {"names": ["mine"], "all": False}),
        ("clean --all", {"names": [], "all": True}),
        ("softroce run --hosts 3 -- ls -l --all", {"hosts": 3, "command": ["ls", "-l", "--all"]}),
        ("softroce --json status", {"action": "status", "json": True, "command": []}),
    ],
)
def test_names_may_stand_before_between_and_after_options(line, expected):
    parsed = vars(cli._parsed(line.split()))
    assert {key: parsed[key] for key in expected} == expected
    assert parsed["verb"] == line.split()[0]
