"""What is kept of a network's output at each pixel: planes of bytes, the classes first."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gimseg.legend import BACKGROUND, Legend
from gimseg.recipes import Recipe


@dataclass(frozen=True)
class Products:
    """The planes of bytes that a prediction yields.

    Plane 0 holds the classes and becomes the mask. A byte of 255 says in every plane
    that there is nothing to say.
    """

    def planes(self, legend: Legend) -> tuple[str, ...]:
        """Names of the planes, in order."""
        return ("classes",)

    def encode(self, probabilities: torch.Tensor, recipe: Recipe) -> torch.Tensor:
        """Probabilities to planes, on the device where they are.

        Args:
            probabilities: float32 (N, channels, rows, cols) as :meth:`Recipe.probabilities` gives them.
            recipe: threshold and legend.

        Returns:
            uint8 (N, planes, rows, cols).
        """
        if recipe.legend.is_binary:
            channels = (probabilities > recipe.threshold).long()
        else:
            channels = probabilities.argmax(dim=1, keepdim=True)
        values = torch.tensor([BACKGROUND, *recipe.legend.values], dtype=torch.uint8, device=probabilities.device)
        return values[channels]
