"""The one line that says what may be split."""

from __future__ import annotations

import pytest

from engines.superscaler.annotation import Annotation, AnnotationError, parse, resolve


def test_a_linear_layer_splits_on_rows_columns_and_what_leads() -> None:
    linear = resolve("* k+, n k+, n -> * n", [(4, 6, 8), (10, 8), (10,)], [(4, 6, 10)])

    assert linear.splittable() == ("*0", "*1", "k", "n")
    assert linear.sizes == {"*0": 4, "*1": 6, "k": 8, "n": 10}
    assert linear.reductions == {"k": "sum"}
    assert (linear.input_dim(1, "k"), linear.input_dim(2, "k"), linear.output_dim(0, "n")) == (1, None, 2)


def test_only_the_outermost_of_fused_dims_splits() -> None:
    heads = resolve("b (h w) -> b h w", [(2, 12)], [(2, 3, 4)])

    assert heads.splittable() == ("b", "h")
    assert heads.input_shape(0, {"h": 3}) == (2, 4)
    assert heads.output_shape(0, {"h": 3}) == (2, 1, 4)


def test_frozen_ones_and_ones_of_size_one_do_not_split() -> None:
    norm = resolve("* h^, h^ -> * h^", [(1, 5, 8), (8,)], [(1, 5, 8)])

    assert norm.splittable() == ("*1",)


def test_what_is_not_a_tensor_is_left_out() -> None:
    assert len(parse("a b, ?, b -> a b").inputs) == 2


def test_a_scalar_and_no_tensor_at_all_are_written_alike() -> None:
    assert resolve("->", [()], [()]).inputs == ((),)
    assert resolve("-> n", [], [(4,)]).inputs == ()


def test_it_reads_back_what_it_writes() -> None:
    text = "a b+ (c d), b+ 1 -> a (c d)"
    annotation = resolve(text, [(2, 3, 20), (3, 1)], [(2, 20)], sizes={"c": 4})

    assert str(annotation) == text
    again = resolve(str(annotation), [(2, 3, 20), (3, 1)], [(2, 20)], sizes=annotation.sizes)
    assert again == annotation
    assert isinstance(again, Annotation)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a b", "expected one '->'"),
        ("a b -> a", "an output lacks 'b'; write 'b+'"),
        ("a b+ -> a b", "'b' is summed, yet every output has it"),
        ("a b|mx -> a", "no suffix '|mx' in 'b|mx'; nearest is '|max'"),
        ("a b+, b^ -> a", "'b' is written both 'b+' and 'b^'"),
        ("a (b c -> a", "a '(' is not closed"),
        ("a $ -> a", "cannot read '$'"),
        ("a a -> a", "'a' stands twice"),
    ],
)
def test_what_it_cannot_read_names_the_token_and_what_was_expected(text: str, said: str) -> None:
    with pytest.raises(AnnotationError) as caught:
        parse(text)

    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "inputs", "outputs", "said"),
    [
        ("a b+, c b+ -> a c", [(2, 3), (4, 5)], [(2, 4)], "input 1 of shape (4, 5): a dim of 5 does not fit b=3"),
        ("a b -> a b", [(2, 3), (4,)], [(2, 3)], "it has 1 inputs, the operator 2"),
        ("a b -> a b", [(2, 3, 4)], [(2, 3, 4)], "has 3 dims, the annotation 2"),
        ("(a b) -> (a b)", [(6,)], [(6,)], "6 = a * b has more than one answer; give sizes"),
        ("* a, * a -> * a", [(2, 3), (2, 2, 3)], [(2, 3)], "expected 1 leading dims"),
    ],
)
def test_what_does_not_fit_the_shapes_names_the_tensor(text, inputs, outputs, said) -> None:
    with pytest.raises(AnnotationError) as caught:
        resolve(text, inputs, outputs)

    assert said in str(caught.value)
