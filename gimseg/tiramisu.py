"""FC-DenseNet, the hundred layers Tiramisu: a U-Net of dense blocks, without a pretrained encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gimseg.errors import ModelError


class FCDenseNet(nn.Module):
    """Dense blocks down, a bottleneck, dense blocks up; only what is new in a block goes up.

    Args:
        in_channels: bands.
        classes: channels of the logits.
        layers: convolutions of each dense block on the way down (and up, in reverse).
        bottleneck: convolutions of the lowest block.
        growth: feature maps that a convolution adds.
        first: feature maps of the first convolution.
        dropout: share of feature maps dropped while training.

    The defaults are FC-DenseNet67; 56 has ``layers=(4, 4, 4, 4, 4), bottleneck=4, growth=12``,
    103 has ``layers=(4, 5, 7, 10, 12), bottleneck=15``.

    Raises:
        ModelError: sizes that make no network.

    Example:
        >>> network = FCDenseNet(3, 1, layers=(2, 2), bottleneck=2, growth=4, first=8).eval()
        >>> network(torch.zeros(1, 3, 32, 64)).shape, network.stride
        (torch.Size([1, 1, 32, 64]), 4)

    Source: Jégou et al. 2017, arXiv 1611.09326.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        layers: Sequence[int] = (5, 5, 5, 5, 5),
        bottleneck: int = 5,
        growth: int = 16,
        first: int = 48,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if not layers or min(*layers, bottleneck, growth, first) < 1 or not 0 <= dropout < 1:
            raise ModelError(
                f"FCDenseNet with layers {tuple(layers)}, bottleneck {bottleneck}, growth {growth}, first {first}, "
                f"dropout {dropout}: all must be 1 or more, dropout at least 0 and below 1"
            )
        self.stride = 2 ** len(layers)
        self.stem = nn.Conv2d(in_channels, first, 3, padding=1)
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        width, skips = first, []
        for count in layers:
            self.down.append(DenseBlock(width, count, growth, dropout))
            width += count * growth
            skips.append(width)
            self.shrink.append(nn.Sequential(*_convolution(width, width, 1, dropout), nn.MaxPool2d(2)))
        self.bottom = DenseBlock(width, bottleneck, growth, dropout)
        self.grow, self.up = nn.ModuleList(), nn.ModuleList()
        width = bottleneck * growth
        for count, skip in zip(reversed(layers), reversed(skips), strict=True):
            self.grow.append(nn.ConvTranspose2d(width, width, 3, stride=2, padding=1, output_padding=1))
            self.up.append(DenseBlock(width + skip, count, growth, dropout))
            inner, width = width + skip, count * growth
        self.head = nn.Conv2d(inner + width, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(N, bands, rows, cols) to logits (N, channels, rows, cols); sides are multiples of `stride`."""
        features, skips = self.stem(images), []
        for block, shrink in zip(self.down, self.shrink, strict=True):
            skips.append(torch.cat([features, block(features)], dim=1))
            features = shrink(skips[-1])
        fresh = self.bottom(features)
        for grow, block in zip(self.grow, self.up, strict=True):
            features = torch.cat([grow(fresh), skips.pop()], dim=1)
            fresh = block(features)
        return self.head(torch.cat([features, fresh], dim=1))


class DenseBlock(nn.Module):
    """Convolutions that each see the outputs of all before; gives the new feature maps alone."""

    def __init__(self, width: int, count: int, growth: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(*_convolution(width + number * growth, growth, 3, dropout)) for number in range(count)
        )

    def forward(self, features: Tensor) -> Tensor:
        """(N, width, rows, cols) to (N, count * growth, rows, cols)."""
        fresh: list[Tensor] = []
        for layer in self.layers:
            fresh.append(layer(torch.cat([features, *fresh], dim=1)))
        return torch.cat(fresh, dim=1)


def _convolution(width: int, out: int, kernel: int, dropout: float) -> list[nn.Module]:
    return [
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=False),
        nn.Conv2d(width, out, kernel, padding=kernel // 2),
        nn.Dropout2d(dropout),
    ]
