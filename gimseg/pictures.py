"""Pictures of windows: the image, stretched as a person would, with labels or outcomes over it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gimseg.legend import UNLABELLED, Legend

HIT, MISS, FALSE_ALARM = (46, 204, 64), (0, 116, 255), (255, 50, 40)


@dataclass(frozen=True)
class Panel:
    """One picture of a contact sheet.

    Args:
        title: line above it.
        image: float32 (bands, rows, cols), raw values; the first three bands are shown.
        overlay: uint8 (rows, cols, 4), RGBA to lay over it, or None.
    """

    title: str
    image: np.ndarray
    overlay: np.ndarray | None = None


def to_rgb(image: np.ndarray) -> np.ndarray:
    """An image of any bands and range as uint8 (rows, cols, 3).

    Bytes are shown as they are; other ranges are stretched between their 2nd and 98th
    percentile. One or two bands become grey.

    Args:
        image: (bands, rows, cols).

    Example:
        >>> to_rgb(np.full((1, 2, 2), 7.0)).shape
        (2, 2, 3)
    """
    bands = image[:3] if len(image) >= 3 else np.repeat(image[:1], 3, axis=0)
    if bands.min() < 0 or bands.max() > 255 or bands.max() <= 1:
        shown = bands[bands != 0]
        low, high = np.percentile(shown, (2, 98)) if shown.size else (0.0, 1.0)
        bands = (bands - low) / max(high - low, 1e-6) * 255
    return np.clip(np.moveaxis(bands, 0, -1), 0, 255).astype(np.uint8)


def label_overlay(labels: np.ndarray, legend: Legend) -> np.ndarray:
    """Classes in their colours with a clear outline; unlabelled ground hatched.

    Args:
        labels: uint8 (rows, cols).

    Returns:
        uint8 (rows, cols, 4).
    """
    overlay = np.zeros((*labels.shape, 4), np.uint8)
    for item in legend.classes:
        inside = labels == item.value
        overlay[inside] = (*item.rgba[:3], 70)
        overlay[_edge(inside)] = (*item.rgba[:3], 255)
    diagonal = np.add.outer(np.arange(labels.shape[0]), np.arange(labels.shape[1]))
    overlay[(labels == UNLABELLED) & (diagonal % 8 == 0)] = (255, 255, 255, 150)
    return overlay


def outcome_overlay(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Hits green, misses blue, false alarms (a wrong class too) red; unlabelled ground dimmed.

    Args:
        truth: uint8 (rows, cols), 255 unlabelled.
        prediction: uint8 (rows, cols).

    Returns:
        uint8 (rows, cols, 4).
    """
    known = truth != UNLABELLED
    predicted = np.where(prediction == UNLABELLED, 0, prediction)
    overlay = np.zeros((*truth.shape, 4), np.uint8)
    overlay[known & (truth > 0) & (predicted == truth)] = (*HIT, 110)
    overlay[known & (truth > 0) & (predicted == 0)] = (*MISS, 150)
    overlay[known & (predicted > 0) & (predicted != truth)] = (*FALSE_ALARM, 150)
    overlay[~known] = (0, 0, 0, 90)
    return overlay


def blend(image: np.ndarray, overlay: np.ndarray | None) -> np.ndarray:
    """An RGB picture under an RGBA overlay: uint8 (rows, cols, 3)."""
    if overlay is None:
        return image
    share = overlay[..., 3:].astype(np.float32) / 255
    return np.round(image * (1 - share) + overlay[..., :3] * share).astype(np.uint8)


def draw_contact_sheet(
    path: str | os.PathLike[str], panels: Sequence[Panel], *, columns: int = 4, title: str = ""
) -> None:
    """Draw panels side by side into a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    side = 12 / columns
    figure = Figure(figsize=(12, rows * side + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    grid = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, panel in zip(grid, panels, strict=False):
        axes.imshow(blend(to_rgb(panel.image), panel.overlay), interpolation="nearest")
        axes.set_title(panel.title, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=120, format="png")


def _edge(mask: np.ndarray) -> np.ndarray:
    """Pixels of the mask with a neighbour outside it."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner
