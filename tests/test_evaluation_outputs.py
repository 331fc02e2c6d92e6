"""Laws of what an evaluation tells and writes: scores of libraries, lists, pictures, a report, a threshold."""

from __future__ import annotations

import json
import math
import re
import sqlite3
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from networks_for_tests import Brightness, brightness_model, model
from scipy.ndimage import gaussian_filter
from shapely.geometry import box
from sklearn import metrics as reference
from worlds import TOP_LEFT, UTM, noise, north_up, write_raster

import gimseg.scene_scores
from gimseg import Dataset, Legend, Model, evaluate
from gimseg.boundary_scores import BoundaryTable
from gimseg.errors import DatasetError, ModelError, OutputError
from gimseg.intervals import Interval, resampled
from gimseg.networks import build_network
from gimseg.progress import silent
from gimseg.sample_lists import FILES
from gimseg.scene_predictions import ReadyMasks
from gimseg.scene_scores import Reach, SceneScorer, choose_reach
from gimseg.score_pages import score_overlay

LEFT, TOP = TOP_LEFT
TWO = Legend.from_dict({"classes": [{"name": "tin", "value": 3}, {"name": "tile <b>", "value": 7}]})
CLASSES = np.array([0, 3, 7], np.uint8)


def patches(seed: int, shape: tuple[int, int], classes: int) -> np.ndarray:
    """Numbers of classes, uint8 (rows, cols), in patches."""
    waves = gaussian_filter(np.random.default_rng(seed).normal(0, 1, (classes, *shape)), (0, 4, 4))
    return waves.argmax(0).astype(np.uint8)


@pytest.fixture
def rasters(tmp_path: Path) -> tuple[Dataset, Path, np.ndarray, np.ndarray]:
    """Two classes on 420 x 500 px of 0.5 m, truth and mask as rasters; some ground is unlabelled."""
    truth, mask = (CLASSES[patches(seed, (420, 500), 3)] for seed in (1, 2))
    mask = np.where(np.random.default_rng(3).random(truth.shape) < 0.15, mask, truth)
    truth[:40, :50] = 255
    grid = {"transform": north_up(0.5)}
    write_raster(tmp_path / "image.tif", noise((3, 420, 500)), **grid)
    write_raster(tmp_path / "truth.tif", truth, nodata=255, **grid)
    write_raster(tmp_path / "mask.tif", mask, **grid)
    dataset = Dataset("pair", 0.5, [tmp_path / "image.tif"], [tmp_path / "truth.tif"], legend=TWO)
    return dataset, tmp_path / "mask.tif", truth, mask


@pytest.fixture
def squares(tmp_path: Path) -> Dataset:
    """Bright squares on 700 x 600 px of 1 m; the network of `brightness_model` sees most of them."""
    rng = np.random.default_rng(5)
    image = rng.integers(40, 100, (700, 600)).astype(np.uint8)
    shapes = []
    for row in range(20, 680, 60):
        for col in range(20, 580, 60):
            side = int(rng.integers(4, 30))
            image[row : row + side, col : col + side] = rng.choice([90, 140, 200])
            shapes.append(box(LEFT + col, TOP - row - side, LEFT + col + side, TOP - row))
    image[650:, 500:] = 220
    write_raster(tmp_path / "image.tif", image)
    gpd.GeoDataFrame(geometry=shapes, crs=UTM).to_file(tmp_path / "truth.gpkg")
    return Dataset("squares", 1.0, [tmp_path / "image.tif"], [tmp_path / "truth.gpkg"])


def test_scores_are_those_of_scikit_learn(rasters: tuple[Dataset, Path, np.ndarray, np.ndarray]) -> None:
    dataset, path, truth, mask = rasters
    scores = evaluate(path, dataset)
    table = scores.to_dict()["splits"]["all"]
    true, given = truth[truth != 255], mask[truth != 255]
    for score, library in (
        ("iou", reference.jaccard_score),
        ("f1", reference.f1_score),
        ("precision", reference.precision_score),
        ("recall", reference.recall_score),
    ):
        for name, value in (("tin", 3), ("tile <b>", 7)):
            wanted = library(true == value, given == value)
            assert table["classes"][name][score] == pytest.approx(wanted)
        for how in ("macro", "micro"):
            assert table[how][score] == pytest.approx(library(true, given, labels=[3, 7], average=how))
    assert table["accuracy"] == pytest.approx(reference.accuracy_score(true, given))
    assert table["kappa"] == pytest.approx(reference.cohen_kappa_score(true, given))
    mcc = [reference.matthews_corrcoef(true == value, given == value) for value in (3, 7)]
    assert [table["classes"][name]["mcc"] for name in ("tin", "tile <b>")] == pytest.approx(mcc)
    assert table["macro"]["mcc"] == pytest.approx(np.mean(mcc)) and "mcc" not in table["micro"]
    assert table["mcc"] == pytest.approx(reference.matthews_corrcoef(true, given))
    low, high = table["intervals"]["scores"]["all"]["mcc"]
    assert low < table["mcc"] < high
    told = scores.table()
    assert f"mcc {np.mean(mcc):.3f}" in told and f"MCC {table['mcc']:.3f}" in told
    for low, high in table["intervals"]["scores"]["tin"].values():
        assert low < high


def test_outlines_are_scored_alike_in_tiles_of_any_size(
    rasters: tuple[Dataset, Path, np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, path, truth, mask = rasters
    numbers = [np.where(plane == 255, 255, np.searchsorted(CLASSES, plane)).astype(np.uint8) for plane in (truth, mask)]
    for tile in (64, 1024):
        monkeypatch.setattr(gimseg.scene_scores, "_TILE", tile)
        scores = evaluate(path, dataset, boundary_m=1.0)
        (row,) = scores.rows
        assert scores.reach == Reach(1.0, 20.0)
        for number, table in enumerate(row.outlines, 1):
            # UTM metres are those of the ellipsoid to within a thousandth here.
            sides = gimseg.scene_scores._pixel_m(dataset.scenes()[0])
            whole = BoundaryTable.of(numbers[0], numbers[1], pixel_m=sides, reach_m=20.0, value=number)
            assert np.array_equal(table.true, whole.true) and np.array_equal(table.bands, whole.bands)
            assert np.array_equal(table.predicted, whole.predicted)
            assert 0 < table.f1(1.0) < 1


def test_a_distance_beyond_reach_is_told_from_none_in_strict_json(tmp_path: Path) -> None:
    write_raster(tmp_path / "image.tif", noise((3, 60, 200)))
    truth = [box(LEFT + 10, TOP - 30, LEFT + 20, TOP - 10)]
    gpd.GeoDataFrame(geometry=truth, crs=UTM).to_file(tmp_path / "truth.gpkg")
    dataset = Dataset("w", 1.0, [tmp_path / "image.tif"], [tmp_path / "truth.gpkg"])
    known = {}
    for name, cols in (("near", [(12, 22)]), ("far", [(10, 20), (150, 151)]), ("nothing", [])):
        mask = np.zeros((60, 200), np.uint8)
        for start, stop in cols:
            mask[10:30, start:stop] = 1
        evaluate(
            write_raster(tmp_path / f"{name}.tif", mask, nodata=255),
            dataset,
            boundary_m=1.0,
            output=tmp_path / f"{name}.json",
        )
        told = json.loads((tmp_path / f"{name}.json").read_text(), parse_constant=pytest.fail)
        part = told["splits"]["all"]["classes"]["object"]["boundary"]
        known[name] = [part[f"hausdorff{which}_{what}m"] for which in ("", "_95") for what in ("", "more_than_")]
        assert part["reach_m"] == 20
    assert known["near"] == [pytest.approx(2, abs=0.1), None, pytest.approx(2, abs=0.1), None]
    assert known["far"] == [None, 20, None, 20]
    assert known["nothing"] == [None] * 4


def test_a_model_has_curves_whose_best_threshold_is_the_best(squares: Dataset) -> None:
    made = model(Brightness(0.0), mean=(120.0,), std=(40.0,))
    one = evaluate(made, squares).together[0]
    assert one.probabilities is not None
    best = one.best_threshold()
    assert best < 0.5
    ious = []
    for threshold in (best, best + 0.004, 0.5):
        again = Model(made.network, replace(made.recipe, threshold=threshold))
        ious.append(float(evaluate(again, squares).of_split().iou[1]))
    # Bytes hold probabilities to half a step of 1/250, the network's own are exact.
    assert ious[0] == pytest.approx(np.nanmax(one.probabilities.scan().iou), abs=0.01)
    assert ious[0] >= ious[2] and ious[0] >= ious[1] - 0.01
    curves = one.to_dict()["classes"]["object"]["probabilities"]
    assert curves["best_threshold"] == best and len(curves["scan"]["iou"]) == 250
    assert one.loss == pytest.approx(one.rows[0].windows.loss) and one.loss > 0


def test_objects_that_touch_count_apart(tmp_path: Path) -> None:
    write_raster(tmp_path / "image.tif", noise((3, 60, 60)))
    pair = [box(LEFT + 10, TOP - 30, LEFT + 20, TOP - 10), box(LEFT + 20, TOP - 30, LEFT + 30, TOP - 10)]
    gpd.GeoDataFrame(geometry=pair, crs=UTM).to_file(tmp_path / "truth.gpkg")
    mask = np.zeros((60, 60), np.uint8)
    mask[10:30, 10:21] = 1
    dataset = Dataset("w", 1.0, [tmp_path / "image.tif"], [tmp_path / "truth.gpkg"])
    scores = evaluate(write_raster(tmp_path / "mask.tif", mask, nodata=255), dataset)
    (objects,) = scores.together[0].objects
    assert objects.counts.sum(0).tolist() == [2, 1, 1, 1]
    part = scores.to_dict()["splits"]["all"]["classes"]["object"]["objects"]
    assert part["precision"] == 1 and part["recall"] == 0.5 and part["mean_iou_of_pairs"] == pytest.approx(20 / 22)


def test_points_have_no_objects(tmp_path: Path) -> None:
    write_raster(tmp_path / "image.tif", noise((3, 60, 60)))
    points = gpd.points_from_xy([LEFT + 10.5, LEFT + 30.5], [TOP - 10.5, TOP - 30.5])
    gpd.GeoDataFrame(geometry=points, crs=UTM).to_file(tmp_path / "truth.gpkg")
    dataset = Dataset("w", 1.0, [tmp_path / "image.tif"], [tmp_path / "truth.gpkg"], point_radius_m=2)
    scores = evaluate(write_raster(tmp_path / "mask.tif", np.ones((60, 60), np.uint8)), dataset)
    assert scores.of_split().recall[1] == 1 and scores.together[0].objects == ()
    assert "objects" not in scores.to_dict()["splits"]["all"]["classes"]["object"]


def test_samples_are_listed_worst_first(squares: Dataset, tmp_path: Path) -> None:
    made = brightness_model(130.0)
    scores = evaluate(made, squares, samples=tmp_path / "samples")
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == sorted(FILES)
    table = pd.read_csv(tmp_path / "samples" / "windows.csv")
    assert len(table) == len(scores.rows[0].windows) == 6
    assert table["rank"].tolist() == [1, 2, 3, 4, 5, 6]
    assert (table["wrong"] > 0.01).tolist() == [True] * 5 + [False] and table["iou"][:5].is_monotonic_increasing
    worst = table.iloc[0]
    assert (worst["row"], worst["col"]) == (467, 300), "the large bright corner is no square"
    assert table["labelled"].sum() == 700 * 600 == scores.of_split().total
    layers = {name: gpd.read_file(tmp_path / "samples" / FILES[2], layer=name) for name in ("windows", "rasters")}
    assert layers["windows"].crs == UTM and len(layers["rasters"]) == 1
    assert layers["windows"]["iou"].to_numpy() == pytest.approx(table["iou"].to_numpy(), rel=1e-4)
    union = layers["windows"].union_all()
    assert union.equals(box(LEFT, TOP - 700, LEFT + 600, TOP))
    assert layers["windows"].geometry[0].bounds == (LEFT + 300, TOP - 700, LEFT + 600, TOP - 467)
    with sqlite3.connect(tmp_path / "samples" / FILES[2]) as database:
        styles = dict(database.execute("SELECT f_table_name, styleQML FROM layer_styles"))
    assert set(styles) == {"windows", "rasters"} and 'attr="iou"' in styles["windows"]
    with pytest.raises(OutputError, match="--overwrite"):
        evaluate(made, squares, samples=tmp_path / "samples")


def test_rasters_of_several_crs_are_listed_in_degrees(tmp_path: Path) -> None:
    datasets = []
    for number, crs in enumerate((UTM, "EPSG:32634")):
        write_raster(tmp_path / f"{number}.tif", noise((60, 60)), crs=crs)
        square = box(LEFT + 10, TOP - 40, LEFT + 40, TOP - 10)
        gpd.GeoDataFrame(geometry=[square], crs=crs).to_file(tmp_path / f"{number}.gpkg")
        datasets.append(Dataset(f"d{number}", 1.0, [tmp_path / f"{number}.tif"], [tmp_path / f"{number}.gpkg"]))
    evaluate(brightness_model(), datasets[0] + datasets[1], samples=tmp_path / "samples")
    rasters = gpd.read_file(tmp_path / "samples" / FILES[2], layer="rasters")
    assert rasters.crs == "EPSG:4326" and len(rasters) == 2
    assert abs(rasters.geometry[0].centroid.x - rasters.geometry[1].centroid.x) == pytest.approx(6, abs=0.01)


def test_the_report_tells_it_all_and_loads_nothing(
    rasters: tuple[Dataset, Path, np.ndarray, np.ndarray], squares: Dataset, tmp_path: Path
) -> None:
    dataset, path, _, _ = rasters
    for predicted, ground, name in ((path, dataset, "masks.html"), (brightness_model(100.0), squares, "model.html")):
        scores = evaluate(predicted, ground, report=tmp_path / name)
        page = (tmp_path / name).read_text(encoding="utf-8")
        assert f"{scores.together[0].confusion.iou[1]:.3f}" in page and "Worst samples" in page
        assert not re.search(r'(src|href)="(?!data:|#)', page)
        assert page.count('class="stack"') == 1 and "Settings and provenance" in page
        assert ("average precision" in page) == (name == "model.html")
        assert "tile <b>" not in page


def test_a_threshold_is_kept_in_the_model(squares: Dataset, tmp_path: Path) -> None:
    architecture = {
        "name": "Unet",
        "encoder": "resnet18",
        "options": {"encoder_depth": 3, "decoder_channels": [8, 8, 8]},
    }
    network = build_network("Unet", "resnet18", bands=1, channels=1, encoder_depth=3, decoder_channels=[8, 8, 8]).eval()
    recipe = replace(brightness_model().recipe, window=64, halo=8, stride=8, mean=(120.0,), std=(40.0,))
    Model(network, recipe, architecture).save(tmp_path / "model")
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    scores = evaluate(tmp_path / "model", squares, keep_threshold=True)
    changed = Model.load(tmp_path / "model")
    assert changed.recipe.threshold == scores.together[0].best_threshold() != 0.5
    assert "squares" not in changed.provenance["threshold"] and "all" in changed.provenance["threshold"]
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == weights
    assert f"Threshold | {changed.recipe.threshold:g}" in (tmp_path / "model" / "README.md").read_text()


def test_a_threshold_that_has_no_place_is_refused_before_the_work(
    rasters: tuple[Dataset, Path, np.ndarray, np.ndarray], squares: Dataset
) -> None:
    dataset, path, _, _ = rasters
    with pytest.raises(ModelError, match="masks"):
        evaluate(path, dataset, keep_threshold=True)
    with pytest.raises(ModelError, match="memory"):
        evaluate(brightness_model(), squares, keep_threshold=True)
    with pytest.raises(ModelError, match="folder of your own"):
        evaluate("builtin", squares, keep_threshold=True)
    with pytest.raises(DatasetError, match="boundary_m"):
        evaluate(path, dataset, boundary_m=0)


def test_ground_without_labels_is_not_predicted(squares: Dataset, tmp_path: Path) -> None:
    area = gpd.GeoDataFrame(geometry=[box(LEFT, TOP - 90, LEFT + 80, TOP)], crs=UTM)
    area.to_file(tmp_path / "aoi.gpkg")
    made = brightness_model(130.0)
    seen = []
    forward = made.network.forward
    made.network.forward = lambda images: seen.append(images[:, 0].numel()) or forward(images)  # type: ignore[method-assign]
    big = np.zeros((12_000, 100), np.uint8)
    big[:90, :80] = 200
    write_raster(tmp_path / "big.tif", big)
    dataset = replace(squares, image_paths=(str(tmp_path / "big.tif"),), aoi_paths=(str(tmp_path / "aoi.gpkg"),))
    part = evaluate(made, dataset)
    pixels = sum(seen)
    evaluate(made, replace(dataset, aoi_paths=()))
    assert pixels < 0.5 * (sum(seen) - pixels)
    assert part.of_split().total == 90 * 80


def test_how_far_outlines_are_looked_at_follows_the_pixels(squares: Dataset) -> None:
    scenes = squares.scenes()
    assert choose_reach(scenes, None).distance_m == pytest.approx(3, rel=0.01)
    assert choose_reach(scenes, 5.0).reach_m == 100
    assert choose_reach(scenes, 50.0).reach_m == pytest.approx(128, rel=0.01)
    assert choose_reach(scenes, 500.0).reach_m == 500


def test_draws_are_of_whole_tables() -> None:
    drawn = resampled(np.ones((5, 2, 2), np.int64), draws=7)
    assert drawn.shape == (7, 2, 2) and (drawn == 5).all()
    assert len(resampled(np.ones((1, 2, 2)))) == 0
    assert math.isnan(Interval.around(0.5, []).low)


def test_what_is_kept_while_scoring_is_gone_afterwards(
    squares: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    evaluate(brightness_model(), squares, output=tmp_path / "s.json")
    assert list((tmp_path / "tmp").iterdir()) == []
    assert json.loads((tmp_path / "s.json").read_text())["boundary_m"] == pytest.approx(3, rel=0.01)


def test_the_picture_of_a_small_area_is_as_fine_as_the_raster(tmp_path: Path) -> None:
    image = noise((2000, 1800))
    write_raster(tmp_path / "image.tif", image)
    gpd.GeoDataFrame(geometry=[box(LEFT + 700, TOP - 450, LEFT + 760, TOP - 400)], crs=UTM).to_file(tmp_path / "t.gpkg")
    area = box(LEFT + 650, TOP - 501, LEFT + 803, TOP - 360)
    gpd.GeoDataFrame(geometry=[area], crs=UTM).to_file(tmp_path / "aoi.gpkg")
    (scene,) = Dataset(
        "w", 1.0, [tmp_path / "image.tif"], [tmp_path / "t.gpkg"], aoi_paths=[tmp_path / "aoi.gpkg"]
    ).scenes()
    scorer = SceneScorer(scene, 0, None, tmp_path)
    masks = ReadyMasks([str(write_raster(tmp_path / "mask.tif", (image > 128).astype(np.uint8)))])
    (row,) = scorer.score(masks, choose_reach([scene], None), silent)
    overview = scorer.overview()
    assert (overview.step, overview.origin, overview.truth.shape) == (1, (360, 650), (141, 153))
    assert np.array_equal(overview.image[0], image[360:501, 650:803])
    assert np.array_equal(overview.classes, image[360:501, 650:803] > 128)
    assert (overview.truth[40:90, 50:110] == 1).all() and overview.truth.sum() == 50 * 60
    overlay = score_overlay(row, overview)
    assert overlay.shape == (141, 153, 4) and (overlay[..., 3] > 0).mean() > 0.5


@pytest.mark.parametrize("step", [1, 3, 7])
def test_a_coarse_picture_is_every_so_manieth_pixel(step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = noise((210, 150))
    write_raster(tmp_path / "image.tif", image)
    gpd.GeoDataFrame(geometry=[box(LEFT, TOP - 40, LEFT + 60, TOP)], crs=UTM).to_file(tmp_path / "t.gpkg")
    monkeypatch.setattr(gimseg.scene_scores, "_PICTURE_SIDE", 210 // step)
    monkeypatch.setattr("gimseg.scene_predictions._BLOCK", 64)
    (scene,) = Dataset("w", 1.0, [tmp_path / "image.tif"], [tmp_path / "t.gpkg"]).scenes()
    scorer = SceneScorer(scene, 0, None, tmp_path)
    masks = ReadyMasks([str(write_raster(tmp_path / "mask.tif", (image > 128).astype(np.uint8)))])
    scorer.score(masks, choose_reach([scene], None), silent)
    assert scorer.overview().step == step
    assert np.array_equal(scorer.overview().image[0], image[::step, ::step])
    assert np.array_equal(scorer.overview().classes, image[::step, ::step] > 128)
