"""Laws of blocks and windows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gimseg.errors import TilingError
from gimseg.tiling import Lattice, chunks, crop, overlap, plan_blocks, plan_windows, roi_shape, shift


@st.composite
def lattices(draw: st.DrawFn) -> Lattice:
    stride = draw(st.sampled_from([1, 2, 4, 8]))
    halo = draw(st.integers(0, 3)) * stride
    cell = draw(st.integers(1, 6)) * stride
    window = 2 * halo + cell
    most = 7 * cell
    shape = draw(st.tuples(st.integers(1, most), st.integers(1, most)))
    return Lattice(shape, window, halo, stride, smallest=draw(st.sampled_from([1, window])))


@settings(deadline=None, max_examples=50)
@given(lattices(), st.integers(1, 150))
def test_blocks_and_their_windows_cover_every_pixel_once(lattice: Lattice, block: int) -> None:
    by_block = np.zeros(lattice.shape, int)
    by_window = np.zeros(lattice.shape, int)
    for item in plan_blocks(lattice, block):
        by_block[item.core] += 1
        for window in plan_windows(lattice, item):
            by_window[window.core] += 1
            assert overlap(window.core, item.core) == window.core
            assert overlap(window.read, item.read) == window.read
    assert (by_block == 1).all()
    assert (by_window == 1).all()


@settings(deadline=None, max_examples=50)
@given(lattices(), st.integers(1, 150), st.integers(1, 150))
def test_windows_do_not_depend_on_the_block_size(lattice: Lattice, one: int, other: int) -> None:
    def windows(block: int) -> set:
        return {
            (window.read[0].start, window.read[1].start, roi_shape(window.read), roi_shape(window.core))
            for item in plan_blocks(lattice, block)
            for window in plan_windows(lattice, item)
        }

    assert windows(one) == windows(other)


@settings(deadline=None, max_examples=50)
@given(lattices(), st.integers(1, 150))
def test_origins_and_sides_are_multiples_of_the_stride_and_halos_are_whole(lattice: Lattice, block: int) -> None:
    for item in plan_blocks(lattice, block):
        for window in plan_windows(lattice, item):
            for read, core, size in zip(window.read, window.core, lattice.shape, strict=True):
                assert read.start % lattice.stride == 0
                side = read.stop - read.start
                assert side % lattice.stride == 0
                assert side <= lattice.window
                assert side in lattice.sides()
                assert read.start + lattice.halo == core.start
                assert core.stop + lattice.halo <= read.stop
                # Only the edge of the raster cuts a window.
                assert side == lattice.window or core.stop == size


def test_a_small_raster_does_not_cost_a_large_window() -> None:
    lattice = Lattice((100, 40), window=512, halo=64, stride=32)
    (block,) = plan_blocks(lattice, 2048)
    (window,) = plan_windows(lattice, block)
    assert roi_shape(window.read) == (128 + 128, 64 + 128)
    assert Lattice((100, 40), 512, 64, 32, smallest=512).sides() == (512,)


def test_a_block_is_whole_cells_and_at_least_one() -> None:
    lattice = Lattice((1000, 1000), window=256, halo=32, stride=32)
    assert plan_blocks(lattice, 500)[0].shape == (384, 384)
    assert plan_blocks(lattice, 10)[0].shape == (192, 192)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"window": 100, "halo": 50}, "less than half"),
        ({"window": 100, "halo": 0, "stride": 32}, "100 px: a multiple of the network's stride, 32 px"),
        ({"window": 128, "halo": 5, "stride": 32}, "halo of 5 px"),
        ({"window": 128, "halo": 0, "shape": (0, 5)}, "no pixel"),
        ({"window": 128, "halo": 0, "smallest": 256}, "1 to 128 px"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(arguments: dict, said: str) -> None:
    with pytest.raises(TilingError, match=said):
        Lattice(**{"shape": (10, 10), **arguments})


def test_crop_and_block_sizes_are_refused() -> None:
    with pytest.raises(TilingError, match="less than half"):
        crop(64, -1)
    with pytest.raises(TilingError, match="block of 0 px"):
        plan_blocks(Lattice((10, 10), 8, 0), 0)


@settings(deadline=None, max_examples=50)
@given(st.tuples(st.integers(1, 50), st.integers(1, 50)), st.integers(1, 60), st.integers(1, 60))
def test_chunks_cover_every_pixel_once(shape: tuple[int, int], rows: int, cols: int) -> None:
    seen = np.zeros(shape, int)
    for roi in chunks(shape, rows, cols):
        seen[roi] += 1
    assert (seen == 1).all()


def test_regions_that_do_not_meet_have_no_overlap() -> None:
    assert overlap((slice(0, 5), slice(0, 5)), (slice(5, 9), slice(0, 5))) is None
    assert shift((slice(3, 5), slice(0, 2)), (slice(3, 9), slice(-2, 2))) == (slice(0, 2), slice(2, 4))
