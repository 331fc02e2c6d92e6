"""Laws of datasets: what is labelled, in which split, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import pytest
import torch
from odc.geo.geobox import GeoBox
from shapely.geometry import Point, box
from worlds import TOP_LEFT, UTM, noise, write_raster

from gimseg import Dataset, Legend
from gimseg.augmentation import Augmentation
from gimseg.datasets import Datasets, read_datasets
from gimseg.errors import DatasetError, VectorError
from gimseg.holdouts import hold_out
from gimseg.labelled_scenes import LabelledScene
from gimseg.labelled_windows import Frame, LabelledWindows, WindowRequest, read_as_is
from gimseg.recipes import Recipe
from gimseg.sampling import WindowSampler, band_statistics, covering_windows, survey
from gimseg.training import training_windows

LEFT, TOP = TOP_LEFT


def layer(path: Path, geometries: list, crs: str = UTM, to: str | None = None, **columns: list) -> Path:
    frame = geopandas.GeoDataFrame(columns or {"id": range(len(geometries))}, geometry=geometries, crs=crs)
    (frame.to_crs(to) if to else frame).to_file(path)
    return path


def square(row: int, col: int, side: int) -> object:
    """Polygon over pixels [row, row + side) x [col, col + side) of a 1 m raster."""
    return box(LEFT + col, TOP - row - side, LEFT + col + side, TOP - row)


@pytest.fixture
def world(tmp_path: Path) -> Path:
    write_raster(tmp_path / "image.tif", noise((3, 120, 160)))
    layer(tmp_path / "truth.geojson", [square(10, 20, 30), square(70, 100, 20)], to="EPSG:4326")
    return tmp_path


def dataset(world: Path, **given: object) -> Dataset:
    values = {"tag": "w", "spatial_resolution": 1.0, "image_paths": [world / "image.tif"]}
    return Dataset(**{**values, "mask_paths": [world / "truth.geojson"], **given})


WHOLE = (slice(0, 120), slice(0, 160))


def test_polygons_in_another_crs_are_burnt_where_they_are(world: Path) -> None:
    (scene,) = dataset(world).scenes()
    pixels, labels = scene.read(WHOLE)
    expected = np.zeros((120, 160), np.uint8)
    expected[10:40, 20:50] = expected[70:90, 100:120] = 1
    assert pixels.valid.all()
    # Corners within a hair of pixel centres may fall on either side after two transformations.
    assert (labels != expected).sum() <= 4


@pytest.mark.parametrize("resolution", [0.5, 1.0, 2.0])
def test_area_of_labels_does_not_depend_on_resolution(world: Path, resolution: float) -> None:
    (scene,) = dataset(world, spatial_resolution=resolution).scenes()
    _, labels = scene.read((slice(0, scene.shape[0]), slice(0, scene.shape[1])))
    assert (labels == 1).sum() * resolution**2 == pytest.approx(1300, rel=0.02)


def test_a_window_equals_the_crop_of_the_whole(world: Path) -> None:
    (scene,) = dataset(world, spatial_resolution=0.7).scenes()
    whole = scene.read((slice(0, scene.shape[0]), slice(0, scene.shape[1])))
    memory = scene.in_memory()
    for roi in ((slice(5, 60), slice(20, 90)), (slice(100, 130), slice(150, 200))):
        for one in (scene, memory):
            pixels, labels = one.read(roi)
            np.testing.assert_array_equal(pixels.data, whole[0].data[(slice(None), *roi)])
            np.testing.assert_array_equal(labels, whole[1][roi])


def test_outside_of_the_grid_nothing_is_valid_or_labelled(world: Path) -> None:
    (scene,) = dataset(world).scenes()
    for one in (scene, scene.in_memory()):
        pixels, labels = one.read((slice(-10, 20), slice(150, 190)))
        assert not pixels.valid[:10].any() and not pixels.valid[:, 10:].any() and pixels.valid[10:, :10].all()
        assert (labels[~pixels.valid] == 255).all() and (labels[pixels.valid] != 255).all()


def test_outside_the_aoi_pixels_are_unlabelled(world: Path) -> None:
    layer(world / "aoi.gpkg", [square(0, 0, 60)], to="EPSG:3857")
    (scene,) = dataset(world, aoi_paths=[world / "aoi.gpkg"]).scenes()
    _, labels = scene.read(WHOLE)
    assert (labels[:59, :59] != 255).all() and (labels[61:] == 255).all()
    assert (labels == 1).sum() == pytest.approx(900, abs=4)


def test_an_attribute_of_the_aoi_layer_divides_the_ground(world: Path) -> None:
    layer(world / "aoi.gpkg", [square(0, 0, 60), square(60, 90, 60)], use=["Training", "validation"])
    (scene,) = dataset(world, aoi_paths=[world / "aoi.gpkg"], split="use").scenes()
    assert scene.splits >= {"train", "val"}
    _, train = scene.read(WHOLE, "train")
    _, val = scene.read(WHOLE, "val")
    assert (train != 255).sum() == 3600 and (val != 255).sum() == 3600
    assert not ((train != 255) & (val != 255)).any()
    np.testing.assert_array_equal(scene.in_memory().read(WHOLE, "val")[1], val)


def test_objects_are_counted_where_they_lie(world: Path) -> None:
    layer(world / "aoi.gpkg", [square(0, 0, 30), square(30, 0, 30), square(60, 90, 60)], use=["train", "val", "val"])
    (scene,) = dataset(world, aoi_paths=[world / "aoi.gpkg"], split="use").scenes()
    # The first of two lies across the border, the second in one split alone.
    assert [scene.count_objects(1, split) for split in ("train", "val", "test", None)] == [1, 2, 0, 2]
    assert scene.count_objects(2) == 0
    (undivided,) = dataset(world).scenes()
    assert undivided.count_objects(1) == 2


def test_points_label_a_pixel_and_the_rest_is_unlabelled(world: Path) -> None:
    layer(world / "points.gpkg", [Point(LEFT + 10.5, TOP - 20.5), Point(LEFT + 30.2, TOP - 5.7)])
    (scene,) = dataset(world, mask_paths=[world / "points.gpkg"]).scenes()
    _, labels = scene.read(WHOLE)
    assert labels[20, 10] == labels[5, 30] == 1
    assert (labels == 1).sum() == 2 and (labels == 255).sum() == labels.size - 2


def test_label_rasters_are_read_nearest_and_unknown_values_are_unlabelled(world: Path) -> None:
    values = np.zeros((120, 160), np.uint8)
    values[:60, :80], values[60:, :80], values[:60, 80:] = 3, 7, 9
    write_raster(world / "labels.tif", values)
    legend = Legend.from_dict({"classes": [{"name": "wood", "value": 3}, {"name": "water", "value": 7}]})
    for resolution in (1.0, 0.5, 2.0):
        given = dataset(world, mask_paths=[world / "labels.tif"], legend=legend, spatial_resolution=resolution)
        (scene,) = given.scenes()
        _, labels = scene.read((slice(0, scene.shape[0]), slice(0, scene.shape[1])))
        rows, cols = scene.shape[0] // 2, scene.shape[1] // 2
        assert (labels[:rows, :cols] == 3).all() and (labels[rows:, :cols] == 7).all()
        assert (labels[:rows, cols:] == 255).all() and (labels[rows:, cols:] == 0).all()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_a_value_of_a_label_raster_means_the_same_in_any_type(world: Path, dtype: str) -> None:
    values = np.arange(120 * 160).reshape(120, 160) % 250
    write_raster(world / "labels.tif", values.astype(dtype))
    legend = Legend.from_dict({"classes": [{"name": "wood", "value": 3, "values": [3, 40, 41]}, "water"]})
    given = dataset(world, mask_paths=[world / "labels.tif"], legend=legend)
    labels = given.scenes()[0].read_labels(WHOLE)
    water = next(item.value for item in legend.classes if item.name == "water")
    expected = {0: 0, 3: 3, 40: 3, 41: 3, water: water}
    np.testing.assert_array_equal(labels, np.vectorize(lambda value: expected.get(value, 255))(values))


def test_fractions_and_nan_in_a_label_raster_are_unlabelled(world: Path) -> None:
    values = np.ones((120, 160), np.float32)
    values[:10], values[10:20] = np.nan, 1.5
    write_raster(world / "labels.tif", values)
    labels = dataset(world, mask_paths=[world / "labels.tif"]).scenes()[0].read_labels(WHOLE)
    assert (labels[:20] == 255).all() and (labels[20:] == 1).all()


def test_labels_that_miss_the_raster_name_both_extents(world: Path) -> None:
    layer(world / "far.gpkg", [square(10_000, 10_000, 50)])
    with pytest.raises(DatasetError, match=r"misses .*image\.tif.*510000"):
        dataset(world, mask_paths=[world / "far.gpkg"]).scenes()


def test_a_layer_without_crs_must_be_declared(world: Path) -> None:
    frame = geopandas.GeoDataFrame({"a": [1]}, geometry=[square(10, 20, 30)])
    frame.to_file(world / "bare.shp")
    with pytest.raises(VectorError, match="vector"):
        dataset(world, mask_paths=[world / "bare.shp"]).scenes()
    (scene,) = dataset(world, mask_paths=[world / "bare.shp"], vector_crs=UTM).scenes()
    assert (scene.read(WHOLE)[1] == 1).sum() == 900


def test_ground_truth_in_a_corner_is_warned_about(world: Path) -> None:
    layer(world / "corner.gpkg", [square(5, 5, 20), square(30, 30, 10)])
    (scene,) = dataset(world, mask_paths=[world / "corner.gpkg"]).scenes()
    assert any("aoi_paths" in note for note in scene.notes)


def test_datasets_add_up_and_must_fit(world: Path) -> None:
    one, two, three = (dataset(world, tag=tag) for tag in "abc")
    assert [item.tag for item in one + two + three] == ["a", "b", "c"]
    with pytest.raises(DatasetError, match="share the tag"):
        one + one
    with pytest.raises(DatasetError, match="legends"):
        one + dataset(world, tag="z", legend=Legend.from_dict({"classes": [{"name": "x"}, {"name": "y"}]}))


def test_one_piece_of_ground_in_two_splits_is_refused(world: Path) -> None:
    both = dataset(world, tag="a", split="train") + dataset(world, tag="b", split="test")
    with pytest.raises(DatasetError, match="overlap"):
        both.scenes()


def test_toml_file_lists_datasets_relative_to_itself(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    (world / "data.toml").write_text(
        '[legend]\nclasses = [{ name = "roof", colour = "#808080" }]\n[[dataset]]\ntag = "w"\n'
        'spatial_resolution = 0.5\nimage_paths = ["im*.tif"]\nmask_paths = ["truth.geojson"]\nsplit = "training"\n'
        'ignore_paths = "truth.geojson"\n'
    )
    datasets = read_datasets(world / "data.toml")
    assert datasets.legend.names == ("roof",) and datasets.items[0].split == "train"
    assert datasets.scenes()[0].shape == (240, 320)
    assert datasets.items[0].ignored == (str(world / "truth.geojson"),)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[[dataset]]\ntag = 'a'\nspatial_resolution = 1\nimage_paths = ['none*.tif']", "matches no file"),
        ("[[dataset]]\ntag = 'a'\nimage_paths = ['image.tif']", "no key 'spatial_resolution'"),
        ("[[dataset]]\ntag = 'a'\nresolution = 1", "unknown key 'resolution'"),
        ("tag = ", "no TOML"),
        ("x = 1", r"\[\[dataset\]\]"),
    ],
)
def test_wrong_toml_is_told(world: Path, text: str, told: str) -> None:
    (world / "wrong.toml").write_text(text)
    with pytest.raises(DatasetError, match=told):
        read_datasets(world / "wrong.toml")


def test_labelled_windows_are_the_same_in_any_worker(world: Path) -> None:
    (scene,) = dataset(world).scenes()
    windows = LabelledWindows([scene], [WindowRequest(0, 40, 50), WindowRequest(0, 5, 5)], read_as_is(32))
    alone = [windows[index] for index in range(2)]
    loaded = next(iter(torch.utils.data.DataLoader(windows, batch_size=2, num_workers=1)))
    for name in ("image", "valid", "labels"):
        assert torch.equal(loaded[name], torch.stack([sample[name] for sample in alone]))
    assert loaded["image"].shape == (2, 3, 32, 32) and loaded["labels"].dtype == torch.uint8


def frame_of(world: Path, zoom: float, **given: object) -> tuple[LabelledScene, GeoBox]:
    (scene,) = dataset(world, **given).scenes()
    return scene, Frame((40, 48), (zoom, zoom)).around(scene.geobox, 30, 40)


def test_a_frame_of_the_grid_itself_is_a_window_of_it(world: Path) -> None:
    scene, window = frame_of(world, 1.0)
    for one in (scene, scene.in_memory(), scene.in_memory(with_file=True)):
        pixels, labels = one.read_on(window)
        same, also = scene.read((slice(10, 50), slice(16, 64)))
        np.testing.assert_array_equal(pixels.data, same.data)
        np.testing.assert_array_equal(labels, also)


def test_a_frame_zoomed_in_shows_the_pixels_of_the_file(world: Path) -> None:
    """On a grid of 2 m the file's own 1 m pixels are still there."""
    scene, window = frame_of(world, 2.0, spatial_resolution=2.0)
    pixels, labels = scene.read_on(window)
    (fine,) = dataset(world).scenes()
    same, also = fine.read((slice(40, 80), slice(56, 104)))
    np.testing.assert_array_equal(pixels.data, same.data)
    np.testing.assert_array_equal(labels, also)
    assert pixels.valid.all()


@pytest.mark.parametrize("zoom", [0.37, 0.8, 1.3, 2.9])
def test_a_frame_of_any_zoom_is_what_that_grid_holds(world: Path, zoom: float) -> None:
    scene, window = frame_of(world, zoom)
    pixels, labels = scene.read_on(window)
    whole = scene.raster.on(window).read((slice(0, 40), slice(0, 48)))
    np.testing.assert_array_equal(pixels.valid, whole.valid)
    np.testing.assert_allclose(pixels.data, whole.data, atol=0.01)
    held, also = scene.in_memory(with_file=True).read_on(window)
    np.testing.assert_array_equal(held.data, pixels.data)
    np.testing.assert_array_equal(labels, also)
    assert set(np.unique(labels[pixels.valid])) <= {0, 1} and (labels[~pixels.valid] == 255).all()


@pytest.mark.parametrize("zoom", [0.5, 0.8, 1.3, 2.9])
@pytest.mark.parametrize("to", [UTM, "EPSG:3857"])
def test_of_a_part_of_a_raster_no_more_is_held_than_its_windows_show(tmp_path: Path, zoom: float, to: str) -> None:
    """What was drawn on a raster of any size costs what was drawn: the file is not read through, nor read again."""
    write_raster(tmp_path / "image.tif", noise((3, 600, 700)))
    (scene,) = dataset(tmp_path, mask_paths=[]).scenes()
    whole = replace(scene, view=scene.raster.on(scene.geobox.to_crs(to)))
    part = whole.crop((slice(200, 330), slice(300, 420)))
    window = Frame((40, 48), (zoom, zoom)).around(part.geobox, 5, 110)
    far = whole.geobox[0:60, 0:60]
    shown, elsewhere = (whole.raster.on(grid).read_alone() for grid in (window, far))
    held = part.in_memory(with_file=True).raster
    assert held.file.held.valid.size < 300 * 290  # type: ignore[union-attr]
    np.testing.assert_array_equal(held.on(far).read_alone().data, elsewhere.data)
    (tmp_path / "image.tif").unlink()
    again = held.on(window).read_alone()
    np.testing.assert_array_equal(again.data, shown.data)
    np.testing.assert_array_equal(again.valid, shown.valid)
    assert again.valid.all()


def test_a_frame_may_be_finer_along_one_axis(world: Path) -> None:
    (scene,) = dataset(world).scenes()
    window = Frame((80, 40), (2.0, 1.0)).around(scene.geobox, 25, 35)
    _, labels = scene.read_on(window)
    assert window.extent.boundingbox.span_x == window.extent.boundingbox.span_y == 40
    # The square of 30 m fills 60 rows and 30 columns.
    assert (labels == 1).any(1).sum() == pytest.approx(60, abs=1)
    assert (labels == 1).any(0).sum() == pytest.approx(30, abs=1)


def test_a_frame_lies_on_the_ground_where_it_fits(world: Path) -> None:
    (scene,) = dataset(world).scenes()
    for row, col in ((0, 0), (119, 159), (60, 3)):
        assert scene.read_on(Frame((50, 50), (0.5, 0.5)).around(scene.geobox, row, col))[0].valid.all()
    wide = Frame((50, 80), (0.25, 0.25)).around(scene.geobox, 5, 5)
    assert wide.extent.centroid.coords[0] == pytest.approx(scene.geobox.extent.centroid.coords[0])


def test_label_rasters_and_splits_hold_on_any_frame(world: Path) -> None:
    values = np.zeros((120, 160), np.uint8)
    values[:, 80:] = 1
    write_raster(world / "labels.tif", values)
    (scene,) = dataset(world, mask_paths=[world / "labels.tif"], split="train").scenes()
    window = Frame((80, 80), (2.0, 2.0)).around(scene.geobox, 60, 80)
    _, labels = scene.read_on(window, "train")
    assert (labels[:, :40] == 0).all() and (labels[:, 40:] == 1).all()
    assert (scene.read_on(window, "val")[1] == 255).all()


def test_zoomed_windows_hold_labels_burnt_at_their_own_resolution(world: Path) -> None:
    recipe = Recipe(
        bands=(1, 2, 3),
        mean=(128.0,) * 3,
        std=(70.0,) * 3,
        resolution=1.0,
        window=64,
        halo=0,
        stride=1,
        legend=Legend.binary(),
        dtype="uint8",
    )
    prepare = training_windows(recipe, Augmentation.geometry_only(scale=(2.0, 2.0), flips=False))
    (scene,) = dataset(world).scenes()
    sample = LabelledWindows([scene], [WindowRequest(0, 25, 35, 1)], prepare)[0]
    assert sample["image"].shape == (3, 64, 64)
    # 32 m of ground about the square of 30 m, each edge within half a metre.
    assert float((sample["labels"] == 1).sum()) == pytest.approx(60 * 60, rel=0.04)


def test_each_part_of_a_batch_is_varied_in_its_own_way(world: Path) -> None:
    (scene,) = dataset(world).scenes()
    requests = [WindowRequest(0, 40, 50, part=part) for part in (0, 1, 0)]
    windows = LabelledWindows([scene], requests, [read_as_is(16), read_as_is(24)])
    assert [len(sample["labels"]) for sample in windows] == [16, 24, 16]
    assert [int(sample["part"]) for sample in windows] == [0, 1, 0]


def test_ignored_ground_is_unlabelled_whatever_else_is_said(world: Path) -> None:
    layer(world / "aoi.gpkg", [square(0, 0, 60)])
    layer(world / "unknown.gpkg", [square(20, 30, 10)], to="EPSG:3857")
    layer(world / "more.geojson", [square(40, 0, 5)], to="EPSG:4326")
    for given in ({}, {"aoi_paths": [world / "aoi.gpkg"]}):
        before = dataset(world, **given).scenes()[0].read(WHOLE)[1]
        (scene,) = dataset(world, ignore_paths=[world / "unknown.gpkg", world / "more.geojson"], **given).scenes()
        for one in (scene, scene.in_memory()):
            labels = one.read(WHOLE)[1]
            assert (labels[21:29, 31:39] == 255).all() and (labels[41:44, 1:4] == 255).all()
            kept = np.ones(labels.shape, bool)
            kept[19:31, 29:41] = kept[39:46, :6] = False
            np.testing.assert_array_equal(labels[kept], before[kept])


def test_survey_counts_what_is_there(world: Path) -> None:
    (scene,) = dataset(world).scenes()
    found = survey(scene)
    pixels, labels = scene.read(WHOLE)
    np.testing.assert_array_equal(found.counts, np.bincount(labels.ravel(), minlength=256))
    mean, std = band_statistics([found])
    np.testing.assert_allclose(mean, pixels.data.mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(std, pixels.data.std((1, 2)), rtol=1e-5)
    assert found.labelled.sum() == labels.size and found.objects.sum() == (labels == 1).sum()


def test_held_out_ground_is_no_training_ground_and_stays_put(tmp_path: Path) -> None:
    write_raster(tmp_path / "image.tif", noise((1, 600, 600)))
    layer(tmp_path / "truth.gpkg", [square(row, col, 20) for row in range(10, 580, 60) for col in range(10, 580, 60)])
    given = Dataset("w", 1.0, [tmp_path / "image.tif"], [tmp_path / "truth.gpkg"])
    (scene,) = hold_out([survey(given.scenes()[0])], 0.2)
    train, val = survey(scene, "train"), survey(scene, "val")
    whole = (slice(0, 600), slice(0, 600))
    in_train, in_val = (scene.read_labels(whole, split) != 255 for split in ("train", "val"))
    assert not (in_train & in_val).any()
    assert 0.1 < in_val.mean() < 0.35 and in_train.mean() > 0.4
    assert val.objects.sum() > 0 and train.objects.sum() > 0
    (again,) = hold_out([survey(given.scenes()[0])], 0.2)
    assert again.holdout == scene.holdout
    (other,) = hold_out([survey(given.scenes()[0])], 0.2, seed=5)
    assert other.holdout != scene.holdout


def test_sampler_is_deterministic_and_stays_on_labelled_ground(world: Path) -> None:
    layer(world / "aoi.gpkg", [square(0, 0, 60)])
    (scene,) = dataset(world, aoi_paths=[world / "aoi.gpkg"]).scenes()
    sampler = WindowSampler((survey(scene),), 32)
    requests = sampler.draw(50, seed=3)
    assert requests == sampler.draw(50, seed=3) != sampler.draw(50, seed=4)
    for request in requests:
        roi = tuple(slice(centre - 16, centre + 16) for centre in (request.row, request.col))
        assert (scene.read_labels(roi) != 255).any()


@pytest.mark.parametrize(("balance", "share"), [(0.0, 0.1), (0.5, 0.25), (1.0, 0.5)])
def test_balance_keeps_a_small_dataset_from_drowning(tmp_path: Path, balance: float, share: float) -> None:
    surveys = []
    for name, rows in (("small", 64), ("large", 576)):
        write_raster(tmp_path / f"{name}.tif", noise((1, rows, 128)))
        layer(tmp_path / f"{name}.gpkg", [square(10, 10, 20)])
        surveys += [survey(*Dataset(name, 1.0, [tmp_path / f"{name}.tif"], [tmp_path / f"{name}.gpkg"]).scenes())]
    requests = WindowSampler(tuple(surveys), 32, object_share=0.0, balance=balance).draw(800, seed=1)
    assert sum(request.scene == 0 for request in requests) / 800 == pytest.approx(share, abs=0.06)


def test_covering_windows_see_each_labelled_pixel_once(world: Path) -> None:
    (scene,) = dataset(world).scenes()
    seen = np.zeros((192, 192), int)
    for request in covering_windows([survey(scene)], 64):
        seen[request.row - 32 : request.row + 32, request.col - 32 : request.col + 32] += 1
    assert (seen[:120, :160] == 1).all()


def test_without_labelled_ground_there_is_nothing_to_draw(world: Path) -> None:
    layer(world / "aoi.gpkg", [square(500, 500, 60)])
    (scene,) = dataset(world, aoi_paths=[world / "aoi.gpkg"]).scenes()
    with pytest.raises(DatasetError, match="no labelled pixel"):
        WindowSampler((survey(scene),), 32)


def test_datasets_need_one() -> None:
    with pytest.raises(DatasetError, match="no dataset"):
        Datasets(())
