"""Laws of blocks and windows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gimseg.errors import TilingError
from gimseg.tiling import Blocks, Lattice, chunks, crop, overlap, roi_shape, shift


@st.composite
def lattices(draw: st.DrawFn, blend: bool = False) -> Lattice:
    stride = draw(st.sampled_from([1, 2, 4, 8]))
    halo = draw(st.integers(0, 3)) * stride
    cells = [draw(st.integers(1, 6)) * stride + (2 * halo if blend else 0) for _ in range(2)]
    shape = (draw(st.integers(1, 7 * cells[0])), draw(st.integers(1, 7 * cells[1])))
    return Lattice(shape, (2 * halo + cells[0], 2 * halo + cells[1]), halo, stride, blend)


@settings(deadline=None, max_examples=50)
@given(lattices(), st.integers(1, 150), st.integers(1, 150))
def test_blocks_and_their_windows_cover_every_pixel_once(lattice: Lattice, rows: int, cols: int) -> None:
    by_block = np.zeros(lattice.shape, int)
    by_window = np.zeros(lattice.shape, int)
    for item in Blocks.of_side(lattice, rows, cols):
        by_block[item.core] += 1
        for window in lattice.windows_for(item.core):
            by_window[window.core] += 1
            assert overlap(window.core, item.core) == window.core
            assert overlap(window.read, item.read) == window.read
    assert (by_block == 1).all()
    assert (by_window == 1).all()


@settings(deadline=None, max_examples=50)
@given(st.one_of(lattices(), lattices(blend=True)), st.integers(1, 150), st.integers(1, 150))
def test_windows_do_not_depend_on_the_block_size(lattice: Lattice, one: int, other: int) -> None:
    def windows(block: int) -> set:
        return {
            tuple((part.start, part.stop) for part in (*window.read, *window.core))
            for item in Blocks.of_side(lattice, block)
            for window in lattice.windows_for(item.core)
        }

    assert windows(one) == windows(other)
    assert len(windows(one)) == lattice.counts[0] * lattice.counts[1]


@settings(deadline=None, max_examples=50)
@given(lattices())
def test_windows_have_one_size_begin_on_the_stride_and_keep_the_halo_away_from_their_core(lattice: Lattice) -> None:
    for window in lattice.windows_for((slice(0, lattice.shape[0]), slice(0, lattice.shape[1]))):
        assert roi_shape(window.read) == lattice.window
        for read, core, size in zip(window.read, window.core, lattice.shape, strict=True):
            whole = -(-size // lattice.stride) * lattice.stride
            assert read.start >= 0
            assert read.start % lattice.stride == 0
            assert read.stop <= max(whole, read.stop - read.start)
            # Only at the raster's own edge is the border of a window kept.
            assert read.start + lattice.halo <= core.start or read.start == core.start == 0
            assert core.stop + lattice.halo <= read.stop or core.stop == size


@settings(deadline=None, max_examples=50)
@given(lattices(blend=True), st.integers(1, 150))
def test_blended_windows_reach_every_pixel_and_a_block_has_all_that_meet_it(lattice: Lattice, block: int) -> None:
    everywhere = (slice(0, lattice.shape[0]), slice(0, lattice.shape[1]))
    every = list(lattice.windows_for(everywhere))
    for item in Blocks.of_side(lattice, block):
        meeting = [window for window in every if overlap(window.core, item.core)]
        assert list(lattice.windows_for(item.core)) == meeting
        assert all(overlap(window.read, item.read) == window.read for window in meeting)


@settings(deadline=None, max_examples=50)
@given(lattices(), st.integers(1, 150), st.data())
def test_the_blocks_at_a_region_are_those_that_meet_it(lattice: Lattice, block: int, data: st.DataObject) -> None:
    blocks = Blocks.of_side(lattice, block)
    starts = [data.draw(st.integers(0, size - 1)) for size in lattice.shape]
    stops = [data.draw(st.integers(start + 1, size)) for start, size in zip(starts, lattice.shape, strict=True)]
    roi = (slice(starts[0], stops[0]), slice(starts[1], stops[1]))
    assert blocks.at(roi) == [item for item in blocks if overlap(item.core, roi)]
    assert len(blocks) == len(list(blocks))
    assert [blocks[-1]] == blocks[len(blocks) - 1 :]


@settings(deadline=None, max_examples=100)
@given(
    st.tuples(st.integers(1, 4000), st.integers(1, 4000)), st.integers(0, 3), st.integers(1, 20), st.integers(1, 400)
)
def test_fitted_windows_are_fewest_and_no_larger_than_needed(
    shape: tuple[int, int], halo: int, cell: int, smallest: int
) -> None:
    largest = 64 * halo + 32 * cell
    lattice = Lattice.fit(shape, largest, 32 * halo, 32)
    assert lattice.counts == Lattice(shape, (largest, largest), 32 * halo, 32).counts
    assert max(lattice.window) <= largest
    for axis in (0, 1):
        smaller = list(lattice.window)
        smaller[axis] -= 32
        if smaller[axis] > 64 * halo:
            assert Lattice(shape, (smaller[0], smaller[1]), 32 * halo, 32).counts[axis] > lattice.counts[axis]
    padded = Lattice.fit(shape, max(largest, 32 * -(-smallest // 32)), 32 * halo, 32, smallest=smallest)
    assert min(padded.window) >= smallest


def test_a_raster_of_one_window_throws_nothing_away() -> None:
    lattice = Lattice.fit((1000, 500), 1152, halo=80, stride=16)
    (window,) = lattice.windows_for((slice(0, 1000), slice(0, 500)))
    assert window.read == (slice(0, 1008), slice(0, 512))
    assert window.core == (slice(0, 1000), slice(0, 500))
    assert lattice.cost == 1008 * 512 / 500_000
    assert Lattice.fit((10, 10), 1152, halo=80, stride=16).window == (16, 16)


def test_a_block_is_whole_cells_and_at_least_one() -> None:
    lattice = Lattice((1000, 1000), window=(256, 256), halo=32, stride=32)
    assert Blocks.of_side(lattice, 400)[4].shape == (384, 384)
    assert Blocks.of_side(lattice, 200)[6].shape == Blocks.of_side(lattice, 10)[6].shape == (192, 192)
    assert Blocks.of_side(lattice, 200, 2000)[1].shape == (192, 1000)
    with pytest.raises(IndexError):
        Blocks.of_side(lattice, 400)[9]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"window": (100, 200), "halo": 50}, "less than half"),
        ({"window": (64, 100), "halo": 0, "stride": 32}, "100 px: a multiple of the network's stride, 32 px"),
        ({"window": (128, 128), "halo": 5, "stride": 32}, "halo of 5 px"),
        ({"window": (128, 128), "halo": 0, "shape": (0, 5)}, "no pixel"),
        ({"window": (100, 100), "halo": 30, "blend": True}, "100 px that share 60 px: at most half"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(arguments: dict, said: str) -> None:
    with pytest.raises(TilingError, match=said):
        Lattice(**{"shape": (1000, 1000), **arguments})


def test_crop_and_block_sizes_are_refused() -> None:
    with pytest.raises(TilingError, match="less than half"):
        crop(64, -1)
    with pytest.raises(TilingError, match="block of 0 px"):
        Blocks.of_side(Lattice((10, 10), (8, 8), 0), 0)
    with pytest.raises(TilingError, match="0 x 1 cells"):
        Blocks(Lattice((10, 10), (8, 8), 0), (0, 1))


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
