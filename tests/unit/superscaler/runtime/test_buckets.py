"""Which all-reduces go together, on lists that are written by hand."""

from engines.superscaler.program import Buffer, Collective, Local
from engines.superscaler.runtime.buckets import buckets


def value(name):
    return Buffer(name, "value")


def reduce(source, target=None, *, group=(0, 1), reduction="sum", dtype="fp32", size=4):
    made = target or f"{source}'"
    return Collective("all-reduce", group, value(source), value(made), 0, 0, reduction, (size,), dtype)


def free(*names):
    return Local("free", sources=tuple(map(value, names)))


def together(*instructions, largest=1024):
    """Numbers of the instructions of each bucket."""
    found = buckets(instructions, largest)
    order = list(instructions)
    for first, members in found.items():
        assert not members or order[first] is members[0]
    groups = [[order.index(member) for member in members] for members in found.values() if members]
    assert sorted(found) == sorted(number for group in groups for number in group)
    return groups


def test_neighbours_go_together_whatever_is_freed_between_them():
    assert together(reduce("a"), free("a"), reduce("b"), free("b"), reduce("c")) == [[0, 2, 4]]


def test_another_group_reduction_or_dtype_goes_by_itself():
    for other in ({"group": (0, 2)}, {"reduction": "max"}, {"dtype": "fp16"}):
        assert together(reduce("a"), reduce("b"), reduce("c", **other), reduce("d", **other)) == [[0, 1], [2, 3]]
    assert together(reduce("a")) == []


def test_what_computes_ends_a_bucket():
    add = Local("add", sources=(value("x"), value("a'")), targets=(value("b"),))
    assert together(reduce("a"), add, reduce("b"), reduce("c")) == [[2, 3]]


def test_a_bucket_is_no_larger_than_it_may_be():
    assert together(*(reduce(name) for name in "abcde"), largest=32) == [[0, 1], [2, 3]]
    assert together(reduce("a"), reduce("b", size=400), reduce("c"), reduce("d"), largest=32) == [[2, 3]]


def test_what_an_earlier_member_makes_is_reduced_after_it():
    assert together(reduce("a", "b"), reduce("b", "c"), reduce("d")) == [[1, 2]]


def test_a_name_that_was_freed_is_another_value_afterwards():
    assert together(reduce("a", "b"), free("a"), reduce("c", "a"), reduce("d")) == [[2, 3]]
