import pytest

from emulation.workloads import transformer
from emulation.workloads.transformer import Decoder

GPT3 = Decoder(hidden=12_288, layers=96, heads=96, sequence=2_048)


def operators(model, batch, tensor, recompute):
    layer = [
        *transformer.layer_forward(model, batch, tensor),
        *transformer.layer_recompute(model, batch, tensor, recompute),
        *transformer.layer_backward(model, batch, tensor),
    ]
    head = [*transformer.head_forward(model, batch, tensor), *transformer.head_backward(model, batch, tensor)]
    return layer * model.layers + head


def test_full_recomputation_has_the_flop_of_narayanan():
    h, layers, s, vocabulary, batch = 12_288, 96, 2_048, 51_200, 4
    published = 96 * batch * s * layers * h**2 * (1 + s / (6 * h) + vocabulary / (16 * layers * h))
    assert transformer.model_flops(GPT3, batch) == pytest.approx(published, rel=1e-12)


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("tensor", [1, 2, 8])
def test_operators_add_up_to_the_model_flop(recompute, tensor):
    found = tensor * transformer.total_flops(operators(GPT3, 2, tensor, recompute))
    assert found == pytest.approx(transformer.model_flops(GPT3, 2, recompute), rel=1e-12)


def test_parameters_are_those_of_narayanan():
    h, layers, s, vocabulary = 12_288, 96, 2_048, 51_200
    published = 12 * layers * h**2 * (1 + 13 / (12 * h) + (vocabulary + s) / (12 * layers * h))
    # Equation 2 leaves out the last normalization.
    assert GPT3.parameters == pytest.approx(published + 2 * h, rel=1e-12)


def test_each_pass_has_two_all_reduces_of_an_activation():
    for made in (transformer.layer_forward(GPT3, 2, 8), transformer.layer_backward(GPT3, 2, 8)):
        sizes = [operator.reduces for operator in made if operator.reduces]
        assert sizes == [2 * 2_048 * 12_288 * 2] * 2


def test_one_rank_has_none():
    made = [*transformer.layer_forward(GPT3, 2, 1), *transformer.layer_backward(GPT3, 2, 1)]
    assert not any(operator.reduces for operator in made)


def test_a_product_moves_its_three_matrices():
    found = transformer.product("x", 8, 16, 32)
    assert (found.flops, found.nbytes, found.shape) == (2 * 8 * 16 * 32, 2 * (8 * 16 + 8 * 32 + 16 * 32), (8, 16, 32))


def test_heads_that_cannot_be_split_are_refused():
    with pytest.raises(ValueError, match="96 heads cannot be split over 5"):
        transformer.layer_forward(GPT3, 1, 5)
    with pytest.raises(ValueError, match="cannot be split into 7 heads"):
        Decoder(hidden=1024, layers=1, heads=7, sequence=128)
