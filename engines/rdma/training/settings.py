"""The fields under `training:` of an `rdma` experiment."""

from __future__ import annotations

from typing import Literal

Size = Literal["full", "small"]
"""`full`: the published model. `small`: the same structure with fewer channels, layers or words."""
