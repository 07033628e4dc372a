"""Command lines that are refused before anything is built or booted."""

import pytest

from emulation.softroce import Ended, cache
from harness import cli
from harness.verbs import softroce

BOOTED = "a guest was about to be built or booted"


@pytest.fixture(autouse=True)
def no_guests(monkeypatch):
    def fail(*_, **__):
        pytest.fail(BOOTED)

    monkeypatch.setattr("emulation.softroce.Image.build", fail)
    monkeypatch.setattr("harness.guests.layers", lambda more=(): ())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("run", "no command to run"),
        ("build -- ls", "'build' takes no command"),
        ("run --hosts 9 -- ls", "1 to 8 hosts; got 9"),
        ("run --hosts 0 -- ls", "1 to 8 hosts; got 0"),
        ("run --loss 3 -- ls", "0 to 1; got 3"),
        ("run --loss lots -- ls", "--loss lots: "),
        ("run --delay 3 -- ls", "--delay 3: a duration needs a unit"),
        ("run --rate 3km -- ls", "--rate 3km: "),
        ("run --memory 1MiB -- ls", "256 MiB at least; got 1 MiB"),
        ("run --timeout soon -- ls", "--timeout soon: "),
        ("run --put nowhere -- ls", "there is no file nowhere"),
        ("run --put pyproject.toml:here -- ls", "expected /here"),
        ("boot", "invalid choice: 'boot'"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_refused(line, said, capsys, monkeypatch, tmp_path):
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    try:
        code = cli.main(["softroce", *line.split()])
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    assert said in capsys.readouterr().err


def test_the_logs_of_an_earlier_run_are_not_written_over(tmp_path, capsys):
    (tmp_path / "old").touch()
    assert cli.main(["softroce", "run", "--to", str(tmp_path), "--", "ls"]) == 2
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "timed_out", "expected"), [(0, False, 0), (7, False, 7), (-9, False, 137), (-9, True, 124)]
)
def test_exit_codes_are_those_of_a_shell(code, timed_out, expected):
    assert softroce._exit_code(Ended(code, "", "", timed_out, False, 1.0)) == expected


def test_clean_deletes_what_was_built_and_nothing_else(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (cache.root() / "images" / "one").mkdir(parents=True)
    (tmp_path / "harness" / "other").mkdir()
    assert cli.main(["softroce", "clean"]) == 0
    assert [p.name for p in (tmp_path / "harness").iterdir()] == ["other"]
    assert cli.main(["softroce", "clean"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "nothing was built"
