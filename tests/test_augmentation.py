"""Laws of a draw: image and labels stay together, only the image changes colour."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gimseg.augmentation import Augmentation, Draw
from gimseg.colours import Colour
from gimseg.errors import DatasetError

STRONG = Augmentation(
    scale=(0.5, 2.0),
    rotation=180,
    contrast=0.7,
    brightness=1,
    band_contrast=0.5,
    band_brightness=0.5,
    noise=0.2,
    noisy=1,
    aspect=0.3,
    hue=90,
    sharpening=2,
    coarseness=4,
    levelled=0.5,
)
seeds = st.integers(0, 2**32 - 1)


def scene(rows: int, cols: int, bands: int = 3, *, holes: bool = True, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Smooth classes 0, 1, 2 in large patches, an image of them, and a corner without data."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:rows, :cols] / 12
    phase = rng.uniform(0, 6, 2)
    labels = torch.from_numpy((1.5 + 1.49 * np.sin(x + phase[0]) * np.cos(y + phase[1])).astype(np.uint8))
    image = torch.rand(bands, rows, cols, generator=torch.Generator().manual_seed(seed)) * 200
    valid = torch.ones(rows, cols, dtype=torch.bool)
    if holes:
        valid[: rows // 4, : cols // 3] = False
    return torch.where(valid, image, 0), valid, labels


def drawn(augmentation: Augmentation, seed: int) -> Draw:
    return augmentation.draw(np.random.default_rng(seed))


@settings(max_examples=60, deadline=None)
@given(seeds, st.booleans(), st.booleans())
def test_image_and_labels_move_together(seed: int, turned_freely: bool, holes: bool) -> None:
    """The labels are put into the image; after any draw both still say the same, but for mixed pixels at edges."""
    draw = drawn(Augmentation.geometry_only(scale=(0.5, 2), rotation=180 if turned_freely else 0, aspect=0.2), seed)
    size = (70, 58)
    _, valid, labels = scene(*draw.read_shape(size), holes=holes, seed=seed)
    image = torch.where(valid, 10.0 * labels, -1e6)[None]
    image, valid, labels = draw.apply(image, valid, labels, size=size)
    assert image.shape == (1, *size) and valid.shape == labels.shape == size
    wrong = (image[0] - 10.0 * labels).abs()[valid]
    # A nearest neighbour and an interpolation on the same pixel centres differ by a class at edges alone.
    assert (wrong < 1).float().mean() > 0.8
    assert (wrong <= 10.5).all()
    assert (image[0][~valid] == 0).all()


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from([0.55, 0.77, 1.3, 2.0]), st.booleans())
def test_nothing_shifts(seed: int, zoom: float, turned_freely: bool) -> None:
    """Where the image's centre of mass goes, the labels' goes: half a pixel off would show.

    At a zoom of exactly 1/2 four pixels are equally near: labels then go by a quarter of a pixel.
    """
    draw = Draw(zoom=zoom, quarter_turns=seed % 4, mirrored=seed % 3 == 0, angle=seed % 360 if turned_freely else 0)
    rows, cols = draw.read_shape((96, 96))
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
    labels = ((y - 0.45 * rows) ** 2 + (x - 0.55 * cols) ** 2 < (0.2 * rows) ** 2).to(torch.uint8)
    image, _, labels = draw.apply(labels.float()[None], torch.ones(rows, cols, dtype=torch.bool), labels, size=(96, 96))
    places = torch.stack(torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij"))
    disc = (labels == 1).float()
    off = (places * disc).sum((1, 2)) / disc.sum() - (places * image).sum((1, 2)) / image.sum()
    assert off.abs().max() < 0.25


def test_an_angle_turns_anticlockwise_like_quarter_turns() -> None:
    image, valid, labels = scene(41, 41, holes=False)
    by_quarters = Draw(quarter_turns=1).apply(image, valid, labels)
    by_angle = Draw(angle=90.0).apply(image, valid, labels)
    assert torch.equal(by_quarters[2][1:-1, 1:-1], by_angle[2][1:-1, 1:-1])
    torch.testing.assert_close(by_quarters[0][:, 1:-1, 1:-1], by_angle[0][:, 1:-1, 1:-1], atol=0.05, rtol=0)


def test_a_zoom_about_the_centre_with_an_angle_is_that_without() -> None:
    image, valid, labels = scene(40, 40, holes=False)
    _, _, straight = Draw(zoom=2.0).apply(image, valid, labels, size=(80, 80))
    _, _, turned = Draw(zoom=2.0, angle=1e-6).apply(image, valid, labels, size=(80, 80))
    assert (straight == turned).float().mean() > 0.99


def test_what_a_turned_window_does_not_reach_is_invalid_and_unlabelled() -> None:
    image, valid, labels = scene(40, 40, holes=False)
    image, valid, labels = Draw(angle=45.0).apply(image, valid, labels, mean=[5, 6, 7])
    assert not valid[0, 0] and valid[20, 20]
    assert (labels[~valid] == 255).all() and (labels[valid] < 3).all()
    assert image[:, 0, 0].tolist() == [5, 6, 7]


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from([(64, 64), (50, 90)]))
def test_a_turned_window_of_read_shape_fills_the_size(seed: int, size: tuple[int, int]) -> None:
    draw = drawn(Augmentation(scale=(0.5, 2), rotation=180), seed)
    image, valid, labels = scene(*draw.read_shape(size), holes=False)
    _, valid, labels = draw.apply(image, valid, labels, size=size)
    assert valid.all() and (labels < 3).all()


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_colour_never_touches_labels_or_validity(seed: int) -> None:
    draw = drawn(STRONG, seed)
    plain = replace(draw, colour=Colour())
    window = scene(*draw.read_shape((48, 48)))
    coloured = draw.apply(*window, size=(48, 48), mean=[90, 100, 110], std=[50, 60, 70])
    uncoloured = plain.apply(*window, size=(48, 48), mean=[90, 100, 110], std=[50, 60, 70])
    assert torch.equal(coloured[1], uncoloured[1]) and torch.equal(coloured[2], uncoloured[2])
    assert not torch.equal(coloured[0], uncoloured[0])


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_the_same_state_gives_the_same_window_and_inputs_stay(seed: int) -> None:
    assert drawn(STRONG, seed) == drawn(STRONG, seed)
    draw = pickle.loads(pickle.dumps(drawn(STRONG, seed)))
    window = scene(*draw.read_shape((32, 32)))
    before = [plane.clone() for plane in window]
    torch.manual_seed(1)
    first = draw.apply(*window, size=(32, 32))
    torch.manual_seed(2)
    second = draw.apply(*window, size=(32, 32))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, window, strict=True))


def test_draws_differ() -> None:
    rng = np.random.default_rng(0)
    assert len({Augmentation().draw(rng) for _ in range(50)}) == 50


def test_the_identity_changes_nothing() -> None:
    image, valid, labels = scene(33, 47)
    for draw in (Draw(), drawn(Augmentation.none(), 3)):
        assert draw.read_shape((33, 47)) == (33, 47)
        same = draw.apply(image, valid, labels, mean=[0, 0, 0], std=[3, 4, 5])
        assert all(torch.equal(a, b) for a, b in zip(same, (image, valid, labels), strict=True))


def test_flips_and_right_angles_are_the_square_symmetries_each_as_often() -> None:
    rng = np.random.default_rng(0)
    seen = [(d.mirrored, d.quarter_turns) for d in (Augmentation().draw(rng) for _ in range(1600))]
    assert len(set(seen)) == 8
    assert all(140 < seen.count(outcome) < 260 for outcome in set(seen))
    flips = [Augmentation(right_angles=False).draw(rng) for _ in range(200)]
    assert {(d.mirrored, d.quarter_turns) for d in flips} == {(False, 0), (False, 2), (True, 0), (True, 2)}
    turns = [Augmentation(flips=False).draw(rng) for _ in range(200)]
    assert {(d.mirrored, d.quarter_turns) for d in turns} == {(False, 0), (False, 1), (False, 2), (False, 3)}
    image, valid, labels = scene(8, 8, holes=False)
    images = [Draw(mirrored, quarter).apply(image, valid, labels)[0] for mirrored, quarter in set(seen)]
    assert len({tuple(each.flatten().tolist()) for each in images}) == 8
    assert all(torch.equal(each.flatten().sort()[0], image.flatten().sort()[0]) for each in images)


def test_a_quarter_turn_exchanges_rows_and_columns() -> None:
    draw = Draw(quarter_turns=1)
    assert draw.read_shape((20, 30)) == (30, 20)
    image, valid, labels = scene(30, 20)
    turned = draw.apply(image, valid, labels, size=(20, 30))
    assert turned[0].shape == (3, 20, 30)
    assert torch.equal(turned[2], torch.rot90(labels))


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 10])
def test_any_number_of_bands(bands: int) -> None:
    for seed in range(5):
        draw = drawn(STRONG, seed)
        window = scene(*draw.read_shape((32, 40)), bands)
        image, valid, _ = draw.apply(*window, size=(32, 40), mean=[100] * bands, std=[50] * bands)
        assert image.shape == (bands, 32, 40) and image.dtype == torch.float32 and image.is_contiguous()
        assert image.isfinite().all()
        assert (image[:, ~valid] == 100).all()


def test_invalid_pixels_take_no_part_in_their_neighbours() -> None:
    """Whatever the hole holds, the ground beside it keeps its value."""
    for draw in (Draw(zoom=1.7), Draw(zoom=0.6), Draw(angle=30.0, zoom=1.3)):
        rows, cols = draw.read_shape((60, 60))
        _, valid, labels = scene(rows, cols)
        image = torch.where(valid, 80.0, float("nan")).expand(2, rows, cols)
        image, valid, _ = draw.apply(image, valid, labels, size=(60, 60), mean=[10, 20], std=[5, 5])
        assert 0 < valid.float().mean() < 1
        torch.testing.assert_close(image[:, valid], torch.full_like(image[:, valid], 80.0))
        assert (image[:, ~valid] == torch.tensor([[10.0], [20.0]])).all()


def test_a_zoom_shows_things_larger() -> None:
    labels = torch.zeros(100, 100, dtype=torch.uint8)
    labels[45:55, 45:55] = 1
    valid = torch.ones(100, 100, dtype=torch.bool)
    rows, cols = (slice(25, 75),) * 2
    _, _, larger = Draw(zoom=2.0).apply(
        labels.float()[None, rows, cols], valid[rows, cols], labels[rows, cols], size=(100, 100)
    )
    assert (larger == 1).sum() == 400
    assert Draw(zoom=2.0).read_shape((100, 100)) == (50, 50)


def test_a_stretch_shows_things_wider_and_less_high() -> None:
    labels = torch.zeros(100, 100, dtype=torch.uint8)
    labels[45:55, 45:55] = 1
    draw = Draw(stretch=4.0)
    assert draw.zooms == (0.5, 2.0) and draw.read_shape((50, 200)) == (100, 100)
    _, _, wide = draw.apply(labels.float()[None], labels < 2, labels, size=(50, 200))
    assert (wide == 1).any(1).sum() == 5 and (wide == 1).any(0).sum() == 20
    turned = replace(draw, quarter_turns=1)
    assert turned.read_shape((200, 50)) == (100, 100)
    _, _, high = turned.apply(labels.float()[None], labels < 2, labels, size=(200, 50))
    assert (high == 1).any(1).sum() == 20 and (high == 1).any(0).sum() == 5


def test_without_its_zoom_a_draw_changes_nothing_else() -> None:
    draw = drawn(STRONG, 11)
    assert draw.without_zoom().zooms == (1.0, 1.0)
    assert replace(draw.without_zoom(), zoom=draw.zoom, stretch=draw.stretch) == draw


def test_a_stretched_turn_moves_image_and_labels_alike() -> None:
    """A free turn of a stretched window is the turn of the window that was stretched before."""
    _, valid, labels = scene(120, 120, holes=False)
    smooth = 10.0 * labels.float()[None]
    draw = Draw(angle=30.0, zoom=1.2, stretch=1.5)
    at_once = draw.apply(smooth, valid, labels, size=(60, 60))
    stretched = Draw(zoom=1.2, stretch=1.5).apply(smooth, valid, labels, size=(118, 176))
    in_turn = Draw(angle=30.0).apply(*stretched, size=(60, 60))
    assert (at_once[2] == in_turn[2]).float().mean() > 0.95


@settings(max_examples=30, deadline=None)
@given(st.floats(-180, 180))
def test_a_turn_of_the_hue_keeps_grey_and_contrast(degrees: float) -> None:
    z = torch.randn(3, 9, 9, generator=torch.Generator().manual_seed(1))
    turned = Colour(hue=degrees).apply(z)
    torch.testing.assert_close(turned.mean(0), z.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(turned.norm(dim=0), z.norm(dim=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(Colour(hue=-degrees).apply(turned), z, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(Colour(hue=degrees).apply(z[:2]), z[:2])


def test_a_third_of_a_turn_exchanges_the_bands() -> None:
    z = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(Colour(hue=120.0).apply(z), z.roll(1, 0), rtol=1e-4, atol=1e-5)


def test_coarser_images_keep_their_mean_and_lose_detail() -> None:
    z = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(1))
    spreads = [float(Colour(coarseness=factor).apply(z).std()) for factor in (1.0, 1.5, 2.0, 4.0)]
    assert spreads == sorted(spreads, reverse=True) and spreads[-1] < 0.4
    flat = torch.full((3, 30, 41), 2.5)
    torch.testing.assert_close(Colour(coarseness=3.3).apply(flat), flat)
    draws = [drawn(Augmentation(coarseness=3.0), seed).colour.coarseness for seed in range(200)]
    assert 60 < draws.count(1.0) < 140 and 2.5 < max(draws) <= 3.0


def test_a_levelled_window_does_not_tell_its_light() -> None:
    z = torch.randn(3, 40, 40, generator=torch.Generator().manual_seed(1))
    level = Colour(levelled=True)
    torch.testing.assert_close(level.apply(z * 9 + 4), level.apply(z * 9 - 20))
    assert level.apply(z * 9 + 4).mean((1, 2)).abs().max() < 1e-4
    assert level.apply(z * 9 + 4).std((1, 2)).sub(1).abs().max() < 0.02
    assert level.apply(torch.full((3, 5, 5), 7.0)).abs().max() < 1e-4
    shares = [drawn(Augmentation(levelled=0.3), seed).colour.levelled for seed in range(300)]
    assert 0.2 < sum(shares) / 300 < 0.4


def test_colour_is_in_units_of_the_deviation() -> None:
    """The same draw on reflectances x 10000 and on bytes gives the same picture."""
    draw = Draw(colour=drawn(STRONG, 5).colour)
    image, valid, labels = scene(30, 30)
    bytes_, _, _ = draw.apply(image, valid, labels, mean=[100, 90, 80], std=[50, 40, 30])
    scaled, _, _ = draw.apply(image * 40, valid, labels, mean=[4000, 3600, 3200], std=[2000, 1600, 1200])
    torch.testing.assert_close(scaled / 40, bytes_, rtol=1e-4, atol=1e-2)


def test_each_colour_does_what_it_says() -> None:
    z = torch.linspace(-3, 3, 3 * 8 * 8).reshape(3, 8, 8)[torch.tensor([2, 0, 1])]
    torch.testing.assert_close(Colour(gain=1.5, offset=0.25).apply(z), 1.5 * z + 0.25)
    bent = Colour(bend=0.3).apply(z).flatten()
    assert (bent[z.flatten().argsort()].diff() > 0).all() and bent.min() > -3
    grey = Colour(greyness=1.0).apply(z)
    torch.testing.assert_close(grey, z.mean(0, keepdim=True).expand_as(z))
    torch.testing.assert_close(Colour(greyness=1.0).apply(z[:2]), z[:2])
    noise = Colour(noise=0.5, seed=3).apply(torch.zeros(3, 64, 64))
    assert float(noise.std()) == pytest.approx(0.5, rel=0.05)
    spike = torch.zeros(1, 5, 5)
    spike[0, 2, 2] = 16
    binomial = torch.tensor([1.0, 2, 1])
    torch.testing.assert_close(Colour(softness=1.0).apply(spike)[0, 1:4, 1:4], torch.outer(binomial, binomial))
    assert float(Colour(softness=-0.3).apply(spike)[0, 2, 2]) > 16
    flat = torch.full((2, 1, 6), 3.0)
    torch.testing.assert_close(Colour(softness=0.7).apply(flat), flat)
    cast = Colour(band_contrast=0.2, band_brightness=0.2, seed=1).apply(torch.ones(4, 2, 2))[:, 0, 0]
    assert len(set(cast.tolist())) == 4


def test_switching_one_colour_off_leaves_the_others() -> None:
    with_noise, without = drawn(Augmentation(), 4), drawn(Augmentation(contrast=0, rotation=0), 4)
    assert without.colour.gain == 1 and with_noise.colour.gain != 1
    assert without.colour.offset == with_noise.colour.offset and without.zoom == with_noise.zoom


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: Augmentation(scale=(1.2, 0.8)), "scale is"),
        (lambda: Augmentation(scale=(0.0, 1.0)), "between 0.1 and 10"),
        (lambda: Augmentation(gamma=1.0), "gamma is 1, needed is 0 to 0.9"),
        (lambda: Augmentation(noise=-0.1), "noise is -0.1"),
        (lambda: Augmentation(coarseness=0.5), "coarseness is 0.5, needed is 1 to 8"),
        (lambda: Augmentation(aspect=2.0), "aspect is 2"),
        (lambda: Draw().apply(torch.zeros(3, 4, 4), torch.ones(4, 4).bool(), torch.zeros(4, 5).byte()), r"\(4, 5\)"),
        (lambda: Draw().apply(torch.zeros(3, 4, 4), torch.ones(4, 4), torch.zeros(4, 4).byte()), "bool"),
        (lambda: Draw().apply(*scene(4, 4), mean=[1, 2]), "3 bands.*2"),
    ],
)
def test_wrong_settings_and_shapes_are_refused_with_numbers(wrong, words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        wrong()
