"""Stitching the identity is the identity."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tiling import lattices

from gimseg.errors import TilingError
from gimseg.stitching import Mosaic, batches, stitch
from gimseg.tiling import Block, Lattice, plan_blocks, plan_windows, roi_shape


def padded(image: np.ndarray, block: Block) -> np.ndarray:
    """What a block reads: the image, and -1 outside of it."""
    rows, cols = (np.arange(part.start, part.stop) for part in block.read)
    inside = ((rows >= 0) & (rows < image.shape[1]))[:, None] & ((cols >= 0) & (cols < image.shape[2]))
    clipped = image[:, rows.clip(0, image.shape[1] - 1)][:, :, cols.clip(0, image.shape[2] - 1)]
    return np.where(inside, clipped, -1)


@settings(deadline=None, max_examples=50)
@given(lattices(), st.integers(1, 150), st.integers(1, 3))
def test_stitching_the_identity_is_the_identity(lattice: Lattice, block: int, batch: int) -> None:
    image = np.arange(np.prod(lattice.shape), dtype=np.int64).reshape(1, *lattice.shape)
    whole = np.zeros(lattice.shape, np.int64)
    for item in plan_blocks(lattice, block):
        mosaic = Mosaic(item.core, dtype=np.int64)
        windows = plan_windows(lattice, item)
        stitch(mosaic, windows, padded(image, item), item.read, lambda images: images, batch=batch)
        whole[item.core] = mosaic.to_array()[0]
    assert np.array_equal(whole, image[0])


def test_several_planes_are_stitched_alike() -> None:
    lattice = Lattice((50, 70), window=24, halo=4, stride=4)
    image = np.random.default_rng(0).random((3, 50, 70))
    (block,) = plan_blocks(lattice, 200)
    mosaic = Mosaic(block.core, 3, float)
    stitch(mosaic, plan_windows(lattice, block), padded(image, block), block.read, lambda images: images)
    assert np.array_equal(mosaic.to_array(), image)


def test_every_call_has_the_same_number_of_windows_of_one_shape() -> None:
    lattice = Lattice((50, 70), window=24, halo=4, stride=4)
    (block,) = plan_blocks(lattice, 200)
    sizes = []

    def count(images: np.ndarray) -> np.ndarray:
        sizes.append(len(images))
        return images

    windows = plan_windows(lattice, block)
    stitch(Mosaic(block.core, dtype=float), windows, np.zeros((1, *roi_shape(block.read))), block.read, count, batch=4)
    assert set(sizes) == {4}
    assert sum(len(group) for group in batches(windows, 4)) == len(windows)


def test_a_hole_is_an_error_and_a_skipped_window_is_none() -> None:
    lattice = Lattice((50, 70), window=24, halo=4, stride=4)
    (block,) = plan_blocks(lattice, 200)
    first, *others = plan_windows(lattice, block)
    mosaic = Mosaic(block.core)
    for window in others:
        mosaic.place(window, np.ones((1, *roi_shape(window.read)), np.uint8))
    with pytest.raises(TilingError, match="256 px missing"):
        mosaic.to_array()
    mosaic.skip(first)
    assert mosaic.to_array()[:, *first.core].sum() == 0
