"""Laws of post-processing: regions with their margin come out as the whole does, and each step does what it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import label
from skimage.morphology import isotropic_closing, isotropic_opening, remove_small_holes, remove_small_objects
from skimage.restoration import denoise_tv_chambolle

from gimseg.errors import RefinementError
from gimseg.instances import Splitter
from gimseg.morphology import disk, filled, majority, without_small
from gimseg.probability_filters import bell, bilateral, mean_field, total_variation
from gimseg.refinement import STEPS, Ground, Refinement
from gimseg.tracing import trace

PIXEL = (0.5, 0.5)
CHAINS = (
    "tv(0.1, iterations=12)",
    "guided(1 m)",
    "bilateral(1.5 m, 0.5)",
    "crf(1 m, 0.5, iterations=3)",
    "hysteresis(0.4, 0.7, reach=4 m)",
    "open(1 m)",
    "close(1.5 m)",
    "majority(1 m)",
    "drop(3 m2)",
    "fill(3 m2)",
    "watershed(6 m)",
    "tv(0.05, iterations=5), guided(2 px), bilateral(2 px), crf(1 px, 1, iterations=2), "
    "hysteresis(0.4, 0.6, reach=2 m), open(1 px), fill(2 m2), drop(2 m2), watershed(5 m)",
)


def drawn(seed: int, channels: int = 1, shape: tuple[int, int] = (150, 90)) -> tuple[np.ndarray, Ground]:
    """Probabilities with structure and noise, and their ground with some invalid pixels."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((channels, shape[0] // 5, shape[1] // 5)).repeat(5, 1).repeat(5, 2)
    planes = np.clip(coarse + rng.normal(0, 0.15, (channels, *shape)), 0, 1).astype(np.float32)
    if channels > 1:
        planes = (planes + np.float32(1e-3)) / (planes + np.float32(1e-3)).sum(0)
    valid = np.ones(shape, bool)
    valid[20:30, 40:70] = False
    valid[rng.random(shape) < 0.01] = False
    return planes, Ground(valid, PIXEL, rng.normal(0, 1, (3, *shape)).astype(np.float32))


def part(ground: Ground, rows: slice) -> Ground:
    return ground._replace(valid=ground.valid[rows], image=ground.image[:, rows])


@pytest.mark.parametrize("text", CHAINS)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_a_region_with_its_margin_comes_out_as_the_whole(text: str, seed: int) -> None:
    chain = Refinement.parse(text)
    planes, ground = drawn(seed)
    whole = chain.apply(planes, ground)
    margin = chain.margin(PIXEL)
    for top in range(0, 150, 50):
        rows = slice(max(0, top - margin), min(150, top + 50 + margin))
        region = chain.apply(planes[:, rows], part(ground, rows))
        np.testing.assert_array_equal(region[top - rows.start :][:50], whole[top : top + 50])


@pytest.mark.parametrize(
    "text", ["tv(0.1, iterations=7)", "guided(1 m)", "bilateral(1.5 m, 0.5)", "crf(1 m, 0.5, iterations=3)"]
)
def test_probabilities_of_a_region_are_those_of_the_whole_to_the_last_bit(text: str) -> None:
    (step,) = Refinement.parse(text).steps
    planes, ground = drawn(11, channels=2)
    whole, margin = step(planes, ground), step.margin(PIXEL)
    for top in (0, 50, 100):
        rows = slice(max(0, top - margin), min(150, top + 50 + margin))
        region = step(planes[:, rows], part(ground, rows))
        np.testing.assert_array_equal(region[:, top - rows.start :][:, :50], whole[:, top : top + 50])


@pytest.mark.parametrize(
    "text",
    ["open(1 m)", "close(1 m)", "majority(1 m)", "drop(3 m2)", "fill(3 m2)", "watershed(9 m)", "tv(0.1)", "crf(1 m)"],
)
def test_several_classes_and_invalid_pixels(text: str) -> None:
    planes, ground = drawn(1, channels=4)
    mask = Refinement.parse(text).apply(planes, ground)
    assert ((mask == 255) == ~ground.valid).all()
    assert set(np.unique(mask)) <= {0, 1, 2, 3, 255}


def test_nothing_to_do_is_the_likeliest_class() -> None:
    planes, ground = drawn(2, channels=3)
    mask = Refinement.parse("").apply(planes, ground)
    assert (mask[ground.valid] == planes.argmax(0)[ground.valid]).all()
    given_ = Refinement().apply(planes, ground, lambda planes: np.full(planes.shape[1:], 7, np.uint8))
    assert (given_[ground.valid] == 7).all()


def test_total_variation_is_that_of_scikit_image() -> None:
    planes, ground = drawn(3)
    everywhere = np.ones_like(ground.valid)
    own = total_variation(planes, everywhere, weight=0.1, iterations=20)
    theirs = denoise_tv_chambolle(planes, weight=0.1, eps=0, max_num_iter=21, channel_axis=0)
    np.testing.assert_allclose(own, theirs, atol=2e-5)


def pulls(image: np.ndarray, valid: np.ndarray, contrast: float, radius: float) -> np.ndarray:
    """How much each pixel weighs for each other one, (pixels, pixels), pair by pair as the formula has it."""
    places = np.argwhere(np.ones(valid.shape, bool)).astype(float)
    apart = ((places[:, None] - places[None]) ** 2).sum(-1)
    colours = image.reshape(len(image), -1).T.astype(float)
    unlike = ((colours[:, None] - colours[None]) ** 2).mean(-1)
    near = np.where(apart <= radius**2, np.exp(-2 * apart / radius**2), 0)
    return near * np.exp(-0.5 * unlike / contrast**2) * valid.ravel()[None]


def test_bilateral_is_the_mean_over_what_is_near_and_alike() -> None:
    planes, ground = drawn(6, channels=2, shape=(15, 20))
    valid = ground.valid.copy()
    valid[4:6, 3:9] = False
    found = bilateral(planes, valid, ground.image, near=bell(3, (1, 1)), contrast=0.7)
    weights = pulls(ground.image, valid, 0.7, 3)
    wanted = (planes.reshape(2, -1) @ weights.T) / np.maximum(weights.sum(1), 1e-9)
    wanted = np.where(valid, wanted.reshape(planes.shape), planes)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_crf_is_mean_field_inference_with_all_pairs_written_out(channels: int) -> None:
    planes, ground = drawn(7, channels=channels, shape=(15, 20))
    valid = ground.valid.copy()
    valid[4:6, 3:9] = False
    found = mean_field(planes, valid, ground.image, near=bell(3, (1, 1)), contrast=0.7, weight=2.0, iterations=4)
    weights = pulls(ground.image, valid, 0.7, 3) * valid.ravel()[:, None]
    np.fill_diagonal(weights, 0)
    scale = 1 / np.sqrt(np.maximum(weights.sum(1), 1e-12))
    weights *= scale[:, None] * scale[None]
    shares = np.concatenate([1 - planes, planes]) if channels == 1 else planes
    given_ = np.clip(shares.reshape(len(shares), -1).astype(float), 1 / 500, 1)
    belief = shares.reshape(len(shares), -1).astype(float)
    for _ in range(4):
        against = np.array([np.delete(belief, own, 0).sum(0) for own in range(len(belief))]) @ weights.T
        powers = given_ * np.exp(-2.0 * against)
        belief = powers / powers.sum(0)
    wanted = np.where(valid, belief.reshape(shares.shape), shares)[-channels:]
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert np.abs(found - planes).max() > 0.2


@pytest.mark.parametrize("text", ["bilateral(3 px, 0.2)", "crf(3 px, 0.2)"])
def test_specks_go_and_edges_of_the_image_stay(text: str) -> None:
    shares = np.full((1, 40, 40), 0.3, np.float32)
    shares[:, :, 21:] = 0.8
    shares[:, 10, 10], shares[:, 10, 30] = 0.9, 0.1
    image = np.zeros((3, 40, 40), np.float32)
    image[:, :, 20:] = 2.0
    ground = Ground(np.ones((40, 40), bool), PIXEL, image)
    found = Refinement.parse(text).apply(shares, ground)
    wanted = np.zeros((40, 40), np.uint8)
    wanted[:, 20:] = 1
    # The probabilities end a pixel beside the edge of the image.
    np.testing.assert_array_equal(found[:, :20], wanted[:, :20])
    np.testing.assert_array_equal(found[:, 21:], wanted[:, 21:])
    assert found[:, 20].all() or text.startswith("bilateral")


def test_invalid_pixels_have_no_say() -> None:
    for text in CHAINS:
        chain = Refinement.parse(text)
        planes, ground = drawn(4)
        other = planes.copy()
        other[:, ~ground.valid] = np.random.default_rng(0).random((1, (~ground.valid).sum()))
        np.testing.assert_array_equal(chain.apply(planes, ground), chain.apply(other, ground))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 30))
def test_area_steps_are_those_of_scikit_image(seed: int, least: int) -> None:
    mask = (np.random.default_rng(seed).random((40, 50)) < 0.5).astype(np.uint8)
    kept = remove_small_objects(mask == 1, max_size=least - 1, connectivity=1)
    np.testing.assert_array_equal(without_small(mask, least) == 1, kept)
    # scikit-image fills holes at the border too: there nobody knows how far they go on.
    framed = np.pad(mask, 1, constant_values=1)
    full = remove_small_holes(framed == 1, max_size=least - 1, connectivity=2)
    np.testing.assert_array_equal(filled(framed, least) == 1, full)


def test_open_and_close_are_those_of_scikit_image_inside() -> None:
    mask, ground = (drawn(5)[0][0] > 0.5).astype(np.uint8), drawn(5)[1]._replace(valid=np.ones((150, 90), bool))
    inside = (slice(8, -8), slice(8, -8))
    for text, theirs in (("open(1 m)", isotropic_opening), ("close(1 m)", isotropic_closing)):
        own = Refinement.parse(text).apply_mask(mask, PIXEL)
        # isotropic morphology takes distances below, and not up to, the radius.
        np.testing.assert_array_equal(own[inside] == 1, theirs(mask, 2.01)[inside], err_msg=text)
    assert ground.valid.all()


def test_objects_are_not_eaten_from_the_border_of_the_raster() -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[:, :2] = 1
    np.testing.assert_array_equal(Refinement.parse("open(1 m)").apply_mask(mask, PIXEL), mask)
    mask[8:10], mask[10:16] = 2, 255
    np.testing.assert_array_equal(Refinement.parse("open(1 m)").apply_mask(mask, PIXEL)[8:16], mask[8:16])
    mask[10:16] = 0
    assert not (Refinement.parse("open(1 m)").apply_mask(mask, PIXEL)[:, 2:-2] == 2).any()


def test_a_hole_gets_the_class_around_it_and_a_bay_stays() -> None:
    mask = np.full((12, 12), 3, np.uint8)
    mask[3:5, 3:5] = 0
    mask[8:10, :2] = 0
    found = Refinement.parse("fill(1 m2)").apply_mask(mask, PIXEL)
    assert (found[3:5, 3:5] == 0).all(), "4 px are 1 m², and only smaller holes are filled"
    found = Refinement.parse("fill(1.1 m2)").apply_mask(mask, PIXEL)
    assert (found[3:5, 3:5] == 3).all()
    assert (found[8:10, :2] == 0).all()


def test_majority_takes_what_most_have() -> None:
    mask = np.ones((9, 9), np.uint8)
    mask[4, 4] = 2
    mask[0, 0] = 255
    found = majority(mask, disk(1.0, PIXEL))
    assert found[4, 4] == 1
    assert found[0, 0] == 255


@pytest.mark.parametrize("side", [1, 3])
@pytest.mark.parametrize("across", [False, True])
def test_watershed_parts_where_instances_are_split(side: int, across: bool) -> None:
    rows, cols = np.indices((120, 160))
    crowns = [np.hypot(rows - 60, cols - col) < radius for col, radius in ((40, 22), (80, 24), (130, 20))]
    mask = np.where(crowns[2], 2, crowns[0] | crowns[1]).astype(np.uint8)
    mask = np.kron(mask.T if across else mask, np.ones((side, side), np.uint8))
    found = Refinement.parse("watershed(50 m)").apply_mask(mask, (0.5 / side, 0.5 / side))
    pieces = [traced.polygons for traced in Splitter((1, 1)).stream(trace([mask]))]
    assert label(found, connectivity=1, return_num=True)[1] == sum(map(len, pieces)) == 3
    cut = found != mask
    assert not found[cut].any() and 0 < cut.sum() < 40 * side, "a line of background and nothing else"
    together = Refinement.parse("watershed(40 m)").apply_mask(mask, (0.5 / side, 0.5 / side))
    np.testing.assert_array_equal(together, mask, err_msg="longer than 40 m")


def test_watershed_measures_on_the_ground_and_sees_no_neck_where_nothing_is_known() -> None:
    rows, cols = np.indices((120, 160))
    mask = ((np.hypot(rows - 60, cols - 40) < 22) | (np.hypot(rows - 60, cols - 80) < 24)).astype(np.uint8)
    flat, tall = np.repeat(mask, 2, axis=1), np.repeat(mask, 2, axis=0)
    for wide, pixel in ((flat, (1.0, 0.5)), (tall, (0.5, 1.0))):
        np.testing.assert_array_equal(Refinement.parse("watershed(80 m)").apply_mask(wide, pixel), wide)
        assert (Refinement.parse("watershed(90 m)").apply_mask(wide, pixel) != wide).any()
    plain = np.zeros((40, 80), np.uint8)
    plain[5:35, 5:75], plain[5:27, 38:42] = 1, 255
    np.testing.assert_array_equal(Refinement.parse("watershed(90 m)").apply_mask(plain, (1, 1)), plain)
    # Nor is the border of the raster an outline: what it cuts is as wide there as it seems.
    arch = np.zeros((30, 60), np.uint8)
    arch[:20, 8:28], arch[:20, 32:52], arch[:12, 28:32] = 1, 1, 1
    np.testing.assert_array_equal(Refinement.parse("watershed(90 m)").apply_mask(arch, (1, 1)), arch)
    moved = np.roll(arch, 5, axis=0)
    assert (Refinement.parse("watershed(90 m)").apply_mask(moved, (1, 1)) != moved).any()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_watershed_takes_pixels_from_necks_and_no_object_away(seed: int) -> None:
    planes, ground = drawn(seed)
    mask = Refinement.parse("open(1 m)").apply(planes, ground)
    found = Refinement.parse("watershed(100 m)").apply_mask(mask, PIXEL)
    assert ((found == mask) | ((found == 0) & (mask == 1))).all()
    before, count = label(mask == 1, connectivity=1, return_num=True)
    assert len(np.unique(before[found == 1])) == count
    again = Refinement.parse("watershed(100 m)").apply_mask(found, PIXEL)
    assert (again != found).sum() <= (found != mask).sum()


@pytest.mark.parametrize("text", CHAINS)
def test_a_chain_reads_back_from_how_it_is_written(text: str) -> None:
    chain = Refinement.parse(text)
    assert Refinement.parse(str(chain)) == chain


def test_every_step_is_in_the_chains_above_and_in_the_documentation() -> None:
    import gimseg.refinement

    for name in STEPS:
        assert any(f"{name}(" in text for text in CHAINS)
        assert f"``{name}(" in (gimseg.refinement.__doc__ or "")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("blur(3)", "unknown"),
        ("open", "not understood"),
        ("open()", "radius is missing"),
        ("open(1 m2)", "m or px"),
        ("open(-1 m)", "above 0"),
        ("open(1 m, 2 m)", "each once"),
        ("fill(4 m)", "m2 or px"),
        ("open(1 m), tv(0.1)", "come first"),
        ("hysteresis(0.3, 0.5), hysteresis(0.3, 0.5)", "once"),
        ("tv(1.2.3)", "above 0"),
    ],
)
def test_wrong_chains_are_refused(text: str, told: str) -> None:
    with pytest.raises(RefinementError, match=told):
        Refinement.parse(text)


def test_what_a_mask_cannot_have_is_refused() -> None:
    with pytest.raises(RefinementError, match="need probabilities"):
        Refinement.parse("tv(0.1)").apply_mask(np.zeros((3, 3), np.uint8), PIXEL)
    planes, ground = drawn(0, channels=3)
    with pytest.raises(RefinementError, match="one class"):
        Refinement.parse("hysteresis(0.3, 0.5)").apply(planes, ground)
    for text in ("guided(1 m)", "bilateral(1 m)", "crf(1 m)"):
        with pytest.raises(RefinementError, match="image"):
            Refinement.parse(text).apply(planes, ground._replace(image=None))
