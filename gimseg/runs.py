"""Horizontal runs of equal pixels, and what joins them to regions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


class Runs(NamedTuple):
    """Horizontal runs of equal pixels, background left out.

    Attributes:
        block: uint8 (rows, width), the first and the last column background.
        same_right: bool like it, a pixel equals the one to its right (in raveled order).
        starts: (n,) flat index of the first pixel of each run, ascending.
    """

    block: np.ndarray
    same_right: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, block: np.ndarray) -> Runs:
        """The runs of rows as :func:`padded` gives them."""
        same_right = np.ones(block.shape, bool)
        flat = block.ravel()
        np.equal(flat[1:], flat[:-1], out=same_right.ravel()[:-1])
        starts = np.flatnonzero(~same_right.ravel()) + 1
        return cls(block, same_right, starts[flat[starts] != 0])

    def at(self, pixels: np.ndarray) -> np.ndarray:
        """The run of each pixel (flat index, not background)."""
        return np.searchsorted(self.starts, pixels, side="right") - 1

    def touching(self, connectivity: int) -> np.ndarray:
        """Pairs of runs (2, n) of one value in successive rows that share an edge, or with 8 a corner too."""
        width, flat = self.block.shape[1], self.block.ravel()
        # Two runs that meet do so at the first pixel of one of them, or beside it.
        steps = (-width, width) if connectivity == 4 else (-width, width, -width - 1, width - 1)
        pairs = []
        for step in steps:
            runs = np.flatnonzero((self.starts + step >= 0) & (self.starts + step < len(flat)))
            beside = self.starts[runs] + step
            meets = flat[beside] == flat[self.starts[runs]]
            pairs.append(np.stack([runs[meets], self.at(beside[meets])]))
        return np.concatenate(pairs, axis=1)

    def joined(self, connectivity: int) -> np.ndarray:
        """The region of each run, numbered from 0."""
        return components(self.touching(connectivity), len(self.starts))

    def edge_regions(self, regions: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """The regions with a pixel in the first or the last row, numbered from 0.

        Args:
            regions: of each run.

        Returns:
            those regions; region -> its number among them or -1; the numbers along the first row and the last.
        """
        height, width = self.block.shape
        first, last = self.starts < width, self.starts >= (height - 1) * width
        edge = np.unique(regions[first | last])
        number = np.full(regions.max(initial=-1) + 1, -1)
        number[edge] = np.arange(len(edge))
        return edge, number, (number[regions[first]], number[regions[last]])


def padded(labels: np.ndarray) -> np.ndarray:
    """Rows with a column of background on either side."""
    block = np.zeros((len(labels), labels.shape[1] + 2), labels.dtype)
    block[:, 1:-1] = labels
    return block


def by_number(numbers: np.ndarray, wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each number with the places at which it stands and is wanted."""
    places = np.flatnonzero(wanted)
    places = places[np.argsort(numbers[places], kind="stable")]
    starts = np.flatnonzero(np.diff(numbers[places], prepend=-1))
    yield from zip(numbers[places[starts]].tolist(), np.split(places, starts[1:]), strict=False)


def components(pairs: np.ndarray, n: int) -> np.ndarray:
    """Number what pairs (2, m) of 0 ... n - 1 join."""
    if n == 0:
        return np.empty(0, np.int32)
    graph = coo_array((np.ones(pairs.shape[1], bool), (pairs[0], pairs[1])), shape=(n, n))
    return connected_components(graph, directed=False)[1]
