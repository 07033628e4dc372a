"""Swin Transformer: attention within windows that shift from layer to layer (Liu et al., ICCV 2021).

Windows keep their row and column as dims of their own, so that a plan may split images, rows of windows or heads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

PRESETS: dict[str, dict[str, Any]] = {
    # The artifact of OSDI 2024: layers, hidden, heads, for 4, 8, 16 and 32 devices. Layers are laid out as in Swin-L:
    # all but six in the third stage.
    f"{layers}x{hidden}": {
        "batch": 1,
        "image": 1536,
        "window": 48,
        "depths": (2, 2, layers - 6, 2),
        "hidden": hidden,
        "heads": heads,
        "classes": 1000,
    }
    for layers, hidden, heads in ((32, 512, 16), (40, 768, 24), (48, 1024, 32), (56, 1536, 32))
}
PRESETS["swin-large"] = {
    "batch": 1,
    "image": 224,
    "window": 7,
    "depths": (2, 2, 18, 2),
    "hidden": 192,
    "heads": 6,
    "classes": 1000,
}


class Shape(NamedTuple):
    """Sizes; the defaults are the tiny preset."""

    batch: int = 8
    image: int = 32
    patch: int = 4
    window: int = 4
    depths: tuple[int, ...] = (2, 1)
    """Layers of each stage; from one to the next the image halves, `hidden` and `heads` double."""
    hidden: int = 16
    heads: int = 4
    classes: int = 24


def regions(side: int, window: int, shift: int) -> torch.Tensor:
    """Which part of the unshifted image each place of a shifted one is from: (windows, windows, window squared)."""
    along = torch.zeros(side, dtype=torch.int64)
    along[-window:] = 1
    along[-shift:] = 2
    windows = (3 * along[:, None] + along[None, :]).view(side // window, window, side // window, window)
    return windows.permute(0, 2, 1, 3).flatten(2)


def distances(window: int) -> torch.Tensor:
    """Number of the distance between each two places of a window: (window squared, window squared)."""
    places = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    apart = places[:, None] - places[None, :] + window - 1
    return apart[..., 0] * (2 * window - 1) + apart[..., 1]


class WindowAttention(nn.Module):
    """Attention among the places of each window."""

    distance: torch.Tensor
    region: torch.Tensor

    def __init__(self, hidden: int, heads: int, side: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.projection = nn.Linear(hidden, hidden)
        self.bias = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads) * 0.02)
        self.register_buffer("distance", distances(window))
        if shift:
            self.register_buffer("region", regions(side, window, shift))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, rows, columns, hidden) -> the same."""
        batch, rows, columns, hidden = x.shape
        window, heads = self.window, self.heads
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        x = x.view(batch, rows // window, window, columns // window, window, hidden)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(batch, rows // window, columns // window, window * window, hidden)
        parts = self.qkv(x).unflatten(-1, (heads, 3 * hidden // heads)).transpose(3, 4).chunk(3, dim=-1)
        query, key, value = parts
        scores = (query * (hidden // heads) ** -0.5) @ key.transpose(-2, -1)
        scores = scores + self.bias[self.distance].permute(2, 0, 1)
        if self.shift:
            # Places that the shift brought together from different ends of the image do not see each other.
            apart = self.region.unsqueeze(-1) != self.region.unsqueeze(-2)
            scores = scores.masked_fill(apart.unsqueeze(2), float("-inf"))
        x = self.projection((scores.softmax(-1) @ value).transpose(3, 4).flatten(-2))
        x = x.view(batch, rows // window, columns // window, window, window, hidden).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(batch, rows, columns, hidden)
        return torch.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x


class FeedForward(nn.Module):
    """Four times as wide inside."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(hidden, 4 * hidden)
        self.activation = nn.GELU()
        self.down = nn.Linear(4 * hidden, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., hidden) -> the same."""
        return self.down(self.activation(self.up(x)))


class Layer(nn.Module):
    """Window attention and feed-forward, each added to what it is given."""

    def __init__(self, hidden: int, heads: int, side: int, window: int, shift: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden)
        self.attention = WindowAttention(hidden, heads, side, window, shift)
        self.feed_forward_norm = nn.LayerNorm(hidden)
        self.feed_forward = FeedForward(hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, rows, columns, hidden) -> the same."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.feed_forward_norm(x))


class Merging(nn.Module):
    """Four neighbours become one place of twice the width."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * hidden)
        self.reduction = nn.Linear(4 * hidden, 2 * hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, rows, columns, hidden) -> (batch, rows / 2, columns / 2, 2 hidden)."""
        batch, rows, columns, hidden = x.shape
        x = x.view(batch, rows // 2, 2, columns // 2, 2, hidden).permute(0, 1, 3, 2, 4, 5)
        return self.reduction(self.norm(x.reshape(batch, rows // 2, columns // 2, 4 * hidden)))


class Model(nn.Module):
    """Patches, stages, classifier and loss."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, shape.hidden, shape.patch, stride=shape.patch)
        self.patches_norm = nn.LayerNorm(shape.hidden)
        self.layers = nn.ModuleList()
        self.mergings = nn.ModuleDict()
        self.last = len(shape.depths) - 1
        side, hidden, heads = shape.image // shape.patch, shape.hidden, shape.heads
        for stage, depth in enumerate(shape.depths):
            for number in range(depth):
                # An image of a single window has nowhere to shift.
                shift = shape.window // 2 if number % 2 and side > shape.window else 0
                self.layers.append(Layer(hidden, heads, side, shape.window, shift))
            if stage < self.last:
                self.mergings[str(len(self.layers) - 1)] = Merging(hidden)
                side, hidden, heads = side // 2, 2 * hidden, 2 * heads
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, shape.classes)

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(batch, 3, image, image) and (batch) -> the mean cross-entropy."""
        x = self.patches_norm(self.patches(images).permute(0, 2, 3, 1))
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if str(number) in self.mergings:
                x = self.mergings[str(number)](x)
        return functional.cross_entropy(self.head(self.norm(x).mean((1, 2))).float(), labels)


def batch(shape: Shape, generator: torch.Generator | None) -> tuple[torch.Tensor, ...]:
    """Images and what they show."""
    size = (shape.batch, 3, shape.image, shape.image)
    if generator is None:
        return torch.empty(size), torch.empty(shape.batch, dtype=torch.int64)
    return torch.randn(size, generator=generator), torch.randint(shape.classes, (shape.batch,), generator=generator)
