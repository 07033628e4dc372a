# ruff: noqa: E501 - a table reads best with one case a line
"""Every way the faults of a spec can be wrong: in themselves, or for the cluster; each message has file, line, column."""

import pytest

from harness.errors import SpecError
from harness.load import load_experiment
from harness.resolve import resolve

HEAD = "schema: 1\nname: x\nengine: {name: rdma, sizes: [1 KiB]}\non: {backend: emulated, hardware: rdma-100g-pair}\nfaults:\n"
"""Five good lines; the first fault is in line 6, and what it says begins in column 6."""

CASES = {
    # in themselves
    "without a kind": ("{factor: 2}", ["6:5 missing field 'kind' in 'faults.0'; expected one of: extra-latency, jitter, link-down, loss, memory-pressure, mtbf, node-death, slow-link, slow-rank"]),
    "unknown kind": ("{kind: slow-lnik, link: rdma}", ["6:12 'faults.0.kind' is the text 'slow-lnik'; expected one of", "did you mean 'slow-link'?"]),
    "a word": ("slow", ["6:5 'faults.0' is the text 'slow'"]),
    "unknown key": ("{kind: slow-link, link: rdma, factr: 0.5, factor: 0.5}", ["6:35 unknown field 'factr' in 'faults.0'; expected one of: name, from, to, kind, link, factor; did you mean 'factor'?"]),
    "missing field": ("{kind: loss, link: rdma}", ["6:5 missing field 'p' in 'faults.0'; expected 'p: ...' (Probability"]),
    "rank that is faster": ("{kind: slow-rank, rank: 0, factor: 0.5}", ["6:40 'faults.0.factor' is the number 0.5; expected at least 1"]),
    "link that is faster": ("{kind: slow-link, link: rdma, factor: 1.5}", ["6:43 'faults.0.factor' is the number 1.5; expected at most 1"]),
    "link with nothing left": ("{kind: slow-link, link: rdma, factor: 0}", ["6:43 'faults.0.factor' is the number 0; expected more than 0"]),
    "all packets lost": ("{kind: loss, link: rdma, p: 100 %}", ["6:33 'faults.0.p' is the text '100 %'; expected less than 1"]),
    "rank and device": ("{kind: slow-rank, rank: 0, device: host0/cpu, factor: 2}", ["6:40 'faults.0.device' is the text 'host0/cpu': a slow rank is named either by `device` or by `rank`"]),
    "neither rank nor device": ("{kind: slow-rank, factor: 2}", ["6:12 'faults.0.kind' is the text 'slow-rank': a slow rank is named either"]),
    "over before it begins": ("{kind: slow-link, link: rdma, factor: 0.5, from: 2 s, to: 1 s}", ["6:63 'faults.0.to' is the text '1 s': a fault cannot be over before it begins"]),
    "up before it went down": ("{kind: link-down, link: rdma, at: 2 s, until: 1 s, detection: 1 s}", ["6:51 'faults.0.until' is the text '1 s': a link cannot be up again before"]),
    "time without a unit": ("{kind: link-down, link: rdma, at: 2, detection: 1 s}", ["6:39 'faults.0.at' is the number 2: a duration needs a unit"]),
    "wide jitter": ("{kind: extra-latency, link: rdma, latency: 1 us, jitter: 2 us}", ["6:62 'faults.0.jitter' is the text '2 us': a variation wider than the latency"]),
    "unknown policy": ("{kind: node-death, host: host1, at: 1 s, detection: 1 s, policy: {kind: retry}}", ["6:77 'faults.0.policy.kind' is the text 'retry'; expected one of"]),
    "policy without its cost": ("{kind: node-death, host: host1, at: 1 s, detection: 1 s, policy: {kind: restart, checkpoint_interval: 1 s}}", ["6:62 missing field 'restart_cost' in 'faults.0.policy'"]),
    "nobody fails": ("{kind: mtbf, checkpoint_cost: 1 s, restart_cost: 1 s, job: 1 d}", ["6:12 'faults.0.kind' is the text 'mtbf': somebody has to fail"]),
    "interval that is a word": ("{kind: mtbf, host: 1 d, checkpoint_interval: best, checkpoint_cost: 1 s, restart_cost: 1 s, job: 1 d}", ["6:50 'faults.0.checkpoint_interval' is the text 'best'; expected one of 'optimal' or 'young' or one such as '3 us'"]),
    # for the cluster
    "unknown link": ("{kind: slow-link, link: host0/nic0>host1/nic1, factor: 0.5}", ["6:29 profile 'rdma-100g-pair' has no link 'host0/nic0>host1/nic1'; did you mean 'host0/nic0>host1/nic0'?"]),
    "unknown kind of links": ("{kind: loss, link: netwrok, p: 0.1}", ["6:24 profile 'rdma-100g-pair' has no link 'netwrok'; did you mean 'network'?"]),
    "unknown device": ("{kind: slow-rank, device: host2/cpu, factor: 2}", ["6:31 profile 'rdma-100g-pair' has no device 'host2/cpu'; did you mean 'host"]),
    "rank beyond the last": ("{kind: slow-rank, rank: 2, factor: 2}", ["6:29 the cluster has ranks 0 to 1"]),
    "unknown host": ("{kind: node-death, host: hots1, at: 1 s, detection: 1 s}", ["6:30 profile 'rdma-100g-pair' has no host 'hots1'; did you mean 'host1'?"]),
    "nobody remains": ("{kind: node-death, host: host1, at: 1 s, detection: 1 s, policy: {kind: elastic, remaining: 2, reconfiguration: 1 s}}", ["6:97 2 of 2 hosts cannot remain when one has died"]),
    "two at once": ("{kind: loss, link: rmda, p: 0.1}\n  - {kind: jitter, sigma: 0.1, devices: [host0/cpu, gpu0]}", ["6:24 profile 'rdma-100g-pair' has no link 'rmda'", "7:53 profile 'rdma-100g-pair' has no device 'gpu0'"]),
}  # fmt: skip


@pytest.mark.parametrize(("fault", "expected"), CASES.values(), ids=list(CASES))
def test_is_refused_with_its_place(fault, expected, tmp_path):
    spec = tmp_path / "spec.yaml"
    spec.write_text(f"{HEAD}  - {fault}\n")
    with pytest.raises(SpecError) as caught:
        resolve(load_experiment(spec))
    messages = [str(problem).splitlines()[0] for problem in caught.value.problems]
    said = "\n".join(messages)
    assert len(messages) == sum(wanted[0].isdigit() for wanted in expected), said
    for wanted in expected:
        place, _, fragment = wanted.partition(" ")
        if place[0].isdigit():
            assert any(m.startswith(f"{spec}:{place}") and fragment in m for m in messages), said
        else:
            assert wanted in said


def test_a_swept_fault_is_refused_where_the_sweep_has_it(tmp_path):
    spec = tmp_path / "spec.yaml"
    sweep = "sweep:\n  grid:\n    faults:\n      - []\n      - [{kind: loss, link: rmda, p: 0.1}]\n"
    spec.write_text(HEAD.replace("faults:\n", sweep))
    with pytest.raises(SpecError) as caught:
        resolve(load_experiment(spec))
    (problem,) = caught.value.problems
    assert str(problem).startswith(f"{spec}:9:29: error: profile 'rdma-100g-pair' has no link 'rmda'")
    assert "did you mean 'rdma'?" in str(problem)
    assert "(cell faults=loss)" in str(problem)


def test_faults_are_checked_against_the_hardware_that_is_asked_for(tmp_path):
    spec = tmp_path / "spec.yaml"
    spec.write_text(HEAD + "  - {kind: slow-link, link: host0/nic0, factor: 0.5}\n")
    assert len(resolve(load_experiment(spec))) == 1
    with pytest.raises(SpecError, match="profile 'laptop' has no link 'host0/nic0'"):
        resolve(load_experiment(spec), on="emulated:laptop")
