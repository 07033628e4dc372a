import pytest

from emulation.workloads import memory
from emulation.workloads.memory import States
from emulation.workloads.training import Plan, stage_parameters
from emulation.workloads.transformer import Decoder

MODEL = Decoder(hidden=2_048, layers=8, heads=16, sequence=1_024)


def plan(**changes):
    sizes = {"tensor": 1, "pipeline": 4, "data": 2, "batch": 32, "micro_batch": 2}
    return Plan(**sizes | changes)


def test_a_layer_keeps_what_korthikanti_says():
    s, b, h, a = 1_024, 2, 2_048, 16
    assert memory.layer_activations(MODEL, b, 1, "none") == s * b * h * (34 + 5 * a * s / h)
    assert memory.layer_activations(MODEL, b, 8, "none") == s * b * h * (10 + 24 / 8 + 5 * a * s / (h * 8))
    assert memory.layer_activations(MODEL, b, 8, "selective") == s * b * h * (10 + 24 / 8)
    assert memory.layer_activations(MODEL, b, 8, "full") == 2 * s * b * h


def test_1f1b_keeps_fewer_micro_batches_on_later_stages_and_gpipe_all():
    one = 2 * 2 * 1_024 * 2_048 * 2
    kept = [stage.activations for stage in memory.held(MODEL, plan())]
    mask = 4 * 2 * 1_024 * 2_048
    assert kept == [4 * one + mask, 3 * one, 2 * one, one]
    assert [stage.activations for stage in memory.held(MODEL, plan(schedule="gpipe"))][1:] == [8 * one] * 3


def test_states_are_sixteen_bytes_of_a_parameter():
    first = memory.held(MODEL, plan())[0]
    assert first.weights + first.gradients + first.optimizer == 16 * stage_parameters(MODEL, plan(), 0)


def test_a_sharded_optimizer_is_split_over_the_replicas():
    whole = memory.held(MODEL, plan())[1].optimizer
    assert memory.held(MODEL, plan(), States(sharded=True))[1].optimizer == whole / 2


def test_stages_and_ranks_hold_the_whole_model_once():
    found = plan(tensor=2)
    total = 2 * sum(stage_parameters(MODEL, found, stage) for stage in range(4))
    # The word embedding is held by the last stage as well; the last normalization is left out.
    assert total == MODEL.parameters - 2 * 2_048 + 51_200 * 2_048


def test_only_the_last_stage_holds_logits():
    assert [stage.output > 0 for stage in memory.held(MODEL, plan())] == [False, False, False, True]


def test_recomputing_a_layer_holds_it_once_more():
    assert memory.held(MODEL, plan())[1].working == memory.layer_activations(MODEL, 2, 1, "none")
    assert memory.held(MODEL, plan(recompute="none"))[1].working == 0


def test_the_verdict_names_the_fullest_stage_and_what_it_lacks():
    stages = memory.held(MODEL, plan())
    most = max(stage.total for stage in stages)
    fitting = memory.verdict(stages, 2 * most, 0.06)
    assert fitting.fits
    assert fitting.missing == 0
    lacking = memory.verdict(stages, most, 0.1)
    assert not lacking.fits
    assert lacking.missing == most - int(most * 0.9)
    assert stages[lacking.fullest].total == most


def test_layers_that_cannot_be_split_are_refused():
    with pytest.raises(ValueError, match="8 layers cannot be split into 3"):
        memory.held(MODEL, plan(pipeline=3, batch=48))
