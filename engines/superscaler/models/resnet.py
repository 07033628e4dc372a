"""ResNet with bottleneck blocks (He et al., CVPR 2016).

Batch norms keep no running statistics: a buffer that a forward pass changes would make the order of micro-batches part
of the result.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

EXPANSION = 4
PRESETS: dict[str, dict[str, Any]] = {
    name: {"batch": 32, "image": 224, "depths": depths, "channels": 64 * width, "classes": 1000, "stem": 7}
    for name, depths, width in (
        ("50", (3, 4, 6, 3), 1),
        ("101", (3, 4, 23, 3), 1),
        ("152", (3, 8, 36, 3), 1),
    )
}


class Shape(NamedTuple):
    """Sizes; the defaults are the tiny preset."""

    batch: int = 8
    image: int = 16
    depths: tuple[int, ...] = (1, 1)
    channels: int = 8
    classes: int = 24
    stem: int = 3
    """Side of the first convolution."""


def normed(channels: int) -> nn.BatchNorm2d:
    """A batch norm without running statistics."""
    return nn.BatchNorm2d(channels, track_running_stats=False)


class Block(nn.Module):
    """Narrow, convolve, widen; added to what it is given."""

    def __init__(self, given: int, channels: int, stride: int) -> None:
        super().__init__()
        made = EXPANSION * channels
        self.narrow = nn.Conv2d(given, channels, 1, bias=False)
        self.narrow_norm = normed(channels)
        self.middle = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.middle_norm = normed(channels)
        self.widen = nn.Conv2d(channels, made, 1, bias=False)
        self.widen_norm = normed(made)
        self.shortcut = nn.Conv2d(given, made, 1, stride=stride, bias=False) if given != made or stride != 1 else None
        self.shortcut_norm = normed(made) if self.shortcut is not None else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, given, rows, columns) -> (batch, 4 channels, rows / stride, columns / stride)."""
        y = functional.relu(self.narrow_norm(self.narrow(x)))
        y = functional.relu(self.middle_norm(self.middle(y)))
        y = self.widen_norm(self.widen(y))
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = self.shortcut_norm(self.shortcut(x))
        return functional.relu(x + y)


class Model(nn.Module):
    """Stem, stages, classifier and loss."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, shape.channels, shape.stem, stride=2, padding=shape.stem // 2, bias=False)
        self.stem_norm = normed(shape.channels)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        given, channels = shape.channels, shape.channels
        blocks = []
        for stage, depth in enumerate(shape.depths):
            for number in range(depth):
                blocks.append(Block(given, channels, 2 if stage and not number else 1))
                given = EXPANSION * channels
            channels *= 2
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(given, shape.classes)

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(batch, 3, image, image) and (batch) -> the mean cross-entropy."""
        x = self.pool(functional.relu(self.stem_norm(self.stem(images))))
        for block in self.blocks:
            x = block(x)
        pooled = functional.adaptive_avg_pool2d(x, 1).flatten(1)
        return functional.cross_entropy(self.head(pooled).float(), labels)


def batch(shape: Shape, generator: torch.Generator | None) -> tuple[torch.Tensor, ...]:
    """Images and what they show."""
    size = (shape.batch, 3, shape.image, shape.image)
    if generator is None:
        return torch.empty(size), torch.empty(shape.batch, dtype=torch.int64)
    return torch.randn(size, generator=generator), torch.randint(shape.classes, (shape.batch,), generator=generator)
