"""Every planted bug is caught, no sound plan is objected to: a sample. The wide run is `campaign.over_random_plans`."""

from __future__ import annotations

from engines.superscaler.verify import random_plans
from engines.superscaler.verify.campaign import campaign, over_random_plans
from engines.superscaler.verify.mutations import KINDS


def test_every_planted_bug_is_caught_and_no_sound_plan_is_objected_to(graph):
    score = over_random_plans(graph, 5)
    assert score.ok, score.render()
    assert score.plans == 5
    assert sum(levels.total() for levels in score.caught.values()) == score.planted.total() > 100


def test_a_bug_that_no_level_sees_is_reported_as_missed(graph, monkeypatch):
    from engines.superscaler.verify import static

    find = static._Ranks._find
    monkeypatch.setattr(static._Ranks, "_find", lambda self, *given: given[2] == "I8" or find(self, *given))
    score = campaign([("blind", random_plans.program(graph, 3))])
    assert score.missed
    assert {missed.split(": ")[1] for missed in score.missed} <= {"not scaled", "scaled twice"}


def test_a_seed_gives_one_plan(graph):
    assert random_plans.program(graph, 5).plan == random_plans.program(graph, 5).plan
    assert random_plans.program(graph, 5).plan != random_plans.program(graph, 6).plan


def test_classes_have_names_of_their_own_and_say_what_goes_wrong():
    assert len({kind.name for kind in KINDS}) == len(KINDS) >= 14
    assert all(kind.why for kind in KINDS)
