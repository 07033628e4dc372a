"""Inception-v3 (Szegedy, Vanhoucke, Ioffe, Shlens and Wojna 2016, "Rethinking the Inception architecture ...").

Every block runs several branches of convolutions over the same input and joins their channels. A convolution is
followed by batch normalisation, whose statistics each worker takes over its own share of a batch.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Width = Callable[[int], int]

AVERAGE = partial(nn.AvgPool2d, 3, 1, 1)
HALVE = partial(nn.MaxPool2d, 3, 2)


class Convolution(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int | tuple[int, int], **options: int | tuple[int, int]
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, bias=False, **options)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, images: Tensor) -> Tensor:
        """Same picture, other channels."""
        return torch.relu(self.bn(self.conv(images)))


def _chain(before: int, *steps: tuple[int, int | tuple[int, int], int]) -> nn.Sequential:
    """Convolutions one after another: (channels, kernel, stride); stride 1 keeps the picture's size."""
    layers = []
    for channels, kernel, stride in steps:
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if stride == 1 else (0, 0)
        layers.append(Convolution(before, channels, kernel, stride=stride, padding=padding))
        before = channels
    return nn.Sequential(*layers)


class Branches(nn.Module):
    """Several ways through a block; their channels are joined."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, images: Tensor) -> Tensor:
        """All branches over the same input."""
        return torch.cat([branch(images) for branch in self.branches], dim=1)


def _pooled(before: int, channels: int) -> nn.Sequential:
    return nn.Sequential(AVERAGE(), _chain(before, (channels, 1, 1)))


def _a(w: Width, before: int, pool: int) -> Branches:
    """35 x 35: figure 5 of the paper, with one 5 x 5 kept."""
    return Branches(
        _chain(before, (w(64), 1, 1)),
        _chain(before, (w(48), 1, 1), (w(64), 5, 1)),
        _chain(before, (w(64), 1, 1), (w(96), 3, 1), (w(96), 3, 1)),
        _pooled(before, w(pool)),
    )


def _b(w: Width, before: int) -> Branches:
    """35 x 35 to 17 x 17: figure 10."""
    return Branches(
        _chain(before, (w(384), 3, 2)),
        _chain(before, (w(64), 1, 1), (w(96), 3, 1), (w(96), 3, 2)),
        HALVE(),
    )


def _c(w: Width, before: int, inner: int) -> Branches:
    """17 x 17: figure 6, with n = 7."""
    c, row, column = w(inner), (1, 7), (7, 1)
    return Branches(
        _chain(before, (w(192), 1, 1)),
        _chain(before, (c, 1, 1), (c, row, 1), (w(192), column, 1)),
        _chain(before, (c, 1, 1), (c, column, 1), (c, row, 1), (c, column, 1), (w(192), row, 1)),
        _pooled(before, w(192)),
    )


def _d(w: Width, before: int) -> Branches:
    """17 x 17 to 8 x 8."""
    return Branches(
        _chain(before, (w(192), 1, 1), (w(320), 3, 2)),
        _chain(before, (w(192), 1, 1), (w(192), (1, 7), 1), (w(192), (7, 1), 1), (w(192), 3, 2)),
        HALVE(),
    )


def _e(w: Width, before: int) -> Branches:
    """8 x 8: figure 7, whose branches fan out at their end."""

    def fan(*stem: tuple[int, int, int]) -> nn.Sequential:
        inner = stem[-1][0]
        ends = [_chain(inner, (w(384), kernel, 1)) for kernel in ((1, 3), (3, 1))]
        return nn.Sequential(_chain(before, *stem), Branches(*ends))

    return Branches(
        _chain(before, (w(320), 1, 1)),
        fan((w(384), 1, 1)),
        fan((w(448), 1, 1), (w(384), 3, 1)),
        _pooled(before, w(192)),
    )


class Inception3(nn.Module):
    """The network, with its auxiliary classifier; dropout is left out, as in `AlexNet`.

    Args:
        classes: outputs.
        narrow: divides all channels.
        auxiliary_kernel: side of the last convolution before the auxiliary scores: 5 where a picture has 299 pixels
            and leaves 5 x 5 there; smaller pictures leave less.
    """

    def __init__(self, classes: int = 1000, *, narrow: int = 1, auxiliary_kernel: int = 5) -> None:
        super().__init__()

        def w(channels: int) -> int:
            return max(2, channels // narrow)

        self.stem = nn.Sequential(
            _chain(3, (w(32), 3, 2)),
            Convolution(w(32), w(32), 3),
            _chain(w(32), (w(64), 3, 1)),
            HALVE(),
            _chain(w(64), (w(80), 1, 1)),
            Convolution(w(80), w(192), 3),
            HALVE(),
        )
        wide_a = [w(64) + w(64) + w(96) + w(pool) for pool in (32, 64)]
        wide_b = w(384) + w(96) + wide_a[1]
        wide_c = 4 * w(192)
        wide_d = w(320) + w(192) + wide_c
        wide_e = w(320) + 4 * w(384) + w(192)
        self.early = nn.Sequential(_a(w, w(192), 32), _a(w, wide_a[0], 64), _a(w, wide_a[1], 64), _b(w, wide_a[1]))
        inner = zip((wide_b, wide_c, wide_c, wide_c), (128, 160, 160, 192), strict=True)
        self.middle = nn.Sequential(*(_c(w, before, channels) for before, channels in inner))
        self.auxiliary = nn.Sequential(
            nn.AvgPool2d(5, 3) if auxiliary_kernel > 1 else nn.AdaptiveAvgPool2d(1),
            _chain(wide_c, (w(128), 1, 1)),
            Convolution(w(128), w(768), auxiliary_kernel),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(w(768), classes)),
        )
        self.late = nn.Sequential(_d(w, wide_c), _e(w, wide_d), _e(w, wide_e))
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide_e, classes))
        _initialise(self.modules())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Class scores and auxiliary class scores (samples, classes) of images (samples, 3, pixels, pixels)."""
        middle = self.middle(self.early(self.stem(images)))
        return self.classifier(self.late(middle)), self.auxiliary(middle)


def _initialise(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
