"""Closed streams, full devices, odd locales, an early Ctrl-C: the front door answers in one line or not at all."""

import json
import os
import subprocess
import sys

import pytest

from harness import cli

SPEC = """\
schema: 1
name: surroundings
description: "é 漢"
engine: {name: rdma, transports: [zero-copy], sizes: [64 KiB]}
on: {backend: emulated, hardware: rdma-100g-pair}
"""
COMMAND = f"{sys.executable} -m harness"
ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture
def spec(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC, "utf-8")
    return path


def shell(line, **environment):
    return subprocess.run(
        ["/bin/sh", "-c", line], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_streams_do_not_matter(spec, tmp_path, closed):
    done = shell(f"exec {closed}; {COMMAND} run {spec} --out {tmp_path}/runs --no-report")
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    (record,) = (tmp_path / "runs").rglob("record.json")
    assert json.loads(record.read_text("utf-8"))["state"] == "ok"


def test_output_that_cannot_be_written_is_one_line_of_error(spec):
    done = shell(f"{COMMAND} validate {spec} > /dev/full")
    assert (done.returncode, done.stderr) == (1, "harness: error: No space left on device\n")


@pytest.mark.parametrize("verb", ["validate", "explain", "explain --yaml", "run --out {} --no-report"])
def test_a_terminal_of_ascii_gets_escapes_where_it_lacks_letters(spec, tmp_path, verb):
    verb, *options = verb.format(tmp_path / "runs").split()
    done = shell(" ".join([COMMAND, verb, str(spec), *options]), **ASCII)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()


def test_json_for_a_terminal_of_ascii_is_json(spec):
    done = shell(f"{COMMAND} explain {spec} --json", **ASCII)
    values = {row["path"]: row["value"] for row in json.loads(done.stdout)["values"]}
    assert values["description"] == "é 漢"


@pytest.mark.parametrize("place", ["_parsers", "importlib.import_module"])
def test_an_interrupt_before_anything_runs_is_one_line(monkeypatch, capsys, place):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"harness.cli.{place}", interrupted)
    assert cli.main(["ls", "specs"]) == 130
    assert capsys.readouterr().err == "harness: interrupted\n"


def test_a_working_directory_that_is_gone_is_named(tmp_path):
    (tmp_path / "gone").mkdir()
    done = shell(f"cd {tmp_path}/gone && rmdir ../gone && {COMMAND} ls specs")
    assert (done.returncode, done.stderr) == (1, "harness: error: the working directory: No such file or directory\n")


def test_what_is_typed_under_an_ascii_locale_is_read_as_utf8(spec):
    done = shell(f"{COMMAND} explain {spec} description --json --set 'description=Ünï'", **ASCII)
    assert json.loads(done.stdout)["values"][0]["value"] == "Ünï"
