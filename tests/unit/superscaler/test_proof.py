"""A plan that does not compute what one device does is not run, and says why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engines.superscaler import job, proof
from engines.superscaler.dependency import preserve
from engines.superscaler.program import Move, Seed
from engines.superscaler.spec import Spec


@pytest.fixture(scope="module")
def planned():
    """A small model on two replicas."""
    found = job.planned(Spec(model="mlp", plan="dp", global_batch=4, micro_batches=2), None)
    return found, preserve(found.graph, found.plan)


def changed(program, change):
    """The program with `change` applied to every action; None leaves one out."""
    sections = []
    for section in program.sections:
        actions = (change(action) for action in section.actions)
        sections.append(replace(section, actions=tuple(action for action in actions if action is not None)))
    return replace(program, sections=tuple(sections))


def unreduced(action):
    """Sums of gradients over replicas left out: each goes on with its own part."""
    if isinstance(action, Move) and action.kind == "all-reduce" and action.source.kind == "gradient":
        return replace(action, kind="mask")
    return action


def test_a_sound_program_is_proven_and_told(planned, tmp_path):
    proof.demand(*planned, tmp_path)
    told = (tmp_path / "verification.txt").read_text("utf-8")
    assert "verified up to L2: 2 ranks" in told
    assert "L3 the model itself in float64 for 2 steps: largest difference" in told


def test_a_program_without_its_gradient_sums_is_refused_and_told(planned, tmp_path):
    found, program = planned
    with pytest.raises(proof.Unproven, match=r"(?s)plan dp cannot be proven, so it is not run .*rank 0"):
        proof.demand(found, changed(program, unreduced), tmp_path)
    told = (tmp_path / "verification.txt").read_text("utf-8")
    assert "L1" in told
    assert "L3" not in told


def test_static_proof_alone_refuses_it_as_well(planned):
    found, program = planned
    with pytest.raises(proof.Unproven, match="cannot be proven"):
        proof.demand(replace(found, verify="static"), changed(program, unreduced))


def test_without_a_proof_anything_passes(planned, tmp_path):
    found, program = planned
    proof.demand(replace(found, verify="none"), changed(program, unreduced), tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_only_numbers_show_is_refused_by_them(planned):
    found, program = planned
    wrong = changed(program, lambda action: replace(action, value=2.0) if isinstance(action, Seed) else action)
    with pytest.raises(proof.Unproven, match=r"does not compute what one device does: .*gradient"):
        proof.interpreted(found, wrong)


def test_a_model_too_large_to_compute_is_proven_smaller(monkeypatch, tmp_path):
    found = job.planned(Spec(model="gpt", plan="1f1b", global_batch=4, micro_batches=2), None)
    monkeypatch.setattr(proof, "LARGEST", 1)
    proof.demand(found, preserve(found.graph, found.plan), tmp_path)
    assert "L3 the model with smaller dims (" in (tmp_path / "verification.txt").read_text("utf-8")


def test_a_model_that_cannot_be_made_smaller_is_refused_with_a_way_out(planned, monkeypatch):
    found, program = planned
    monkeypatch.setattr(proof, "LARGEST", 1)
    with pytest.raises(proof.Unproven, match=r"a mlp of this size is too large to compute.*`verify: static` proves"):
        proof.demand(found, program)
