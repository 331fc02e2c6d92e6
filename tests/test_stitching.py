"""Stitching the identity is the identity; averaging windows that agree is what they agree on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tiling import lattices

from gimseg.errors import TilingError
from gimseg.stitching import Blend, Mosaic, taper
from gimseg.tiling import Block, Blocks, Lattice, Window, overlap, roi_shape


def cut(image: np.ndarray, window: Window) -> np.ndarray:
    """What a window reads: the image (planes, rows, cols), mirrored beyond its end."""
    beyond = [(0, max(part.stop - size, 0)) for part, size in zip(window.read, image.shape[1:], strict=True)]
    return np.pad(image, ((0, 0), *beyond), "reflect")[:, *window.read]


def blended(lattice: Lattice, block: Block, image: np.ndarray) -> np.ndarray:
    blend = Blend(block.core, lattice, len(image), torch.device("cpu"))
    for window in lattice.windows_for(block.core):
        blend.add(window, torch.from_numpy(cut(image, window)))
    return blend.to_tensor().numpy()


@settings(deadline=None, max_examples=50)
@given(lattices(), st.integers(1, 150))
def test_stitching_the_identity_is_the_identity(lattice: Lattice, block: int) -> None:
    image = np.arange(2 * np.prod(lattice.shape), dtype=np.int64).reshape(2, *lattice.shape)
    whole = np.zeros_like(image)
    for item in Blocks.of_side(lattice, block):
        mosaic = Mosaic(item.core, 2, np.int64)
        for window in lattice.windows_for(item.core):
            mosaic.place(window, cut(image, window))
        whole[:, *item.core] = mosaic.to_array()
    assert np.array_equal(whole, image)


def test_a_hole_is_an_error_and_a_skipped_window_is_none() -> None:
    lattice = Lattice((50, 70), window=(24, 24), halo=4, stride=4)
    (block,) = Blocks.of_side(lattice, 200)
    first, *others = lattice.windows_for(block.core)
    mosaic = Mosaic(block.core)
    for window in others:
        mosaic.place(window, np.ones((1, *roi_shape(window.read)), np.uint8))
    with pytest.raises(TilingError, match="400 px missing"):
        mosaic.to_array()
    mosaic.skip(first)
    assert mosaic.to_array()[:, *first.core].sum() == 0


@settings(deadline=None, max_examples=50)
@given(lattices(blend=True), st.integers(1, 150))
def test_averaging_windows_that_agree_is_what_they_agree_on(lattice: Lattice, block: int) -> None:
    image = np.random.default_rng(0).random((2, *lattice.shape), np.float32)
    for item in Blocks.of_side(lattice, block):
        assert np.allclose(blended(lattice, item, image), image[:, *item.core], atol=1e-6)


@settings(deadline=None, max_examples=50)
@given(lattices(blend=True), st.integers(1, 150))
def test_averages_have_the_same_bytes_for_every_block(lattice: Lattice, side: int) -> None:
    def of_side(side: int) -> np.ndarray:
        whole = np.zeros((1, *lattice.shape), np.float32)
        for block in Blocks.of_side(lattice, side):
            blend = Blend(block.core, lattice, 1, torch.device("cpu"))
            for window in lattice.windows_for(block.core):
                # Windows that do not agree: each says something of its own.
                seed = window.read[0].start * 1000 + window.read[1].start
                generator = torch.Generator().manual_seed(seed)
                blend.add(window, torch.rand(1, *roi_shape(window.read), generator=generator))
            whole[:, *block.core] = blend.to_tensor().numpy()
        return whole

    assert np.array_equal(of_side(side), of_side(10_000))


def test_a_window_far_from_a_region_adds_nothing_to_it_and_weights_of_neighbours_add_up_to_one() -> None:
    lattice = Lattice((64, 176), window=(64, 64), halo=8, stride=8, blend=True)
    windows = list(lattice.windows_for((slice(0, 64), slice(0, 176))))
    (_, first), (_, second) = (taper(window, lattice) for window in windows[:2])
    assert torch.allclose(first[-16:] + second[:16], torch.ones(16))
    assert (first[:-16] == 1).all()
    blend = Blend((slice(0, 64), slice(0, 16)), lattice, 1, torch.device("cpu"))
    blend.add(windows[-1], torch.ones(1, 64, 64))
    assert overlap(windows[-1].core, (slice(0, 64), slice(0, 16))) is None
    assert not blend.to_tensor().any()
