# ruff: noqa: E501 - a table reads best with one case a line
"""Every way a spec has been seen to be wrong: each gives messages with file, line and column, and never a traceback."""

from pathlib import Path

import pytest

from harness.errors import SpecError
from harness.load import load_experiment

HEAD = "schema: 1\nname: x\nengine:\n  name: rdma\n  sizes: [1 KiB]\n"
"""Five good lines; what a case adds begins in line 6."""

BOMB = "".join(
    ["a: &a [x,x,x,x,x,x,x,x,x,x]\n"]
    + [f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 10)}]\n" for i in range(8)]
)
SEVEN_AXES = "sweep:\n  grid:\n" + "".join(
    f"    {path}: [{', '.join(f'{n}{unit}' for n in range(1, 11))}]\n"
    for path, unit in [
        ("repeat.seed", ""),
        ("repeat.runs", ""),
        ("repeat.warmup", ""),
        ("limits.retries", ""),
        ("limits.timeout", " s"),
        ("needs.memory", " GiB"),
        ("limits.memory", " GiB"),
    ]
)

CASES = {
    # the file as bytes
    "empty file": ("", ["1:1 the file is empty"]),
    "only comments": ("# nothing\n# here\n", ["1:1 the file is empty"]),
    "UTF-16 with a byte order mark": (HEAD.encode("utf-16"), ["1:1 encoded as UTF-16"]),
    "UTF-16 without one": (HEAD.encode("utf-16-le"), ["1:1 encoded as UTF-16"]),
    "Latin-1": ("schema: 1\nname: caf\xe9\n".encode("latin-1"), ["2:10 byte 0xe9 is not UTF-8"]),
    "NUL": ("schema: 1\nname: a\x00b\n", ["2:8 control character U+0000"]),
    "escape sequence": ("schema: 1\nname: \x1b[31m\n", ["2:7 control character U+001B"]),
    "larger than a spec can be": ("#" * (2**20 + 1), ["1:1 larger than 1 MiB"]),
    "byte order mark, then a typo": (b"\xef\xbb\xbfschemma: 1\nname: x\nengine: {name: rdma, sizes: [4 B]}\n", ["1:1 unknown field 'schemma'"]),
    # YAML
    "tab": ("schema: 1\nengine:\n\tname: rdma\n", ["3:1 a tab where indentation is due"]),
    "unclosed list": ("schema: 1\nname: [a, b\n", ["3:1 not well-formed YAML"]),
    "colon in a value": ("name: a: b\n", ["1:8 not well-formed YAML: mapping values"]),
    "unknown alias": ("name: *nobody\n", ["1:7 undefined alias"]),
    "two documents": (HEAD + "---\n" + HEAD, ["6:1 a second document"]),
    "alias bomb": (BOMB, ["1: more than 100000 values"]),
    "depth bomb, flow": ("name: " + "[" * 5000, ["1:70 nested deeper than 64"]),
    "depth bomb, block": ("name:\n  " + "- " * 5000, ["2:129 nested deeper than 64"]),
    "alias to itself": ("name: &n [*n]\n", ["1:7 an alias to something it is part of"]),
    "Python tag": (HEAD + "paper: !!python/object/apply:os.system [ls]\n", ["6:8 tag '!!python/object/apply:os.system'"]),
    "custom tag": (HEAD + "paper: !include other.yaml\n", ["6:8 tag '!include'"]),
    "merge of a number": (HEAD + "<<: 3\n", ["6:5 a merge key"]),
    "keys that are not text": (HEAD + "1: a\ntrue: b\n? [c]\n: d\n", ["6:1 '1' is not text", "7:1 'true' is not text", "8:3 a list or mapping is not text"]),
    "duplicate keys": (HEAD + "repeat: {runs: 3, runs: 4}\nname: y\n", ["6:19 duplicate key 'runs'; the first is in line 6", "7:1 duplicate key 'name'; the first is in line 2"]),
    "not a number": (HEAD + "repeat: {runs: .nan}\n", ["6:16 .nan is not a finite number"]),
    "infinity": (HEAD + "limits: {retries: -.inf}\n", ["6:19 -.inf is not a finite number"]),
    "1e400": (HEAD + "repeat: {seed: 1e400}\n", ["6:16 1e400 is not a finite number"]),
    "whole number of 500 digits": (HEAD + f"repeat: {{seed: {'9' * 500}}}\n", ["6:16 a whole number beyond 64 bits"]),
    # the document
    "list": ("- schema: 1\n- name: x\n", ["1:1 the document is a list of 2; expected a mapping"]),
    "text": ("hello\n", ["1:1 the document is the text 'hello'"]),
    "null": ("~\n", ["1:1 the document is empty (null)"]),
    "empty mapping": ("{}\n", ["1:1 missing field 'engine'", "1:1 missing field 'name'", "1:1 missing field 'schema'"]),
    "no schema": (HEAD.replace("schema: 1\n", ""), ["1:1 missing field 'schema'"]),
    "schema of the future": (HEAD.replace("schema: 1", "schema: 2"), ["1:9 'schema' is the number 2; expected 1"]),
    "name with a slash": (HEAD.replace("name: x", "name: a/b"), ["2:7 'name' is the text 'a/b'; expected letters, digits"]),
    "name that is no text": (HEAD.replace("name: x", "name: 5"), ["2:7 'name' is the number 5; expected text"]),
    "name in another script": (HEAD.replace("name: x", "name: 実験"), ["2:7 'name' is the text '実験'"]),
    # unknown keys, at every level
    "unknown key at the top": (HEAD + "repeet: {runs: 3}\n", ["6:1 unknown field 'repeet'; expected one of: schema, name, description, paper, engine, on, needs, repeat, sweep, faults, limits, tables, expect, extends, also; did you mean 'repeat'?"]),
    "unknown key of the engine": (HEAD + "  transport: [zero-copy]\n", ["6:3 unknown field 'transport' in 'engine'; expected one of: name, transports, models"]),
    "unknown key of a section": (HEAD + "limits:\n  timout: 3 s\n", ["7:3 unknown field 'timout' in 'limits'; expected one of: timeout, memory, retries; did you mean 'timeout'?"]),
    "unknown key of a target": (HEAD + "on: {hardwear: laptop}\n", ["6:6 unknown field 'hardwear' in 'on'; expected one of: backend, hardware; did you mean 'hardware'?"]),
    "unknown key of a target in a list": (HEAD + "on:\n  - {backend: local}\n  - {bakcend: emulated}\n", ["8:6 unknown field 'bakcend' in 'on.1'"]),
    "unknown key of a table": (HEAD + "tables:\n  - {rows: transport, value: step_time, colums: payload}\n", ["7:41 unknown field 'colums' in 'tables.0'"]),
    "unknown key of an expectation": (HEAD + "expect:\n  - {metric: step_time, atleast: 3 s}\n", ["7:25 unknown field 'atleast' in 'expect.0'"]),
    # values
    "text for a whole number": (HEAD + "repeat: {runs: abc}\n", ["6:16 'repeat.runs' is the text 'abc'; expected a whole number"]),
    "true for a whole number": (HEAD + "repeat: {runs: true}\n", ["6:16 'repeat.runs' is true; expected a whole number"]),
    "YAML 1.1 boolean": (HEAD + "needs: {rdma: yes}\n", ["6:15 'needs.rdma' is the text 'yes'; expected true or false"]),
    "fraction for a whole number": (HEAD + "repeat: {runs: 1.5}\n", ["6:16 'repeat.runs' is the number 1.5; expected a whole number"]),
    "negative": (HEAD + "repeat: {seed: -1}\n", ["6:16 'repeat.seed' is the number -1; expected at least 0"]),
    "zero runs": (HEAD + "repeat: {runs: 0}\n", ["6:16 'repeat.runs' is the number 0; expected at least 1"]),
    "null section": (HEAD + "repeat:\n", ["6:1 'repeat' is empty (null); expected a mapping"]),
    "list for a mapping": (HEAD + "limits: [3 s]\n", ["6:1 'limits' is a list of 1; expected a mapping"]),
    "mapping for a list": (HEAD + "expect: {metric: step_time}\n", ["6:1 'expect' is a mapping; expected a list"]),
    "number for targets": (HEAD + "on: 5\n", ["6:5 'on' is the number 5; expected a list or a mapping"]),
    "no target": (HEAD + "on: []\n", ["6:1 no target is named"]),
    "the same target twice": (HEAD + "on:\n  - {backend: local}\n  - {backend: local, hardware: laptop}\n", ["8:5 backend 'local' on 'laptop' is named twice"]),
    "missing unit": (HEAD + "limits: {timeout: 30}\n", ["6:19 'limits.timeout' is the number 30: a duration needs a unit"]),
    "unit of another dimension": (HEAD + "limits: {memory: 3 GB/s}\n", ["6:18 'limits.memory' is the text '3 GB/s': 'GB/s' is not a unit of size"]),
    "unit that does not exist": (HEAD + "limits: {timeout: 3 parsec}\n", ["6:19 'parsec' is not a unit of duration"]),
    "negative duration": (HEAD + "limits: {timeout: -3 s}\n", ["6:19 a duration must be at least 0"]),
    "zero duration": (HEAD + "limits: {timeout: 0 s}\n", ["6:19 'limits.timeout' is the text '0 s'; expected more than 0"]),
    "infinite quantity": (HEAD + "limits: {timeout: 1e400 s}\n", ["6:19 a duration must be finite"]),
    "half a byte": (HEAD + "limits: {memory: 0.5 B}\n", ["6:18 '0.5 B' is not a whole number of B"]),
    # names
    "no engine": ("schema: 1\nname: x\n", ["1:1 missing field 'engine'"]),
    "engine without a name": ("schema: 1\nname: x\nengine: {sizes: [1 B]}\n", ["3:1 missing field 'name' in 'engine'; expected one of: rdma"]),
    "engine that is a word": ("schema: 1\nname: x\nengine: rdma\n", ["3:9 'engine' is the text 'rdma'; expected a mapping"]),
    "engine name that is a number": ("schema: 1\nname: x\nengine: {name: 3}\n", ["3:16 'engine.name' is the number 3"]),
    "unknown engine": ("schema: 1\nname: x\nengine: {name: rdam}\n", ["3:16 no engine 'rdam'; expected one of: rdma, megatron, superscaler; did you mean 'rdma'?"]),
    "engine's cross-field check": ("schema: 1\nname: x\nengine:\n  name: rdma\n  sizes: [1 KiB, 3 B]\n", ["5:18 3 bytes are not a whole number of float32 elements"]),
    "engine's check of a nested list": ("schema: 1\nname: x\nengine:\n  name: superscaler\n  plan: by-hand\n  by_hand:\n    stages:\n      - {ops: ['*'], axes: data}\n", ["8:28 axes are 'data'; expected names with degrees"]),
    "engine's check that names the nearest": ("schema: 1\nname: x\nengine:\n  name: superscaler\n  plan: zero3\n", ["5:9 there is no plan 'zero3'; did you mean 'zero-3'?; expected one of search"]),
    "unknown choice of an engine field": (HEAD + "  dtype: float3\n", ["6:10 'engine.dtype' is the text 'float3'; expected one of 'float64', 'float32'"]),
    "unknown hardware": (HEAD + "on: {hardware: laptpo}\n", ["6:16 no hardware profile 'laptpo'; expected one of: "]),
    "hardware with a path": (HEAD + "on: {hardware: ../../etc/passwd}\n", ["6:16 no hardware profile '../../etc/passwd'"]),
    "unknown backend": (HEAD + "on: {backend: emulate}\n", ["6:15 'on.backend' is the text 'emulate'; expected one of 'auto', 'local', 'emulated', 'ray' or 'softroce'; did you mean 'emulated'?"]),
    "unknown paper": (HEAD + "paper: rmda\n", ["6:8 no paper 'rmda' under results/published"]),
    "unknown metric in an expectation": (HEAD + "expect:\n  - {metric: steptime}\n", ["7:14 no metric 'steptime'; expected one that the engine declares: step_time"]),
    "unknown metric in a table": (HEAD + "tables:\n  - {rows: transport, value: [step_time, bandwith]}\n", ["7:42 no metric 'bandwith'"]),
    "unknown label in rows": (HEAD + "tables:\n  - {rows: transprt, value: step_time}\n", ["7:12 'transprt' is no label of the metric"]),
    "unknown label in where": (HEAD + "expect:\n  - {metric: step_time, where: {transprt: zero-copy}}\n", ["7:33 'transprt' is no label of the metric"]),
    "bound in another unit": (HEAD + "expect:\n  - {metric: step_time, at_most: 3 GB}\n", ["7:34 'expect.0.at_most' is the text '3 GB': 'GB' is not a unit of duration"]),
    "bounds that cross": (HEAD + "expect:\n  - {metric: step_time, at_least: 2 s, at_most: 1 s}\n", ["7:49 no value is at least 2 s and at most 1 s"]),
    "size in what may be bits or bytes": ("schema: 1\nname: x\nengine: {name: rdma, sizes: [64 kb]}\n", ["3:30 'kb' is not a unit of size"]),
    "bound without a unit": (HEAD + "expect:\n  - {metric: bandwidth, at_least: 3}\n", ["7:35 'expect.0.at_least' is the number 3: a rate needs a unit"]),
    "reference to a missing cell": (HEAD + "expect:\n  - {metric: step_time, reference: rdma/abstract/device/speedup}\n", ["7:36 no column 'speedup' in rdma/abstract/device"]),
    "reference to a missing paper": (HEAD + "expect:\n  - {metric: step_time, reference: rdna/abstract/device/x}\n", ["7:36 no paper 'rdna'"]),
    "reference that is no address": (HEAD + "expect:\n  - {metric: step_time, reference: rdma}\n", ["7:36 'rdma' does not name a published figure"]),
    # sweeps
    "10^7 cells": (HEAD + SEVEN_AXES, ["6:1 the sweep has 10000000 cells; expected at most 100000"]),
    "swept over nothing": (HEAD + "sweep: {grid: {engine.dtype: []}}\n", ["6:16 'engine.dtype' is swept over no value"]),
    "swept over a single value": (HEAD + "sweep: {grid: {engine.dtype: int8}}\n", ["6:30 'sweep.grid.engine.dtype' is the text 'int8'; expected a list"]),
    "swept path that does not exist": (HEAD + "sweep: {grid: {engine.dtyp: [int8]}}\n", ["6:16 cannot sweep 'engine.dtyp'; expected one of: engine.transports"]),
    "swept name": (HEAD + "sweep: {grid: {name: [a, b]}}\n", ["6:16 cannot sweep 'name'"]),
    "swept engine": (HEAD + "sweep: {grid: {engine.name: [rdma]}}\n", ["6:16 the engine itself cannot be swept"]),
    "bad value in a sweep": (HEAD + "sweep:\n  grid:\n    engine.dtype: [int8, int9]\n", ["8:26 'engine.dtype' is the text 'int9'"]),
    "bad first value in a sweep": (HEAD + "sweep:\n  grid:\n    repeat.runs: [0, 1]\n", ["8:19 'repeat.runs' is the number 0; expected at least 1"]),
    "unknown hardware in a sweep": (HEAD + "sweep: {grid: {on.hardware: [laptop, laptpo]}}\n", ["6:38 no hardware profile 'laptpo'"]),
    "the same value twice in a sweep": (HEAD + "sweep: {grid: {repeat.seed: [1, 2, 1]}}\n", ["6:36 the number 1 stands twice"]),
    "zip of different lengths": (HEAD + "sweep: {zip: {repeat.seed: [1, 2], repeat.runs: [1]}}\n", ["6:9 lists of different length: repeat.seed has 2, repeat.runs has 1"]),
    "grid and zip": (HEAD + "sweep: {grid: {repeat.seed: [1]}, zip: {repeat.runs: [1]}}\n", ["6:35 a sweep has both grid and zip"]),
    "exclude by what is not swept": (HEAD + "sweep: {grid: {repeat.seed: [1]}, exclude: [{repeat.runs: 1}]}\n", ["6:46 excludes by 'repeat.runs', which is not swept"]),
    "selected by a value that is not swept": (HEAD + "sweep: {grid: {engine.dtype: [int8, int16]}}\nexpect: [{metric: step_time, where: {engine.dtype: int32}}]\n", ["7:52 no cell has 'engine.dtype' = int32"]),
    # extends
    "extends itself": (HEAD + "extends: spec.yaml\n", ["6:10 extends itself: spec.yaml -> spec.yaml"]),
    "extends a missing file": (HEAD + "extends: base.yaml\n", ["6:10 extends 'base.yaml', which does not exist"]),
    "extends out of the project": (HEAD + "extends: ../../../../../../../../etc/passwd\n", ["6:10 which lies outside the project"]),
    "extends an absolute path": (HEAD + "extends: /etc/passwd\n", ["6:10 which lies outside the project"]),
    "extends a folder": (HEAD + "extends: .\n", ["6:10 extends '.', which does not exist"]),
    "extends a number": (HEAD + "extends: 3\n", ["6:10 'extends' is the number 3; expected text"]),
    "extends a name with NUL": (HEAD + 'extends: "a\\0b"\n', ["6:10 which is no file name"]),
}  # fmt: skip


@pytest.mark.parametrize(("content", "expected"), CASES.values(), ids=list(CASES))
def test_is_refused_with_its_place(content, expected, tmp_path):
    spec = tmp_path / "spec.yaml"
    spec.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SpecError) as caught:
        load_experiment(spec)
    messages = [str(problem).splitlines()[0] for problem in caught.value.problems]
    assert len(messages) == len(expected), messages
    for message, wanted in zip(messages, expected, strict=True):
        place, _, fragment = wanted.partition(" ")
        assert message.startswith(f"{spec}:{place}"), message
        assert fragment in message


SIX = """\
schema: 1
name: six
engine:
  name: rdma
  transports: [zero-copy, grcp]
  sizes: [1 KiB, 3 parsec]
repeat: {warmup: 1, runs: true}
repeat: {runs: 5}
limitz: {timeout: 3 min}
on: {backend: emulated, hardware: laptop, colour: red}
"""


def test_six_mistakes_give_six_messages_in_the_order_of_lines(tmp_path):
    spec = tmp_path / "six.yaml"
    spec.write_text(SIX)
    with pytest.raises(SpecError) as caught:
        load_experiment(spec)
    places = [(p.position.line, p.position.column) for p in caught.value.problems]
    assert places == [(5, 27), (6, 18), (7, 27), (8, 1), (9, 1), (10, 43)]
    assert str(caught.value.problems[0]) == "\n".join(
        [
            f"{spec}:5:27: error: 'engine.transports.1' is the text 'grcp'; expected one of 'zero-copy', 'copy', "
            "'rpc-over-rdma', 'request-driven', 'grpc', 'grpc-stream', 'tcp', 'gloo', 'nixl', 'nixl-tcp' or "
            "'mooncake'; did you mean 'grpc'?",
            "  4 |   name: rdma",
            "  5 |   transports: [zero-copy, grcp]",
            "    |                           ^^^^",
        ]
    )


@pytest.mark.parametrize("make", [lambda p: None, Path.mkdir], ids=["missing", "folder"])
def test_a_file_that_cannot_be_read_is_named(make, tmp_path):
    spec = tmp_path / "spec.yaml"
    make(spec)
    with pytest.raises(SpecError, match="cannot read the file") as caught:
        load_experiment(spec)
    assert str(caught.value).startswith(f"{spec}:1:1: error:")
