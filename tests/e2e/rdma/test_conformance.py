"""The conformance suite over every provider that can be used here, and as a program of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

import engines.rdma.conformance.cases  # noqa: F401 - defines them
from engines.rdma.conformance.case import CAPACITY, CASES
from engines.rdma.conformance.pair import Setting
from engines.rdma.device import ProviderUnavailable
from engines.rdma.providers import PROVIDERS

PRESENT = [name for name in PROVIDERS if find_spec(f"engines.rdma.providers.{name}")]
SHORT_WRITES = {"largest_write": 2**16}
OPTIONS = {"sim": {"near": SHORT_WRITES, "far": SHORT_WRITES}, "verbs": {"near": SHORT_WRITES, "far": SHORT_WRITES}}


@pytest.fixture(scope="module", params=PRESENT)
def setting(request):
    setting = Setting(request.param, **OPTIONS.get(request.param, {}))
    try:
        setting.probe(CAPACITY)
    except ProviderUnavailable as reason:
        pytest.skip(f"provider {request.param!r}: {reason}")
    return setting


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_provider_holds_that(case, setting):
    outcome = case.run(setting)
    if outcome.status == "skipped":
        pytest.skip(outcome.message)
    assert outcome.status == "ok", outcome.message


GUEST = """
import runpy, sys
sys.modules.update(dict.fromkeys(["torch", "grpc", "simpy", "scipy", "pytest"]))
sys.argv[1:] = {arguments!r}
runpy.run_module("engines.rdma.conformance", run_name="__main__")
"""


def run(*arguments):
    """The runner in an interpreter without the engine's heavy libraries."""
    command = [sys.executable, "-W", "error", "-c", GUEST.format(arguments=list(arguments))]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def test_the_runner_needs_little_and_prints_a_line_of_json_for_each_case():
    ended = run("--provider", "shm", "--json")
    assert ended.stderr == ""
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [line["name"] for line in lines] == list(CASES)
    assert {line["status"] for line in lines} <= {"ok", "skipped"}
    assert all(line["message"] for line in lines if line["status"] == "skipped")
    assert ended.returncode == 0


def test_a_device_that_cannot_be_opened_shows_nothing_and_says_why():
    # A limit on the size of files is the plainest way to be refused shared memory.
    code = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096));"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "sys.argv[1:] = ['--json']; runpy.run_module('engines.rdma.conformance', run_name='__main__')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    (line,) = map(json.loads, ended.stdout.splitlines())
    assert (line["status"], ended.returncode) == ("skipped", 3)
    assert line["message"].startswith("memory cannot be registered: shared memory of")
