"""Networks of convolutions in a row."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

CONVOLUTIONS_OF_VGG_16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class AlexNet(nn.Module):
    """Krizhevsky 2014 ("One weird trick for parallelizing convolutional neural networks"), the one-tower AlexNet.

    After Krizhevsky, Sutskever and Hinton 2012, without their split over two GPUs. Dropout is left out: its masks
    would depend on how a batch is shared among workers.

    Args:
        classes: outputs.
        narrow: divides all channels.
        grid: what the last pooling layer leaves of the picture, per side.
    """

    def __init__(self, classes: int = 1000, *, narrow: int = 1, grid: int = 6) -> None:
        super().__init__()
        a, b, c, d = (channels // narrow for channels in (64, 192, 384, 256))
        wide = 4096 // narrow
        self.features = nn.Sequential(
            *(nn.Conv2d(3, a, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(a, b, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(b, c, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(c, d, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(d, d, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
            nn.AdaptiveAvgPool2d(grid),
        )
        self.classifier = nn.Sequential(
            *(nn.Linear(d * grid * grid, wide), nn.ReLU(), nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, classes))
        )

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (samples, classes) of images (samples, 3, pixels, pixels)."""
        scores: Tensor = self.classifier(self.features(images).flatten(1))
        return scores


class Vgg16(nn.Module):
    """Simonyan and Zisserman 2015 ("Very deep convolutional networks ..."), configuration D: 13 convolutions.

    Dropout is left out, as in `AlexNet`.

    Args:
        classes: outputs.
        narrow: divides all channels.
        grid: what the last pooling layer leaves of the picture, per side.
    """

    def __init__(self, classes: int = 1000, *, narrow: int = 1, grid: int = 7) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for block in CONVOLUTIONS_OF_VGG_16:
            for channels in block:
                layers += [nn.Conv2d(before, channels // narrow, 3, padding=1), nn.ReLU()]
                before = channels // narrow
            layers.append(nn.MaxPool2d(2, 2))
        wide = 4096 // narrow
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(grid))
        self.classifier = nn.Sequential(
            nn.Linear(before * grid * grid, wide),
            *(nn.ReLU(), nn.Linear(wide, wide)),
            *(nn.ReLU(), nn.Linear(wide, classes)),
        )
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                # With PyTorch's default the signal fades over thirteen layers and nothing is learnt.
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (samples, classes) of images (samples, 3, pixels, pixels)."""
        scores: Tensor = self.classifier(self.features(images).flatten(1))
        return scores


class CifarNetwork(nn.Module):
    """The network of TensorFlow's CIFAR-10 tutorial (after Krizhevsky 2010, "Convolutional deep belief networks").

    Two convolutions with local response normalisation, two fully connected layers, and the scores; 1,068,298
    parameters on 24 x 24 crops. That the paper's "CIFAR" was this network is our choice, not its word.

    Args:
        classes: outputs.
        pixels: side of a picture.
        narrow: divides all channels.
    """

    def __init__(self, classes: int = 10, *, pixels: int = 24, narrow: int = 1) -> None:
        super().__init__()
        channels = 64 // narrow
        self.features = nn.Sequential(
            *(nn.Conv2d(3, channels, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1), nn.LocalResponseNorm(9)),
            *(nn.Conv2d(channels, channels, 5, padding=2), nn.ReLU(), nn.LocalResponseNorm(9)),
            nn.MaxPool2d(3, 2, padding=1),
        )
        self.classifier = nn.Sequential(
            *(nn.Linear(channels * (pixels // 4) ** 2, 384 // narrow), nn.ReLU()),
            *(nn.Linear(384 // narrow, 192 // narrow), nn.ReLU(), nn.Linear(192 // narrow, classes)),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (samples, classes) of images (samples, 3, pixels, pixels)."""
        scores: Tensor = self.classifier(self.features(images).flatten(1))
        return scores


class FullyConnected5(nn.Module):
    """FCN-5: five fully connected layers.

    Xue et al. 2018 name it without its dimensions where we could read them, so these are ours: 784 inputs (a 28 x 28
    picture), four layers of 4096, ten classes.

    Args:
        inputs: numbers per sample.
        wide: units of each hidden layer.
        classes: outputs.
    """

    def __init__(self, inputs: int = 784, wide: int = 4096, classes: int = 10) -> None:
        super().__init__()
        widths = (inputs, wide, wide, wide, wide)
        hidden = [(nn.Linear(i, o), nn.ReLU()) for i, o in pairwise(widths)]
        self.layers = nn.Sequential(*(layer for pair in hidden for layer in pair), nn.Linear(wide, classes))

    def forward(self, samples: Tensor) -> Tensor:
        """Class scores (samples, classes) of flat samples (samples, inputs)."""
        scores: Tensor = self.layers(samples)
        return scores
