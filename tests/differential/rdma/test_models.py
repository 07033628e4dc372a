"""The committed table of tensors against the model libraries it was made from."""

from __future__ import annotations

import warnings
from importlib import resources

import pytest

from engines.rdma import models


@pytest.mark.slow
def test_the_committed_table_is_what_the_model_libraries_build_today():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    with warnings.catch_warnings():
        # What the model libraries warn about on import is theirs to mend.
        warnings.simplefilter("ignore")
        made = models.render()
    assert made == resources.files("engines.rdma").joinpath(models.TABLE).read_text(encoding="utf-8")
