"""The convolutional networks of Git Re-Basin's experiments (Ainsworth et al. 2023, appendix A.3 and the authors' code).

``norm`` is ``layer``, as there, or ``batch``. Of BatchNorm, the running statistics are part of the weights.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import relu

from lab.images import Dataset
from lab.networks.normalise import Normalise

# Channels in units of the first layer's, M where the image is halved.
VGG11 = (1, "M", 2, "M", 4, 4, "M", 8, 8, "M", 8, 8, "M")
VGG16 = (1, 1, "M", 2, 2, "M", 4, 4, 4, "M", 8, 8, 8, "M", 8, 8, 8, "M")


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of each pixel: (m, channels, height, width) to the same.

    ``weight`` and ``bias`` are (channels,). torchvision has the same, but not in its public interface.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class PixelMean(nn.Module):
    """The mean over pixels: (m, channels, height, width) to (m, channels), in a form that vmap can stack."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


NORMS = {"layer": LayerNorm2d, "batch": nn.BatchNorm2d}


def vgg11(dataset: Dataset, width: int, outputs: int | None = None) -> nn.Sequential:
    """VGG-11 without norms, with ``width`` channels in its first layer, 64 in the original, and one linear layer.

    So ZipIt! has it (Stoica et al. 2024, table 11). The last layer gives a logit for each class, or so many
    ``outputs``.
    """
    layers, features = _convolutions(VGG11, dataset, width, norm=None)
    layers.update(flatten=nn.Flatten(), layer9=nn.Linear(features, outputs or dataset.classes))
    return nn.Sequential(layers)


def vgg16(dataset: Dataset, width: int, norm: str) -> nn.Sequential:
    """VGG-16 with ``width`` channels in its first layer, 64 in the original, and all others in proportion.

    Two hidden layers of 8 ``width`` follow the 13 convolutions, as in Git Re-Basin's code.
    """
    layers, features = _convolutions(VGG16, dataset, width, norm)
    layers.update(
        flatten=nn.Flatten(),
        layer14=nn.Linear(features, 8 * width),
        relu14=nn.ReLU(),
        layer15=nn.Linear(8 * width, 8 * width),
        relu15=nn.ReLU(),
        layer16=nn.Linear(8 * width, dataset.classes),
    )
    return nn.Sequential(layers)


def _convolutions(
    steps: Sequence[int | str], dataset: Dataset, width: int, norm: str | None
) -> tuple[OrderedDict[str, nn.Module], int]:
    """The layers of a VGG before it is flattened, and how many features that gives.

    Max pooling stops when a side of the image is 1: the digits' 8 x 8 pixels are pooled three times and not five.
    """
    channels, *sides = dataset.train.images.shape[1:]
    layers: OrderedDict[str, nn.Module] = OrderedDict(normalise=Normalise(dataset.mean, dataset.std))
    i = 0
    for step in steps:
        if isinstance(step, str):
            if min(sides) > 1:
                layers[f"pool{i}"] = nn.MaxPool2d(2)
                sides = [side // 2 for side in sides]
            continue
        i += 1
        layers[f"conv{i}"] = nn.Conv2d(channels, step * width, 3, padding=1)
        channels = step * width
        if norm is not None:
            layers[f"norm{i}"] = NORMS[norm](channels)
        layers[f"relu{i}"] = nn.ReLU()
    return layers, channels * sides[0] * sides[1]


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut around them: (m, inputs, h, w) to (m, outputs, h / stride, w / stride).

    The shortcut is the identity; where channels and sides change, a 3 x 3 convolution and a norm (He et al. 2016 pad
    with zeros there, which no permutation of the channels could pass).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = NORMS[norm](outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = NORMS[norm](outputs)
        self.shortcut = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(
                OrderedDict(
                    conv=nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), norm=NORMS[norm](outputs)
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        y = relu(self.norm1(self.conv1(x)))
        return relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet20(dataset: Dataset, width: int, norm: str, outputs: int | None = None) -> nn.Sequential:
    """ResNet20 (He et al. 2016) with ``width`` channels in its first stage, 16 in the original; then twice and 4 times.

    Convolutions have no bias. Images of any size: what the three stages leave of it is averaged. The last layer gives
    a logit for each class, or so many ``outputs``.
    """
    inputs = dataset.train.images.shape[1]
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        normalise=Normalise(dataset.mean, dataset.std),
        conv=nn.Conv2d(inputs, width, 3, padding=1, bias=False),
        norm=NORMS[norm](width),
        relu=nn.ReLU(),
    )
    inputs = width
    for stage, channels in enumerate((width, 2 * width, 4 * width), 1):
        for block in (1, 2, 3):
            stride = 2 if stage > 1 and block == 1 else 1
            layers[f"stage{stage}_block{block}"] = BasicBlock(inputs, channels, stride, norm)
            inputs = channels
    layers.update(mean=PixelMean(), layer=nn.Linear(inputs, outputs or dataset.classes))
    return nn.Sequential(layers)
