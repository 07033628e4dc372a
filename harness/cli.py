"""The front door: which verbs there are and which arguments they take; no logic.

Nothing but argparse is imported until a verb is known. `harness --help` and shell completion stay under 150 ms
because of that, and a test holds the list of modules they may load.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import keyword
import os
import sys
from typing import TYPE_CHECKING, NoReturn

from harness import __version__
from harness.errors import Exit, HarnessError, SpecError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

VERBS = {
    "run": "run the trials of a spec and hold them against its references",
    "predict": "run a spec on the emulated cluster (the same as run --on emulated)",
    "validate": "check specs without running anything",
    "plan": "show what an engine would do with a spec, and the plan's digest",
    "explain": "show every value of a resolved spec and where it came from",
    "ls": "list specs, engines, hardware, metrics, references or runs",
    "show": "show one record, or the trials of a spec",
    "status": "show what of a spec is done, missing or left over",
    "compare": "compare two runs, or predictions with measurements",
    "check-emulator": "score the emulator on measurements it was not fitted to",
    "report": "write the report of what has been recorded",
    "import": "read nccl-tests logs, topologies of hosts and Chakra traces, by what they hold",
    "export": "write records as one CSV or Parquet table",
    "schema": "write the JSON Schemas that editors use",
    "calibrate": "measure this machine and write its hardware profile",
    "softroce": "build, run or enter a virtual cluster with real RDMA verbs",
    "doctor": "show what this machine can run, and how to get the rest",
    "reindex": "rebuild the index of records from the files",
    "clean": "delete run directories",
    "completion": "print the line that switches on completion in a shell",
}


class Parser(argparse.ArgumentParser):
    """argparse that suggests the nearest verb or option, and exits with the code for a wrong command line."""

    def error(self, message: str) -> NoReturn:
        """Print the message with a suggestion and exit with 2."""
        wrong = message.split("'")[1] if "invalid choice: '" in message else ""
        if not wrong and message.startswith("unrecognized arguments: "):
            wrong = message.removeprefix("unrecognized arguments: ").split()[0].split("=")[0]
        options = [o for action in self._actions for o in action.option_strings]
        choices = [c for action in self._actions if action.choices for c in map(str, action.choices)]
        hint = nearest(wrong, [*options, *choices]) if wrong else ""
        self.print_usage(sys.stderr)
        suggestion = f"; did you mean {hint!r}?" if hint else ""
        self.exit(int(Exit.BAD_SPEC), f"{self.prog}: error: {message}{suggestion}\n")


def module_of(verb: str) -> str:
    """The module that carries a verb out; of one that is a word of Python's, with an underscore at its end."""
    return f"harness.verbs.{verb.replace('-', '_')}" + "_" * keyword.iskeyword(verb)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    return _parsers()[0]


def _parsers() -> tuple[Parser, dict[str, Parser]]:
    """The parser of the whole command line, and that of each verb."""
    top = Parser(
        prog="harness",
        description="Declarative experiments for machine-learning systems: one spec, run on an emulated cluster, "
        "on this machine, or on real GPUs and RDMA NICs.",
        epilog="exit codes: 0 ok, 1 a trial failed or an expectation was missed, 2 bad spec or command line, "
        "3 the environment lacks a need and nothing ran, 130 interrupted",
    )
    top.add_argument("--version", action="version", version=f"harness {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)
    made = {name: verbs.add_parser(name, help=text, description=text) for name, text in VERBS.items()}
    for name, sub in made.items():
        sub.set_defaults(verb=name)
        sub.add_argument("--json", action="store_true", help="write JSON for programs")
        if name in {"run", "predict", "validate", "plan", "explain", "status", "report"}:
            _spec_arguments(sub, several=name in {"run", "predict", "validate"})
        if name in {"run", "predict", "status", "report", "show", "compare", "export", "reindex", "clean"}:
            sub.add_argument("--out", metavar="DIR", default="", help="where run directories lie")
    for name in ("run", "predict"):
        _run_arguments(made[name])
    _other_arguments(made)
    return top, made


def _spec_arguments(sub: argparse.ArgumentParser, *, several: bool) -> None:
    sub.add_argument("specs", metavar="SPEC", nargs="+" if several else 1, help="a spec file (YAML)")
    sub.add_argument(
        "--set", metavar="PATH=VALUE", action="append", default=[], help="override one value, as in --set engine.x=4"
    )
    sub.add_argument(
        "--on",
        metavar="TARGET",
        default="",
        help="local, emulated, emulated:PROFILE, softroce, ray, ray://HOST:PORT or auto (default: what the spec says)",
    )


def _run_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--mode",
        choices=("cached", "retry", "force", "read-only"),
        default="cached",
        help="cached: run what has no record (default); retry: also what did not end well; "
        "force: run all again; read-only: run nothing",
    )
    sub.add_argument("--jobs", type=int, default=0, metavar="N", help="emulated trials at a time (default: one a core)")
    sub.add_argument("--fail-fast", action="store_true", help="stop at the first trial that does not end well")
    sub.add_argument("--junit", metavar="FILE", default="", help="write verdicts as JUnit XML")
    sub.add_argument("--no-report", action="store_true", help="write no report files")
    volume = sub.add_mutually_exclusive_group()
    volume.add_argument("-q", "--quiet", action="store_true", help="print the verdicts only")
    volume.add_argument("-v", "--verbose", action="store_true", help="print each trial's log tail as well")


def _other_arguments(made: Mapping[str, argparse.ArgumentParser]) -> None:
    made["explain"].add_argument("path", nargs="?", default="", help="only this value, as in engine.sizes")
    made["explain"].add_argument("--yaml", action="store_true", help="the resolved spec as YAML that loads again")
    made["ls"].add_argument(
        "what", choices=("specs", "engines", "hardware", "metrics", "references", "runs"), help="what to list"
    )
    made["ls"].add_argument("name", nargs="?", default="", help="only this one (an engine, a paper, a spec)")
    made["ls"].add_argument("--out", metavar="DIR", default="", help="where run directories lie")
    made["show"].add_argument("record", help="the head of a run key, a record.json, or a spec file")
    made["compare"].add_argument("runs", nargs="*", metavar="RUN", help="two run directories, record files or run keys")
    made["compare"].add_argument("--predictions", action="store_true", help="score predictions against measurements")
    check = made["check-emulator"]
    check.add_argument("names", nargs="*", metavar="DATA", help="only these data sets")
    check.add_argument("--data", metavar="DIR", default="", help="where data sets lie (default: $HARNESS_DATA)")
    check.add_argument("--held-out", metavar="DIR", default="", help="score this folder's rows, fit on those of --data")
    check.add_argument("--seeds", type=int, default=5, metavar="N", help="how many random splits (default: 5)")
    check.add_argument("--update", action="store_true", help="put these scores on record")
    made["report"].add_argument("--to", metavar="DIR", default="", help="where the report goes")
    made["report"].add_argument("--junit", metavar="FILE", default="", help="write verdicts as JUnit XML")
    made["import"].add_argument("file", metavar="FILE", help="what to read")
    made["import"].add_argument("--hardware", metavar="PROFILE", default="", help="what it is put into or emulated on")
    made["import"].add_argument(
        "--to", metavar="FILE", default="", help="the profile (or of a trace the timeline) to write"
    )
    made["import"].add_argument("--op", default="", help="the collective, where a table of measurements does not say")
    made["import"].add_argument("--ranks", type=int, default=0, help="their number, where it does not say")
    made["export"].add_argument("spec", nargs="?", default="", help="only records of the experiment of this name")
    made["export"].add_argument("--to", metavar="FILE", required=True, help="a .csv or .parquet file")
    made["schema"].add_argument("--check", action="store_true", help="only say whether the committed files are current")
    made["calibrate"].add_argument("--to", metavar="FILE", default="", help="where the profile goes (a .yaml file)")
    made["calibrate"].add_argument(
        "--name", default="", help="name of the profile (default: that of the file, or this-machine)"
    )
    made["calibrate"].add_argument("--quick", action="store_true", help="fewer sizes and samples: under a minute")
    made["calibrate"].add_argument(
        "--only",
        metavar="PROBE",
        action="append",
        default=[],
        help="only these probes, as in memcpy,gloo; without enough of them for a profile only the samples are written",
    )
    _softroce_arguments(made["softroce"])
    made["clean"].add_argument("names", nargs="*", metavar="NAME", help="experiments whose run directories go")
    made["clean"].add_argument("--all", action="store_true", help="every run directory")
    made["completion"].add_argument("shell", choices=("bash", "zsh", "fish"))


def _softroce_arguments(sub: argparse.ArgumentParser) -> None:
    sub.usage = f"{sub.prog} ACTION [options] [-- COMMAND ...]"
    sub.epilog = (
        "build: make the guests' image and package disks; run: run COMMAND in the guests, with its exit code; "
        "shell: type commands to the guests; status: what is built, missing or running; clean: delete what was built"
    )
    sub.add_argument("action", choices=("build", "run", "shell", "status", "clean"), help="what to do; see below")
    sub.add_argument("--hosts", type=int, default=2, metavar="N", help="how many guests, 1 to 8 (default: 2)")
    sub.add_argument("--host", type=int, default=-1, metavar="I", help="run the command in this guest alone, 0 ...")
    sub.add_argument("--loss", default="0", metavar="FRACTION", help="packets that get lost, as in 1%%")
    sub.add_argument("--delay", default="0", metavar="TIME", help="how much later packets arrive, as in 5ms")
    sub.add_argument("--rate", default="", metavar="RATE", help="bandwidth of each guest, as in 100Mbit/s")
    sub.add_argument("--memory", default="1GiB", metavar="SIZE", help="of each guest (default: 1GiB)")
    sub.add_argument("--put", action="append", default=[], metavar="FILE[:PLACE]", help="copy a file into the guests")
    sub.add_argument("--get", action="append", default=[], metavar="PLACE", help="copy a file out of each guest")
    sub.add_argument("--timeout", default="10min", metavar="TIME", help="how long the command may run (default: 10min)")
    sub.add_argument("--with", dest="packages", action="append", default=[], metavar="PACKAGE", help="such as torch")
    sub.add_argument(
        "--to", default="", metavar="DIR", help="where logs and fetched files go (default: results/softroce)"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Returns:
        The exit code (`errors.Exit`).
    """
    _settle_streams()
    try:
        code = _run(_parsed(argv))
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stderr.write("harness: interrupted\n")
        return int(Exit.INTERRUPTED)
    except BrokenPipeError:
        # The reader (`| head`) has gone: nothing is left to say.
        _drop_output()
        return int(Exit.OK)
    except OSError as error:
        _drop_output()
        gone = "the working directory: " if isinstance(error, FileNotFoundError) else ""
        named = f"{error.filename}: " if error.filename else gone
        sys.stderr.write(f"harness: error: {named}{error.strerror or error}\n")
        return int(Exit.FAILED)
    return code


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    top, verbs = _parsers()
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(top)
    # Under the C locale Python reads what was typed as ASCII and keeps the rest as lone surrogates.
    typed = [_utf8(word) for word in (sys.argv[1:] if argv is None else argv)]
    if not typed or typed[0] not in verbs:
        return top.parse_args(typed)
    # What stands behind `--` is a command for somewhere else: its options are not ours.
    end = typed.index("--") if typed[0] == "softroce" and "--" in typed else len(typed)
    # The verb's own parser knows the options that were meant, and takes names before, between and after options.
    parsed = verbs[typed[0]].parse_intermixed_args(typed[1:end])
    if typed[0] == "softroce":
        parsed.command = typed[end + 1 :]
    return parsed


def _utf8(word: str) -> str:
    try:
        return os.fsencode(word).decode("utf-8") if not word.isascii() else word
    except UnicodeError:
        return word


def _run(args: argparse.Namespace) -> int:
    try:
        verb = importlib.import_module(module_of(args.verb))
        return int(verb.run(args))
    except HarnessError as error:
        return _report(error, as_json=args.json)


def _settle_streams() -> None:
    """Make sure that whatever is said can be written: under any locale, and also where a stream was closed."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # Closed by whoever started us: the next file opened, or a trial's log, would be taken for the terminal.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = sys.stdout or _text(1)
    sys.stderr = sys.stderr or _text(2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _text(descriptor: int) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.FileIO(descriptor, "w", closefd=False), "utf-8", write_through=True)


def _drop_output() -> None:
    """Let what is still in the buffer go nowhere: flushing it at exit would raise again."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(error: HarnessError, *, as_json: bool) -> int:
    if as_json:
        from harness.output import emit

        problems = error.problems if isinstance(error, SpecError) else ()
        emit(
            {
                "error": type(error).__name__,
                "message": str(error),
                "problems": [
                    {
                        "file": p.position.file if p.position else None,
                        "line": p.position.line if p.position else None,
                        "column": p.position.column if p.position else None,
                        "what": p.what,
                        "expected": p.expected,
                        "suggestion": p.suggestion,
                    }
                    for p in problems
                ],
            }
        )
    else:
        sys.stderr.write(f"{error}\n" if isinstance(error, SpecError) else f"harness: error: {error}\n")
    return int(error.exit_code)
