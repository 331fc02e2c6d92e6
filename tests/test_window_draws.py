"""Laws of what is drawn: classes, rasters, empty and hard windows, points, folds, leakage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import geopandas
import numpy as np
import pytest
import torch
from odc.geo.geobox import GeoBox
from shapely.geometry import Point, box
from worlds import TOP_LEFT, UTM, noise, north_up, write_raster

from gimseg import Dataset, Legend
from gimseg.balance import balanced_weights, class_balance
from gimseg.datasets import Datasets
from gimseg.errors import DatasetError, LossError, TrainingError
from gimseg.folds import take_fold
from gimseg.hardness import Hardness, window_losses
from gimseg.holdouts import hold_out
from gimseg.labelled_scenes import LabelledScene
from gimseg.leakage import overlapping
from gimseg.legend import UNLABELLED
from gimseg.losses import parse_loss
from gimseg.point_labels import with_points
from gimseg.rasters import open_raster
from gimseg.sampling import CELL, Survey, WindowSampler, empty_cells, survey
from gimseg.settings import Settings
from gimseg.training_ground import survey_ground

LEFT, TOP = TOP_LEFT
TWO = Legend.from_dict({"field": "kind", "classes": ["common", "rare"]})


def world(
    folder: Path, tag: str = "a", shapes: dict[str, list] | None = None, side: int = 512, at: float = 0.0, **given
) -> Dataset:
    """Noise of `side` px with polygons of kinds, in metres from the top left corner."""
    image = write_raster(folder / f"{tag}.tif", noise((3, side, side)), transform=north_up(left=LEFT + at))
    drawn = [(kind, polygon) for kind, polygons in (shapes or {}).items() for polygon in polygons]
    layer = folder / f"{tag}.gpkg"
    geopandas.GeoDataFrame(
        {"kind": [kind for kind, _ in drawn]},
        geometry=[box(LEFT + at + x0, TOP - y1, LEFT + at + x1, TOP - y0) for _, (x0, y0, x1, y1) in drawn],
        crs=UTM,
    ).to_file(layer)
    return Dataset(tag, 1.0, [image], [layer], **given)


def surveyed(*datasets: Dataset) -> tuple[Survey, ...]:
    return tuple(survey(scene) for dataset in datasets for scene in dataset.scenes())


COMMON = [(0, 0, 320, 320)]
RARE = [(450, 450, 470, 470)]
SPOTS = [(x, y, x + 12, y + 12) for x in range(10, 480, 40) for y in range(10, 480, 40)]


def labels_at(item: Survey, request, window: int) -> np.ndarray:
    half = window // 2
    roi = (slice(request.row - half, request.row + half), slice(request.col - half, request.col + half))
    return item.scene.read(roi, item.split)[1]


def test_counts_of_classes_add_up(tmp_path: Path) -> None:
    (item,) = surveyed(world(tmp_path, shapes={"common": COMMON, "rare": RARE}, legend=TWO))
    assert [int(plane.sum()) for plane in item.by_class] == [320 * 320, 400] == item.counts[1:3].tolist()
    (balance,) = class_balance([item], 64)
    assert balance.pixels == (512 * 512 - 320 * 320 - 400, 320 * 320, 400)
    assert sum(balance.shares) == pytest.approx(1)
    assert np.ptp(np.multiply(balance.pixels, balance.weights)) < 1e-6 * max(balance.pixels)


def test_a_class_that_is_not_there_has_a_finite_weight() -> None:
    assert balanced_weights([10, 0]) == (1.0, 1.0)
    assert balanced_weights([0, 0]) == (1.0, 1.0)


@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_a_rare_class_is_drawn_as_often_as_it_is_weighted(tmp_path: Path, balance: float) -> None:
    (item,) = surveyed(world(tmp_path, shapes={"common": COMMON, "rare": RARE}, legend=TWO))
    requests = WindowSampler((item,), 32, 1.0, class_balance=balance).draw(600, 0)
    rare = np.mean([request.row > 400 for request in requests])
    cells = (item.by_class[1] > 0).sum() / (item.by_class > 0).sum()
    assert rare == pytest.approx(0.5 if balance else cells, abs=0.07)


def test_balance_by_raster_draws_from_rasters_alike(tmp_path: Path) -> None:
    small, large = (world(tmp_path, tag, {"x": [(0, 0, 32, 32)]}, side) for tag, side in (("s", 64), ("l", 512)))
    both = replace(small, image_paths=[*small.images, *large.images], mask_paths=[*small.masks, *large.masks])
    for by, expected in (("raster", 0.5), ("dataset", 64**2 / (64**2 + 512**2))):
        sampler = WindowSampler(surveyed(both), 32, 0.0, 1.0, by)
        assert np.mean([request.scene == 0 for request in sampler.draw(600, 1)]) == pytest.approx(expected, abs=0.07)


def test_a_dataset_is_drawn_as_often_as_its_weight_says(tmp_path: Path) -> None:
    items = surveyed(world(tmp_path, "a", weight=3.0), world(tmp_path, "b"))
    drawn = WindowSampler(items, 32, 0.0, 1.0).draw(800, 2)
    assert np.mean([request.scene == 0 for request in drawn]) == pytest.approx(0.75, abs=0.05)
    with pytest.raises(DatasetError, match="weight is 0"):
        world(tmp_path, "a", weight=0)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_as_many_windows_are_empty_as_asked_for(tmp_path: Path, share: float) -> None:
    spots = [(x, y, x + 9, y + 9) for x in range(40, 240, 80) for y in range(40, 500, 80)]
    (item,) = surveyed(world(tmp_path, shapes={"x": spots}))
    window = 64
    requests = WindowSampler((item,), window, 0.5, empty_share=share).draw(400, 3)
    empty = [not (labels_at(item, request, window) == 1).any() for request in requests]
    near = np.array([request.col < 230 for request in requests])
    assert np.mean(~near & empty) >= share - 0.08
    if share == 1:
        assert all(empty)
    if share == 0:
        # The others come from cells beside objects, so that few miss them.
        assert np.mean(empty) < 0.4


def test_cells_called_empty_are_empty_at_every_pixel(tmp_path: Path) -> None:
    (item,) = surveyed(world(tmp_path, shapes={"x": [(100, 100, 140, 130), (480, 5, 500, 20)]}, side=500))
    window, truth = 96, item.scene.read_labels((slice(0, 500), slice(0, 500)))
    for row, col in np.argwhere(empty_cells(item, window)):
        for y in (row * CELL, row * CELL + CELL - 1):
            for x in (col * CELL, col * CELL + CELL - 1):
                top, left = (min(max(centre - window // 2, 0), 500 - window) for centre in (y, x))
                assert not (truth[top : top + window, left : left + window] == 1).any()
    assert empty_cells(item, window).any()
    with pytest.raises(DatasetError, match="every window of 500 px holds an object"):
        WindowSampler((item,), 500, empty_share=0.5)


def test_hard_ground_is_drawn_more_often_and_survives_a_checkpoint(tmp_path: Path) -> None:
    (item,) = surveyed(world(tmp_path))
    sampler = WindowSampler((item,), 64, 0.0, hard_share=0.8)
    assert sampler.draw(20, 0, Hardness.unknown((item,), 64).weights()) == sampler.draw(20, 0)
    hardness = Hardness.unknown((item,), 64)
    for epoch in range(3):
        requests = sampler.draw(100, epoch, hardness.weights())
        hardness = hardness.after(requests, [9.0 if request.col > 384 else 0.1 for request in requests])
    kept = Hardness.from_tensors([tensor.clone() for tensor in hardness.to_tensors()], 64)
    drawn = sampler.draw(300, 9, kept.weights())
    assert drawn == sampler.draw(300, 9, hardness.weights())
    assert np.mean([request.col > 352 for request in drawn]) > 0.6
    assert np.array_equal(hardness.after(drawn[:1], [float("nan")]).weights()[0], hardness.weights()[0])


def test_the_loss_of_a_window_is_that_of_the_window_alone() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 1, 8, 8), torch.randint(0, 2, (3, 8, 8))
    labels[1, :4] = 255
    labels[2] = 255
    found = window_losses(logits, labels)
    for number in (0, 1):
        alone = parse_loss("ce")(logits[number : number + 1], labels[number : number + 1])
        assert float(found[number]) == pytest.approx(float(alone), rel=1e-6)
    assert found[2].isnan()


def test_auto_weights_are_those_of_the_pixels() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(1, 1, 16, 16), (torch.rand(1, 16, 16) < 0.1).long()
    pixels = [int((labels == value).sum()) for value in (0, 1)]
    auto = parse_loss("ce(class_weights=auto) + dice")
    assert parse_loss(str(auto)) == auto
    given = parse_loss(f"ce(class_weights=[1, {pixels[0] / pixels[1]}]) + dice")
    assert float(auto.balanced(pixels)(logits, labels)) == pytest.approx(float(given(logits, labels)), rel=1e-5)
    with pytest.raises(LossError, match="not known"):
        auto(logits, labels)
    with pytest.raises(LossError, match="is for one class"):
        parse_loss("bce(pos_weight=auto)").balanced([1, 2, 3])
    with pytest.raises(LossError):
        parse_loss("focal(exponent=auto)")


@pytest.mark.parametrize("by", ["uniform", "class"])
def test_points_are_as_many_as_asked_for_and_true(tmp_path: Path, by: str) -> None:
    (scene,) = world(tmp_path, shapes={"common": COMMON, "rare": RARE}, legend=TWO).scenes()
    thin = with_points(scene, None, 50, side=128, by=by, seed=1)
    whole = (slice(0, 512), slice(0, 512))
    dense, labels = scene.read_labels(whole), thin.read_labels(whole)
    known = labels != UNLABELLED
    assert known.sum() == 50 * 16 and np.array_equal(labels[known], dense[known])
    corner = labels[384:, 384:]
    assert [(corner == value).sum() for value in (0, 2)] == [25, 25] if by == "class" else (corner == 2).sum() < 10
    assert np.array_equal(with_points(scene, None, 50, side=128, by=by, seed=1).read_labels(whole), labels)
    assert not np.array_equal(with_points(scene, None, 50, side=128, by=by, seed=2).read_labels(whole), labels)
    assert np.array_equal(thin.in_memory().read_labels(whole), labels)
    zoomed = thin.read_on(thin.geobox[:64, :64].zoom_out(0.5), None)[1]
    assert np.array_equal(np.argwhere(zoomed != UNLABELLED) // 2, np.argwhere(labels[:64, :64] != UNLABELLED))


def test_ground_to_score_on_stays_dense(tmp_path: Path) -> None:
    items = surveyed(world(tmp_path, shapes={"x": COMMON}))
    (scene,) = hold_out(items, 0.3)
    thin, whole = with_points(scene, "train", 20, side=128), (slice(0, 512), slice(0, 512))
    assert np.array_equal(thin.read_labels(whole, "val"), scene.read_labels(whole, "val"))
    known = thin.read_labels(whole, "train") != UNLABELLED
    assert 0 < known.sum() < 20 * 16 and not (known & (scene.read_labels(whole, "train") == UNLABELLED)).any()


def test_each_site_is_validated_once_over_all_folds(tmp_path: Path) -> None:
    sites = Datasets(tuple(world(tmp_path, tag, at=1000.0 * number) for number, tag in enumerate("abcde")))
    sites = sites + world(tmp_path, "t", at=9000.0, split="test")
    folds = [take_fold(sites, f"{number}/3", seed=4) for number in (1, 2, 3)]
    held = [item.tag for fold in folds for item in fold if item.split == "val"]
    assert sorted(held) == list("abcde")
    assert all(item.split == "test" for fold in folds for item in fold if item.tag == "t")
    assert all(item.split in ("train", "val", "test") for fold in folds for item in fold)
    assert take_fold(sites, "1/3", seed=4) == folds[0]
    with pytest.raises(DatasetError, match="needed is one a fold, 6"):
        take_fold(sites, "1/6")
    for wrong in ("0/3", "4/3", "1", "1/1", "a/b"):
        with pytest.raises(TrainingError, match="as 1/5"):
            take_fold(sites, wrong)


@pytest.mark.parametrize("other", ["val", "test", None])
def test_overlapping_ground_in_two_splits_is_refused_with_both_names(tmp_path: Path, other: str | None) -> None:
    train, val = world(tmp_path, "a", split="train" if other else "val"), world(tmp_path, "b", at=400.0, split=other)
    with pytest.raises(
        DatasetError, match=r"a\.tif \((train|val)\) and .*b\.tif \((train|val|test)\) overlap in 21\.9%"
    ):
        (train + val).scenes()
    (train + replace(val, split=train.split)).scenes()
    (train + world(tmp_path, "c", at=512.0, split=other)).scenes()


def test_areas_of_two_splits_that_overlap_are_refused(tmp_path: Path) -> None:
    given = world(tmp_path, "a", shapes={"x": COMMON})
    for right, refused in ((300, True), (256, False)):
        areas = [box(LEFT, TOP - 512, LEFT + right, TOP), box(LEFT + 256, TOP - 512, LEFT + 512, TOP)]
        path = tmp_path / f"aoi{right}.gpkg"
        geopandas.GeoDataFrame({"use": ["train", "val"]}, geometry=areas, crs=UTM).to_file(path)
        divided = Datasets((replace(given, aoi_paths=[path], split="use"),))
        if refused:
            with pytest.raises(DatasetError, match=r"\(train\) and .*\(val\) overlap"):
                divided.scenes()
        else:
            divided.scenes()


@pytest.mark.parametrize("tags", [("a", "a"), ("a", "b")])
def test_blocks_held_out_are_held_out_of_every_raster_that_shows_them(tmp_path: Path, tags: tuple[str, str]) -> None:
    one, other = (
        world(tmp_path, f"{tag}{number}", {"x": SPOTS}, at=130.0 * number).scenes()[0]
        for number, tag in enumerate(tags)
    )
    scenes = [replace(scene, tag=tag) for scene, tag in zip((one, other), tags, strict=True)]
    first, second = hold_out([survey(scene) for scene in scenes], 0.3)
    whole = (slice(0, 512), slice(0, 512))
    ground = np.full((2, 512, 642), False)
    ground[0, :, :512] = first.read_labels(whole, "train") != UNLABELLED
    ground[1, :, 130:] = second.read_labels(whole, "val") != UNLABELLED
    assert ground[0].any() and ground[1].any() and not (ground[0] & ground[1]).any()


def cut(given: Dataset, left: float, right: float) -> Dataset:
    """The dataset with an AoI between two distances from the left, m, that reaches above and below its raster."""
    path = Path(given.images[0]).with_name(f"{given.tag}_{left:.0f}_{right:.0f}.gpkg")
    area = box(LEFT + left, TOP - 600, LEFT + right, TOP + 100)
    geopandas.GeoDataFrame(geometry=[area], crs=UTM).to_crs("EPSG:4326").to_file(path)
    return replace(given, aoi_paths=[path])


@pytest.mark.parametrize("other", ["val", None])
def test_overlapping_rasters_may_be_cut_apart_by_aois(tmp_path: Path, other: str | None) -> None:
    """As the error advises; only ground inside the AoIs is learned from and scored on."""
    one = world(tmp_path, "a", {"x": COMMON}, split="train" if other else "val")
    two = world(tmp_path, "b", {"x": COMMON}, at=400.0, split=other)
    with pytest.raises(DatasetError, match=r"overlap in 21\.9%.*cut one of them with aoi_paths"):
        (one + two).scenes()
    (cut(one, 0, 400) + two).scenes()
    (one + cut(two, 512, 900)).scenes()
    (cut(one, 0, 450) + cut(two, 450, 900)).scenes()
    # AoIs that lie in both rasters overlap there, whatever they share outside.
    with pytest.raises(DatasetError, match=r"overlap in 20\.0% of the smaller"):
        (cut(one, -500, 450) + cut(two, 430, 530)).scenes()
    # A raster that no AoI meets has no ground at all.
    (cut(one, 2000, 2100) + two).scenes()


def in_crs(given: Dataset, crs: str, pixel: float = 1.0, **other) -> Dataset:
    """A dataset of one raster on the same ground in another CRS, its pixels so large in it."""
    image = Path(given.images[0])
    grid = open_raster(str(image)).geobox.to_crs(crs, resolution=pixel)
    copy = image.with_name(f"{image.stem}_there.tif")
    write_raster(copy, noise((3, *grid.shape), seed=7), crs=crs, transform=grid.affine)
    return replace(given, tag=f"{given.tag}_there", image_paths=[copy], **other)


def val_learned_from(scored: LabelledScene, taught: LabelledScene) -> tuple[int, int]:
    """Labelled validation pixels of one scene whose centre the other one shows, and how many of them it learns from."""
    planes = [
        scene.read_labels((slice(0, scene.shape[0]), slice(0, scene.shape[1])), split) != UNLABELLED
        for scene, split in ((scored, "val"), (taught, "train"))
    ]
    cells = np.argwhere(planes[0])[:, ::-1].T + 0.5
    x, y = scored.geobox.crs.transformer_to_crs(taught.geobox.crs)(*(scored.geobox.affine * cells))
    cols, rows = np.floor(~taught.geobox.affine * (x, y)).astype(int)
    shown = (rows >= 0) & (rows < taught.shape[0]) & (cols >= 0) & (cols < taught.shape[1])
    return int(shown.sum()), int(planes[1][rows[shown], cols[shown]].sum())


@pytest.mark.parametrize(
    ("crs", "pixel", "resolution"),
    [("EPSG:32632", 1.0, 1.0), ("EPSG:32632", 1.0, 3.0), ("EPSG:3857", 1.4, 1.0), ("EPSG:4326", 1e-5, 1.0)],
)
def test_blocks_held_out_are_held_out_of_rasters_in_another_crs(
    tmp_path: Path, crs: str, pixel: float, resolution: float
) -> None:
    here = world(tmp_path, "a", {"x": SPOTS})
    there = in_crs(here, crs, pixel, spatial_resolution=resolution)
    scenes = tuple(given.scenes()[0] for given in (here, there, world(tmp_path, "far", at=3e4)))
    one, other, far = hold_out([survey(scene) for scene in scenes], 0.3)
    for scored, taught in ((one, other), (other, one)):
        pixels, leaked = val_learned_from(scored, taught)
        assert pixels > 5000 and leaked == 0
        whole = (slice(0, taught.shape[0]), slice(0, taught.shape[1]))
        assert (taught.read_labels(whole, "train") != UNLABELLED).mean() > 0.1
    # What shows other ground is divided as it would be alone.
    assert far.holdout == hold_out([survey(scenes[2])], 0.3)[0].holdout


def test_what_a_third_raster_holds_out_is_held_out_of_both_that_it_overlaps(tmp_path: Path) -> None:
    """Blocks reach over the edge of the raster that drew them: there, the other two must agree."""
    left, right = (world(tmp_path, tag, {"x": SPOTS}, at=512.0 * number) for number, tag in enumerate("ab"))
    middle = in_crs(world(tmp_path, "c", {"x": SPOTS}, at=256.0), "EPSG:32632")
    scenes = hold_out([survey(scene) for given in (left, right, middle) for scene in given.scenes()], 0.3)
    for scored in scenes:
        assert [val_learned_from(scored, taught)[1] for taught in scenes] == [0, 0, 0]


@pytest.mark.parametrize("crs", [UTM, "EPSG:32632"])
def test_what_is_held_out_is_not_learned_from_another_dataset_of_the_split_train(tmp_path: Path, crs: str) -> None:
    free, layer = world(tmp_path, "a", {"x": SPOTS}), tmp_path / "areas.gpkg"
    areas = [box(LEFT, TOP - 512, LEFT + 512, TOP - 40), box(LEFT - 900, TOP - 512, LEFT - 60, TOP)]
    geopandas.GeoDataFrame({"use": ["train", "test"]}, geometry=areas, crs=UTM).to_file(layer)
    taught = replace(in_crs(free, crs), split="train")
    divided = replace(in_crs(world(tmp_path, "b", {"x": SPOTS}, at=-200.0), crs), aoi_paths=[layer], split="use")
    ground = survey_ground(free + taught + divided, Settings(val_share=0.3))
    (val,) = ground.val
    assert [item.scene.tag for item in ground.train] == ["a", "a_there", "b_there"]
    for item in ground.train:
        pixels, leaked = val_learned_from(val.scene, item.scene)
        assert pixels > 1000 and leaked == 0 and item.labelled.any()
    beside = ground.train[2].scene
    whole = (slice(0, beside.shape[0]), slice(0, beside.shape[1]))
    assert beside.splits == {"train", "test"} and (beside.read_labels(whole, "test") != UNLABELLED).sum() > 10_000


def test_ground_in_two_splits_is_refused_whatever_the_crs(tmp_path: Path) -> None:
    train = world(tmp_path, "a", split="train")
    val = replace(in_crs(train, "EPSG:32632"), split="val")
    with pytest.raises(DatasetError, match=r"a\.tif \(train\) and .*a_there\.tif \(val\) overlap in"):
        (train + val).scenes()
    beside = replace(in_crs(world(tmp_path, "b", at=600.0), "EPSG:32632"), split="val")
    (train + beside).scenes()
    (train + replace(val, split="train")).scenes()


def grid_of(crs: str | None, left: float, bottom: float, side: float) -> SimpleNamespace:
    """What :func:`overlapping` looks at."""
    return SimpleNamespace(
        geobox=GeoBox.from_bbox((left, bottom, left + side, bottom + side), crs, shape=(10, 10), tight=True)
    )


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        # An edge of 600 km on the parallel of 60 degrees: it leaves it by 12 km.
        (("EPSG:32632", 200_000, 6_051_400, 600_000), ("EPSG:4326", 8.9, 59.95, 0.2), True),
        (("EPSG:32632", 200_000, 6_652_000, 600_000), ("EPSG:4326", 8.9, 59.75, 0.2), False),
        # Across the line where 180 degrees east are 180 west.
        (("EPSG:32660", 800_000, 0, 100_000), ("EPSG:32633", 400_000, 0, 100_000), False),
        (("EPSG:32660", 800_000, 0, 100_000), ("EPSG:32601", 130_000, 0, 100_000), True),
        (("EPSG:32660", 800_000, 0, 100_000), ("EPSG:4326", -179.9, 0, 1), True),
        # Around a pole, and beside it.
        (("EPSG:3031", -1e6, -1e6, 2e6), ("EPSG:4326", 30, -89, 1), True),
        (("EPSG:3031", -1e6, -1e6, 2e6), ("EPSG:4326", 30, -60, 1), False),
        (("EPSG:3857", -20_037_508, -20_037_508, 40_075_016), ("EPSG:32633", 500_000, 5_000_000, 100), True),
        # Without a CRS ground is not known to be the same.
        ((None, 500_000, 5_000_000, 100), ("EPSG:32633", 500_000, 5_000_000, 100), False),
        ((None, 500_000, 5_000_000, 100), (None, 500_050, 5_000_000, 100), True),
    ],
)
def test_footprints_meet_on_the_ground(one: tuple, other: tuple, meet: bool) -> None:
    grids = [grid_of(*one), grid_of(*other)]
    assert overlapping(grids) == overlapping(grids[::-1]) == ([(0, 1)] if meet else [])


def test_points_in_a_layer_teach_without_polygons(tmp_path: Path) -> None:
    given = world(tmp_path)
    points = [Point(LEFT + x + 0.5, TOP - 40.5) for x in (10, 20, 30)]
    layer = tmp_path / "points.gpkg"
    geopandas.GeoDataFrame({"kind": ["common", "rare", "common"]}, geometry=points, crs=UTM).to_file(layer)
    (scene,) = replace(given, mask_paths=[layer], legend=TWO).scenes()
    labels = scene.read_labels((slice(0, 64), slice(0, 64)))
    assert labels[40, [10, 20, 30]].tolist() == [1, 2, 1] and (labels != UNLABELLED).sum() == 3
