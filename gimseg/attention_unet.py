"""A U-Net whose skips pass a gate, and which can learn at every scale of its decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gimseg.errors import ModelError
from gimseg.torchvision_ops import declare_missing_operators

declare_missing_operators()

import segmentation_models_pytorch as smp  # noqa: E402


class AttentionUnet(nn.Module):
    """A U-Net on an encoder of segmentation-models-pytorch, with attention gates and deep supervision.

    Args:
        encoder_name: as smp names it.
        encoder_depth: times that it halves the image, 3 to 5.
        encoder_weights: as smp names them, or None.
        decoder_channels: feature maps of each step up, `encoder_depth` numbers.
        attention: the decoder says where in a skip to look.
        deep_supervision: while training, logits come from each of the coarser steps too.
        in_channels: bands.
        classes: channels of the logits.

    Raises:
        ModelError: as many decoder channels as steps are needed.

    Example:
        >>> network = AttentionUnet("resnet18", 3, None, (32, 16, 8), deep_supervision=True)
        >>> [tuple(logits.shape) for logits in network(torch.zeros(2, 3, 32, 32))]
        [(2, 1, 32, 32), (2, 1, 32, 32), (2, 1, 32, 32)]
        >>> network.eval()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 1, 32, 32])

    Source: gates: Oktay et al. 2018, arXiv 1804.03999; deep supervision: Lee et al. 2015, arXiv 1409.5185.
    """

    def __init__(
        self,
        encoder_name: str = "resnet18",
        encoder_depth: int = 5,
        encoder_weights: str | bool | None = None,
        decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
        attention: bool = True,
        deep_supervision: bool = False,
        in_channels: int = 3,
        classes: int = 1,
    ) -> None:
        super().__init__()
        if len(decoder_channels) != encoder_depth:
            raise ModelError(
                f"AttentionUnet of depth {encoder_depth} with {len(decoder_channels)} decoder channels: give one a step"
            )
        self.encoder = smp.encoders.get_encoder(
            encoder_name, in_channels=in_channels, depth=encoder_depth, weights=encoder_weights
        )
        widths = list(self.encoder.out_channels)
        skips = [*reversed(widths[1:-1]), 0]
        below = [widths[-1], *decoder_channels[:-1]]
        self.steps = nn.ModuleList(
            UpStep(low, skip, out, attention) for low, skip, out in zip(below, skips, decoder_channels, strict=True)
        )
        self.head = nn.Conv2d(decoder_channels[-1], classes, 3, padding=1)
        coarse = decoder_channels[-2::-1] if deep_supervision else ()
        self.coarse_heads = nn.ModuleList(nn.Conv2d(width, classes, 1) for width in coarse)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """(N, bands, rows, cols) to logits (N, channels, rows, cols), while training of all scales, finest first."""
        skips = list(self.encoder(images))[1:]
        features, found = skips.pop(), []
        for step in self.steps:
            features = step(features, skips.pop() if skips else None)
            found.append(features)
        logits = self.head(features)
        if not (self.training and len(self.coarse_heads)):
            return logits
        coarse = zip(self.coarse_heads, found[-2::-1], strict=False)
        size = logits.shape[-2:]
        return [logits, *(F.interpolate(head(maps), size, mode="bilinear") for head, maps in coarse)]


class UpStep(nn.Module):
    """Twice as many rows and columns, joined with the skip as far as its gate lets it pass."""

    def __init__(self, below: int, skip: int, out: int, attention: bool) -> None:
        super().__init__()
        self.gate = AttentionGate(below, skip) if attention and skip else None
        self.convolve = nn.Sequential(*_convolution(below + skip, out), *_convolution(out, out))

    def forward(self, features: Tensor, skip: Tensor | None) -> Tensor:
        """(N, below, rows, cols) and (N, skip, 2 * rows, 2 * cols) to (N, out, 2 * rows, 2 * cols)."""
        features = F.interpolate(features, scale_factor=2.0, mode="nearest")
        if skip is not None:
            skip = skip if self.gate is None else self.gate(features, skip)
            features = torch.cat([features, skip], dim=1)
        return self.convolve(features)


class AttentionGate(nn.Module):
    """A share, 0 to 1, for each place of a skip; additive, and local: it looks at no other place."""

    def __init__(self, features: int, skip: int) -> None:
        super().__init__()
        inner = max(1, skip // 2)
        self.of_features = nn.Sequential(nn.Conv2d(features, inner, 1, bias=False), nn.BatchNorm2d(inner))
        self.of_skip = nn.Sequential(nn.Conv2d(skip, inner, 1, bias=False), nn.BatchNorm2d(inner))
        self.share = nn.Conv2d(inner, 1, 1)

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        """Both (N, ·, rows, cols); the skip, weighted."""
        return skip * torch.sigmoid(self.share(torch.relu(self.of_features(features) + self.of_skip(skip))))


def _convolution(width: int, out: int) -> list[nn.Module]:
    return [nn.Conv2d(width, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
