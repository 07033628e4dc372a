import pytest

from engines.superscaler.dependency import preserve
from engines.superscaler.runtime import reference

from . import plans


@pytest.fixture(scope="session")
def module():
    return plans.model()[0]


@pytest.fixture(scope="session")
def graph():
    return plans.model()[2]


@pytest.fixture(scope="session")
def batches():
    return reference.make_batches(plans.model()[1], steps=2, micro_batches=plans.MICRO_BATCHES)


@pytest.fixture(scope="session")
def expected(module, batches):
    """The module under plain autograd and torch's Adam."""
    return reference.train(module, batches)


@pytest.fixture(scope="session")
def program(graph):
    return lambda name: preserve(graph, plans.PLANS[name]())
