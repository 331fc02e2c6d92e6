"""Laws of suggestions: they doubt most, they are spread out, and a fifth know nothing of the doubt."""

from __future__ import annotations

import tracemalloc
import warnings
from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from networks_for_tests import Reach, brightness_model, model
from odc.geo.geobox import GeoBox
from scipy import ndimage
from worlds import UTM, noise, write_raster

from gimseg.correct_commands import correct
from gimseg.correction.doubts import count_objects
from gimseg.correction.suggesting import suggest
from gimseg.correction.suggestions import Doubt, choose_squares, estimate_iou, lay_out, to_frame
from gimseg.errors import CorrectionError, OutputError, VectorError
from gimseg.metrics import Confusion

seeds = st.integers(0, 2**31)


def drawn(seed: int, shape: tuple[int, int] = (40, 60), cell: int = 16) -> Doubt:
    rng = np.random.default_rng(seed)
    valid = np.full(shape, cell * cell)
    valid[:10, :20] = 0
    return Doubt(cell, rng.random(shape) * valid, valid)


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(2, 20))
def test_squares_do_not_overlap_and_lie_on_valid_ground(seed: int, count: int) -> None:
    doubt = drawn(seed)
    found = choose_squares({"uncertainty": doubt}, count, seed=seed)
    assert len(found) == count
    assert sum(one.kind == "random" for one in found) == max(1, round(count / 5))
    for place, one in enumerate(found):
        assert 0 <= one.row <= 40 * 16 - one.height and 0 <= one.col <= 60 * 16 - one.width
        rows, cols = (slice(part.start // 16, part.stop // 16) for part in one.roi)
        least = 1 if one.kind == "random" else one.height * one.width / 2
        assert doubt.valid[rows, cols].sum() >= least
        assert one.kind == "random" or one.height == one.width == 64
        assert one.score == pytest.approx(doubt.total[rows, cols].sum() / doubt.valid[rows, cols].sum())
        for other in found[:place]:
            beyond = 64 if "random" not in (one.kind, other.kind) else 0
            gaps = (other.row - one.row - one.height, one.row - other.row - other.height)
            assert max(*gaps, other.col - one.col - one.width, one.col - other.col - other.width) >= beyond


def test_the_place_of_greatest_doubt_comes_first() -> None:
    doubt = drawn(0)
    doubt.total[:] *= 0.1
    doubt.total[30:34, 40:44] = 256
    first = choose_squares({"uncertainty": doubt}, 6)[0]
    assert (first.row, first.col, first.kind) == (30 * 16, 40 * 16, "uncertainty")
    assert first.score == pytest.approx(1.0)


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_random_squares_know_nothing_of_the_doubt(seed: int) -> None:
    one, other = (
        {
            (item.row, item.col)
            for item in choose_squares({"doubt": drawn(which)}, 10, seed=seed)
            if item.kind == "random"
        }
        for which in (seed, seed + 1)
    )
    assert one == other


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), seeds)
def test_every_valid_cell_lies_in_one_square_of_each_layout(rows: int, cols: int, cells: int, seed: int) -> None:
    valid = np.random.default_rng(seed).integers(0, 2, (rows, cols))
    for offset in np.ndindex(cells, cells):
        squares = lay_out(valid, cells, offset)
        covered = np.zeros_like(valid)
        for top, left in squares:
            part = np.s_[max(top, 0) : top + cells, max(left, 0) : left + cells]
            assert valid[part].any()
            covered[part] += 1
        assert covered.max(initial=0) <= 1 and (covered[valid > 0] == 1).all()


def test_every_valid_cell_is_drawn_as_often_as_any_other() -> None:
    valid = np.full((6, 7), 64)
    valid[2:4, :3] = 0
    valid[5, 6] = 1  # of a corner that is all but empty
    doubt = Doubt(8, np.zeros(valid.shape), valid)
    counts, draws = np.zeros(valid.shape), 1500
    for seed in range(draws):
        (item,) = [item for item in choose_squares({"doubt": doubt}, 2, cells=2, seed=seed) if item.kind == "random"]
        counts[tuple(slice(axis.start // 8, axis.stop // 8) for axis in item.roi)] += 1
    expected = draws * np.mean([1 / len(lay_out(valid, 2, offset)) for offset in np.ndindex(2, 2)])
    # About 118 each: 4 deviations.
    assert np.abs(counts[valid > 0] - expected).max() < 4 * np.sqrt(expected)


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(1, 4))
def test_doubt_added_region_by_region_is_that_of_the_whole(seed: int, parts: int) -> None:
    rng = np.random.default_rng(seed)
    values, valid = rng.random((70, 50)), rng.random((70, 50)) < 0.8
    whole, pieces = Doubt.zeros((70, 50), 8), Doubt.zeros((70, 50), 8)
    whole.add((slice(0, 70), slice(0, 50)), values, valid)
    for top in range(0, 70, 7 * parts):
        roi = (slice(top, min(top + 7 * parts, 70)), slice(0, 50))
        pieces.add(roi, values[roi], valid[roi])
    np.testing.assert_allclose(whole.total, pieces.total)
    np.testing.assert_array_equal(whole.valid, pieces.valid)
    assert whole.valid.sum() == valid.sum()
    assert whole.total.sum() == pytest.approx(values[valid].sum())


def test_small_rasters_give_what_fits() -> None:
    doubt = Doubt.zeros((20, 20), 16)
    doubt.add((slice(0, 20), slice(0, 20)), np.ones((20, 20)), np.ones((20, 20), bool))
    assert len(choose_squares({"doubt": doubt}, 10)) == 1
    with pytest.raises(CorrectionError, match="nothing of the raster"):
        choose_squares({"doubt": Doubt.zeros((20, 20), 16)}, 3)
    with pytest.raises(CorrectionError, match="1 at least"):
        choose_squares({"doubt": doubt}, 0)


def test_a_layer_of_suggestions_lies_on_the_raster() -> None:
    geobox = GeoBox.from_bbox((0, 0, 960, 640), "EPSG:32633", resolution=1)
    frame = to_frame(choose_squares({"doubt": drawn(1)}, 7), geobox)
    assert list(frame["rank"]) == [1, 2, 3, 4, 5, 6, 7]
    assert frame.crs == "EPSG:32633"
    assert (frame.area == 64 * 64).all()
    assert frame.within(geobox.extent.geom.buffer(1e-6)).all()


def in_random_squares(doubt: Doubt, truth: np.ndarray, guess: np.ndarray, seed: int) -> list[Confusion]:
    found = choose_squares({"doubt": doubt}, 50, seed=seed)
    return [Confusion.of(truth[item.roi], guess[item.roi], 2) for item in found if item.kind == "random"]


def test_an_estimate_from_random_squares_is_near_the_truth() -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random((640, 960)) < 0.2).astype(np.uint8)
    guess = np.where(rng.random(truth.shape) < 0.1, 1 - truth, truth)
    whole = Confusion.of(truth, guess, 2).mean_iou
    found = estimate_iou([table for seed in range(4) for table in in_random_squares(drawn(seed), truth, guess, seed)])
    assert found.score == pytest.approx(whole, abs=0.02)
    assert found.low < found.score < found.high < found.low + 0.05


def test_errors_at_the_border_count_in_the_estimate_as_much_as_there_are() -> None:
    cell, rows, cols = 4, 30, 38
    truth = (np.random.default_rng(0).random((rows * cell, cols * cell)) < 0.4).astype(np.uint8)
    guess = truth.copy()
    guess[:cell], guess[-cell:], guess[:, :cell], guess[:, -cell:] = 0, 0, 0, 0
    valid = np.full((rows, cols), cell**2)
    doubt = Doubt(cell, np.zeros(valid.shape), valid)
    whole = Confusion.of(truth, guess, 2)
    samples = [in_random_squares(doubt, truth, guess, seed) for seed in range(100)]
    assert {len(tables) for tables in samples} == {10}
    estimates = np.array([sum(tables[1:], tables[0]).mean_iou for tables in samples])
    assert estimates[0] == estimate_iou(samples[0]).score
    noise = estimates.std() / np.sqrt(len(estimates))
    assert noise < 0.01
    assert estimates.mean() == pytest.approx(whole.mean_iou, abs=3 * noise)


def test_measures_of_doubt_take_turns() -> None:
    found = choose_squares({"one": drawn(0), "two": drawn(1), "three": drawn(2)}, 10)
    kinds = [item.kind for item in found]
    assert [kinds.count(name) for name in ("one", "two", "three", "random")] == [3, 3, 2, 2]
    assert kinds == sorted(kinds, key=["one", "two", "three", "random"].index)


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(1, 3))
def test_objects_less_holes_are_counted_pixel_by_pixel(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    mask = ndimage.median_filter(rng.integers(0, classes + 1, (40, 50)), 3).astype(np.uint8)
    expected = 0
    for value in range(1, classes + 1):
        filled = ndimage.binary_fill_holes(np.pad(mask == value, 1), np.ones((3, 3)))
        holes = ndimage.label(~np.pad(mask == value, 1), np.ones((3, 3)))[1] - 1
        expected += ndimage.label(mask == value)[1] - holes
        assert filled.any() == (mask == value).any()
    assert count_objects(mask).sum() == expected


def world(folder: Path) -> Path:
    """Dark left half, and a right half in which nobody can be sure."""
    values = np.full((200, 300), 20, np.uint8)
    values[:, 150:] = noise((200, 150), low=110, high=140)
    return write_raster(folder / "image.tif", values)


def test_areas_are_written_where_the_model_is_unsure(tmp_path: Path) -> None:
    done = suggest(world(tmp_path), brightness_model(0.0, mean=(127.5,), std=(10.0,)), tmp_path / "s.gpkg", side_m=24)
    frame = geopandas.read_file(tmp_path / "s.gpkg", layer="suggestions")
    assert list(frame["kind"]) == ["uncertainty"] * 8 + ["random"] * 2
    assert (frame.bounds["minx"][:8] >= 500_150 - 24).all() and frame.crs == UTM
    assert done.size_m == (24, 24) and (frame.area == 24 * 24).all()
    assert "10 areas of 24 x 24 m, 8 by uncertainty, 2 at random" in done.text()
    assert frame["objects"][0] > 20 and frame["minutes"][0] == round(frame["objects"][0] / 6, 1)
    with pytest.raises(OutputError, match="exists"):
        suggest(world(tmp_path), brightness_model(), tmp_path / "s.gpkg")


def test_areas_that_the_border_cuts_are_written_as_they_are(tmp_path: Path) -> None:
    raster = world(tmp_path)
    mask = (noise((200, 150), low=110, high=140) > 127.5).astype(np.uint8)
    objects, frame = count_objects(np.pad(mask, ((0, 0), (150, 0)))), shapely.box(500_000, 4_999_800, 500_300, 5e6)
    sides = set()
    for seed in range(4):
        kind = brightness_model(0.0, mean=(127.5,), std=(10.0,))
        done = suggest(raster, kind, tmp_path / "s.gpkg", count=20, side_m=48, seed=seed, overwrite=True)
        layer = geopandas.read_file(tmp_path / "s.gpkg", layer="suggestions")
        for area, row in zip(done.suggestions, layer.itertuples(), strict=True):
            left, top = 500_000 + area.col, 5_000_000 - area.row
            assert row.geometry.equals(shapely.box(left, top - area.height, left + area.width, top))
            assert row.geometry.within(frame) and row.objects == max(objects[area.roi].sum(), 0)
            assert row.minutes == round(row.objects / 6, 1)
        sizes = [(area.height, area.width) for area in done.suggestions]
        sides |= set(sizes)
        cut = sum(size != (48, 48) for size in sizes)
        told = f"smaller: {cut} of {len(sizes)} areas"
        assert (told in done.text()) == (cut > 0) and f"{len(sizes)} areas of 48 x 48 m" in done.text()
    assert len(sides) > 3


def test_areas_are_where_models_or_views_disagree_and_an_older_layer_differs(tmp_path: Path) -> None:
    raster = world(tmp_path)
    several = [brightness_model(10.0), brightness_model(30.0)]
    suggest(raster, several, tmp_path / "models.gpkg", count=4, side_m=24)
    frame = geopandas.read_file(tmp_path / "models.gpkg", layer="suggestions")
    by = frame[frame["kind"] == "disagreement"]
    assert len(by) == 1 and by["doubt"].item() == 1 and by.bounds["maxx"].item() <= 500_150
    suggest(raster, model(Reach(4)), tmp_path / "views.gpkg", count=4, side_m=24, tta="flips")
    assert set(geopandas.read_file(tmp_path / "views.gpkg", layer="suggestions")["kind"]) == {
        "uncertainty",
        "disagreement",
        "random",
    }
    older = geopandas.GeoDataFrame(geometry=[shapely.box(500_000, 4_999_900, 500_020, 4_999_920)], crs=UTM)
    older.to_crs("EPSG:4326").to_file(tmp_path / "older.gpkg")
    dark = brightness_model(300.0)
    suggest(raster, dark, tmp_path / "d.gpkg", count=3, side_m=20, older=tmp_path / "older.gpkg")
    frame = geopandas.read_file(tmp_path / "d.gpkg", layer="suggestions")
    best = frame[frame["kind"] == "difference"].iloc[0]
    assert best["doubt"] > 0.9 and best.geometry.intersection(older.geometry[0]).area > 0.9 * 400


@pytest.mark.parametrize(
    ("geometries", "error", "told"),
    [
        ([shapely.box(505_000, 4_999_900, 505_100, 4_999_950)], VectorError, "lies at 505000.*the raster at 500000"),
        ([], CorrectionError, "holds no feature that has a geometry"),
        ([shapely.Point(500_005, 4_999_995)], CorrectionError, "holds 1 point: polygons are needed"),
        ([shapely.LineString([(500_005, 4_999_995), (500_050, 4_999_950)])] * 2, CorrectionError, "holds 2 lines"),
        (
            [shapely.box(500_000, 4_999_900, 500_020, 4_999_920), shapely.Point(500_005, 4_999_995)],
            CorrectionError,
            "holds 1 point and 1 polygon: polygons are needed, and nothing else",
        ),
    ],
)
def test_an_older_layer_that_tells_nothing_is_refused(
    geometries: list[shapely.Geometry], error: type[Exception], told: str, tmp_path: Path
) -> None:
    older = tmp_path / "older.gpkg"
    geopandas.GeoDataFrame(geometry=geometries, crs=UTM).to_file(older, geometry_type="Unknown", engine="pyogrio")
    with pytest.raises(error, match=told):
        suggest(world(tmp_path), brightness_model(), tmp_path / "s.gpkg", older=older)
    assert not (tmp_path / "s.gpkg").exists()


def test_one_of_several_older_layers_can_be_named_and_is_no_output(tmp_path: Path) -> None:
    older, box = tmp_path / "older.gpkg", shapely.box(500_000, 4_999_900, 500_020, 4_999_920)
    for name in ("first", "second"):
        geopandas.GeoDataFrame(geometry=[box], crs=UTM).to_file(older, layer=name)
    raster, named = world(tmp_path), f"{older}|layername=second"
    done = suggest(raster, brightness_model(300.0), tmp_path / "s.gpkg", count=3, side_m=20, older=named)
    assert "difference" in [item.kind for item in done.suggestions]
    with pytest.raises(OutputError, match="is the input"):
        suggest(raster, brightness_model(), older, older=named, overwrite=True)


def test_numbers_that_mean_nothing_are_refused_before_the_work(tmp_path: Path) -> None:
    raster = world(tmp_path)
    for wrong, told in (
        ({"seed": -1}, "the seed is -1"),
        ({"count": 0}, "^0 areas are asked for: 1 at least is needed$"),
        ({"side_m": -2.0}, "a side of -2.0 m"),
    ):
        with pytest.raises(CorrectionError, match=told):
            suggest(raster, "no model", tmp_path / "s.gpkg", **wrong)
    for option in ("--seed", "--count"):
        done = CliRunner().invoke(correct, ["suggest", str(raster), "-o", str(tmp_path / "s.gpkg"), option, "-1"])
        assert done.exit_code == 2 and f"Invalid value for '{option}'" in done.output.replace("'-n' / ", "")


def test_the_size_that_is_told_is_that_of_the_areas(tmp_path: Path) -> None:
    done = suggest(world(tmp_path), brightness_model(), tmp_path / "s.gpkg", side_m=1000)
    frame = geopandas.read_file(tmp_path / "s.gpkg", layer="suggestions")
    assert frame.area.tolist() == [300 * 200] and done.size_m == (200, 300)
    assert "s.gpkg: 1 area of 300 x 200 m, " in done.text() and "cut by" not in done.text()


def test_a_raster_without_a_crs_warns_nobody(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "bare.tif", noise((200, 300)), crs=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        done = suggest(raster, brightness_model(), tmp_path / "s.gpkg", count=3)
    assert geopandas.read_file(tmp_path / "s.gpkg", layer="suggestions").crs is None and "no CRS" in done.text()


def test_the_memory_of_a_search_does_not_grow_with_the_raster(tmp_path: Path) -> None:
    peaks = []
    for rows in (3000, 12_000):
        raster = write_raster(tmp_path / f"{rows}.tif", noise((rows, 1500)), tiled=True)
        tracemalloc.start()
        suggest(raster, brightness_model(), tmp_path / f"{rows}.gpkg")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]
