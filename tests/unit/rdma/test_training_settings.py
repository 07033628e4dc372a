import pytest

from engines.rdma.spec import Spec


@pytest.mark.parametrize(
    ("fields", "packages"),
    [
        ({"sizes": ["1 KiB"]}, ()),
        ({"training": {"model": "fcn-5"}, "transports": ["zero-copy"]}, ("torch",)),
        ({"training": {"model": "bert-base"}, "transports": ["zero-copy"]}, ("torch", "transformers")),
    ],
)
def test_guests_are_given_what_the_job_imports_and_no_more(fields, packages):
    assert Spec.model_validate({"name": "rdma", **fields}).packages() == packages
