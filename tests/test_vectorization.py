"""Laws of vectorization: polygons lie where the pixels are, measure what they measure, and are written whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from odc.geo.geobox import GeoBox
from pyproj import Geod
from rasterio.features import shapes
from rasterio.transform import Affine
from worlds import UTM, north_up, write_raster

from gimseg import regions, vectorization
from gimseg.errors import GridError, LegendError, OutputError, RasterError, TilingError
from gimseg.legend import LEGEND_TAG, Legend, LegendClass
from gimseg.mask_legends import legend_of_mask
from gimseg.raster_output import Bands, new_raster
from gimseg.styles import joint_style, raster_style, write_style
from gimseg.vectorization import vectorize

ROOFS = Legend((LegendClass("tin", 1, "#56b4e9"), LegendClass("Ziegel – rot", 2, "#d55e00")))
ENDINGS = (".shp", ".gpkg", ".fgb", ".geojson", ".geojsonl", ".parquet")
WGS84 = Geod(ellps="WGS84")


def read(path: Path) -> gpd.GeoDataFrame:
    if path.suffix == ".parquet":
        return gpd.read_parquet(path)
    return gpd.read_file(path, layer="polygons") if path.suffix == ".gpkg" else gpd.read_file(path)


def houses(side: int = 120, count: int = 60, seed: int = 1) -> np.ndarray:
    """Rectangles of two classes, some touching, on a background with unlabelled pixels."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((side, side), np.uint8)
    for value in rng.choice([1, 2, 255], count):
        row, column = rng.integers(0, side - 3, 2)
        height, width = rng.integers(2, 12, 2)
        mask[row : row + height, column : column + width] = value
    return mask


def geometries(frame: gpd.GeoDataFrame) -> list[str]:
    return sorted(
        f"{value} {shape.normalize().wkt}" for value, shape in zip(frame["class_id"], frame.geometry, strict=True)
    )


def by_gdal(path: Path) -> list[str]:
    """What one pass of GDAL over the whole mask gives."""
    with rasterio.open(path) as dataset:
        mask = dataset.read(1)
        found = list(shapes(mask, mask=(mask != 0) & (mask != 255), transform=dataset.transform))
    return sorted(f"{int(value)} {shapely.geometry.shape(outline).normalize().wkt}" for outline, value in found)


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    return write_raster(tmp_path / "mask.tif", houses())


@pytest.mark.parametrize("block", [1, 7, 60, 4096])
def test_the_file_holds_the_polygons_of_one_pass(mask: Path, tmp_path: Path, block: int) -> None:
    done = vectorize(mask, tmp_path / "out.gpkg", block=block)
    found = read(tmp_path / "out.gpkg")
    assert geometries(found) == by_gdal(mask)
    assert done.count == len(found) == sum(done.counts.values())


@pytest.mark.parametrize(
    "transform",
    [
        pytest.param(Affine(0.5, 0, 500_000, 0, 0.5, 5_000_000), id="south-up"),
        pytest.param(Affine(1.7, 0.5, 500_000, 1.0, -0.9, 5_000_000), id="rotated"),
    ],
)
def test_polygons_lie_where_the_transform_puts_the_pixels(tmp_path: Path, transform: Affine) -> None:
    mask = write_raster(tmp_path / "mask.tif", houses(30, 6), transform=transform)
    vectorize(mask, tmp_path / "out.gpkg")
    found = read(tmp_path / "out.gpkg")
    expected = shapely.from_wkt([text.split(" ", 1)[1] for text in by_gdal(mask)])
    assert shapely.union_all(found.geometry).symmetric_difference(shapely.union_all(expected)).area < 1e-6
    assert shapely.is_ccw(shapely.get_exterior_ring(found.geometry)).all()


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_format_holds_crs_columns_and_style(mask: Path, tmp_path: Path, ending: str) -> None:
    done = vectorize(mask, tmp_path / f"out{ending}", legend=ROOFS)
    found = read(tmp_path / f"out{ending}")
    assert len(found) == done.count > 10
    perimeter = "perim_m" if ending == ".shp" else "perimeter_m"
    assert list(found.columns) == ["id", "class", "class_id", "area_m2", perimeter, "date", "geometry"]
    assert dict(found["class"].value_counts()) == done.counts
    assert set(zip(found["class"], found["class_id"], strict=True)) == {("tin", 1), ("Ziegel – rot", 2)}
    assert found.crs == ("EPSG:4326" if ending.startswith(".geojson") else UTM)
    assert set(found.geom_type) == {"Polygon"} and found.is_valid.all()
    assert "Ziegel – rot" in (tmp_path / "out.qml").read_text(encoding="utf-8")


def test_several_outputs_hold_the_same(mask: Path, tmp_path: Path) -> None:
    done = vectorize(mask, [tmp_path / f"out{ending}" for ending in ENDINGS])
    first, *others = [read(path) for path in done.paths if not path.suffix.startswith(".geojson")]
    for other in others:
        assert geometries(other) == geometries(first)
        assert np.allclose(sorted(other["area_m2"]), sorted(first["area_m2"]))
        assert set(other["id"]) == set(first["id"]) and first["id"].is_unique
    for ending in (".geojson", ".geojsonl"):
        assert set(read(tmp_path / f"out{ending}")["id"]) == set(first["id"])


def test_a_mask_without_objects_gives_a_layer_without_features(tmp_path: Path) -> None:
    mask = write_raster(tmp_path / "mask.tif", np.zeros((5, 5), np.uint8))
    for ending in ENDINGS:
        assert vectorize(mask, tmp_path / f"out{ending}").count == 0
        if ending == ".geojsonl":
            assert (tmp_path / "out.geojsonl").read_bytes() == b""
            continue
        found = read(tmp_path / f"out{ending}")
        assert len(found) == 0
        # GeoJSON says its columns feature by feature only.
        assert ending == ".geojson" or {"class", "class_id", "area_m2"} <= set(found.columns)


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        (UTM, north_up(0.5)),
        ("EPSG:3857", Affine(2, 0, 1_500_000, 0, -2, 9_000_000)),
        ("EPSG:4326", Affine(1e-5, 0, 179.9999, 0, -1e-5, -17.0)),
        ("EPSG:2263", Affine(1, 0, 980_000, 0, -1, 200_000)),
    ],
    ids=["UTM", "Web Mercator at 63° north", "degrees across the antimeridian", "feet"],
)
def test_area_is_that_on_the_ellipsoid(tmp_path: Path, crs: str, transform: Affine) -> None:
    mask = write_raster(tmp_path / "mask.tif", houses(), crs=crs, transform=transform)
    vectorize(mask, tmp_path / "out.gpkg")
    found = read(tmp_path / "out.gpkg")
    degrees = found if crs == "EPSG:4326" else found.to_crs("EPSG:4326")
    truth = [abs(WGS84.geometry_area_perimeter(shape)[0]) for shape in degrees.geometry]
    # The geodesic sum over polygons of a few square metres is itself good to square millimetres only.
    assert np.allclose(found["area_m2"], truth, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(("crs", "transform"), [(UTM, north_up(0.5)), ("EPSG:4326", Affine(1e-5, 0, 5, 0, -1e-5, 60))])
def test_minimum_area_keeps_what_is_as_large_on_the_ground(tmp_path: Path, crs: str, transform: Affine) -> None:
    mask = write_raster(tmp_path / "mask.tif", houses(), crs=crs, transform=transform)
    vectorize(mask, tmp_path / "all.gpkg")
    every = read(tmp_path / "all.gpkg")
    least = float(np.median(every["area_m2"]))
    done = vectorize(mask, tmp_path / "large.gpkg", min_area_m2=least)
    assert done.count == (every["area_m2"] >= least).sum()
    assert read(tmp_path / "large.gpkg")["area_m2"].min() >= least


def test_simplified_outlines_are_valid_near_and_the_same_for_every_block(tmp_path: Path) -> None:
    rows, columns = np.indices((90, 90))
    disc = (np.hypot(rows - 45, columns - 45) < 40) & (np.hypot(rows - 40, columns - 45) > 10)
    mask = write_raster(tmp_path / "mask.tif", disc.astype(np.uint8), transform=north_up(0.25))
    vectorize(mask, tmp_path / "exact.gpkg")
    vectorize(mask, tmp_path / "simple.gpkg", simplify_m=0.5)
    vectorize(mask, tmp_path / "again.gpkg", simplify_m=0.5, block=5)
    exact, simple = read(tmp_path / "exact.gpkg"), read(tmp_path / "simple.gpkg")
    assert geometries(simple) == geometries(read(tmp_path / "again.gpkg"))
    assert simple.is_valid.all() and len(simple.geometry[0].interiors) == 1
    assert shapely.get_num_coordinates(simple.geometry).sum() < shapely.get_num_coordinates(exact.geometry).sum() / 4
    assert simple.geometry[0].hausdorff_distance(exact.geometry[0]) <= 0.5
    corners = shapely.get_coordinates(simple.geometry) / 0.25
    assert np.abs(corners - corners.round()).max() < 1e-6


def test_simplifying_noise_gives_valid_polygons(tmp_path: Path) -> None:
    noise = (np.random.default_rng(4).random((80, 80)) < 0.6).astype(np.uint8)
    mask = write_raster(tmp_path / "mask.tif", noise, transform=Affine(1, 0, 500_000, 0, -2, 5_000_000))
    done = vectorize(mask, tmp_path / "out.gpkg", simplify_m=3, min_area_m2=4)
    found = read(tmp_path / "out.gpkg")
    assert done.count == len(found) > 5
    assert found.is_valid.all() and set(found.geom_type) == {"Polygon"} and (found["area_m2"] >= 4).all()


def test_without_a_crs_there_are_polygons_and_no_areas(tmp_path: Path) -> None:
    mask = write_raster(tmp_path / "mask.tif", houses(), crs=None)
    done = vectorize(mask, tmp_path / "out.gpkg", simplify_m=1)
    found = read(tmp_path / "out.gpkg")
    assert found.crs is None and "area_m2" not in found and len(found) == done.count
    assert "no CRS" in done.notes[0]
    with pytest.raises(GridError, match=r"has no CRS.*min_area_m2=5"):
        vectorize(mask, tmp_path / "large.gpkg", min_area_m2=5)


def test_nodata_and_masked_pixels_give_no_polygon(tmp_path: Path) -> None:
    labels = np.array([[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 255, 0]], np.uint8)
    plain = write_raster(tmp_path / "plain.tif", labels, nodata=2)
    assert vectorize(plain, tmp_path / "plain.gpkg").counts == {"class_1": 1, "class_3": 1}
    masked = write_raster(tmp_path / "masked.tif", labels, mask=labels != 1)
    assert vectorize(masked, tmp_path / "masked.gpkg").counts == {"class_2": 1, "class_3": 1}


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32"])
def test_any_number_type_that_holds_classes(tmp_path: Path, dtype: str) -> None:
    mask = write_raster(tmp_path / "mask.tif", houses().astype(dtype))
    vectorize(mask, tmp_path / "out.gpkg")
    assert geometries(read(tmp_path / "out.gpkg")) == by_gdal(write_raster(tmp_path / "bytes.tif", houses()))


def test_what_is_no_class_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    labels = np.zeros((50, 4), np.float32)
    labels[:20:4] = 1
    labels[-1, -1] = 0.37
    mask = write_raster(tmp_path / "mask.tif", labels)
    with pytest.raises(RasterError, match=r"value 0\.37.*--threshold"):
        vectorize(mask, [tmp_path / "out.shp", tmp_path / "out.gpkg"], block=4)
    assert [path.name for path in tmp_path.iterdir()] == ["mask.tif"]


def test_an_image_is_refused(tmp_path: Path) -> None:
    image = write_raster(tmp_path / "image.tif", np.ones((3, 4, 4), np.uint8))
    with pytest.raises(RasterError, match="3 bands"):
        vectorize(image, tmp_path / "out.gpkg")


def test_outputs_are_refused_before_the_mask_is_read(
    mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regions, "read_strips", lambda *given: pytest.fail("work was begun"))
    (tmp_path / "old.gpkg").touch()
    with pytest.raises(OutputError, match="exists"):
        vectorize(mask, [tmp_path / "new.shp", tmp_path / "old.gpkg"])
    with pytest.raises(OutputError, match=r"'\.dxf'"):
        vectorize(mask, tmp_path / "out.dxf")
    with pytest.raises(OutputError, match="the input"):
        vectorize(mask, mask, overwrite=True)
    with pytest.raises(OutputError, match="no output"):
        vectorize(mask, [])
    with pytest.raises(TilingError, match="block=0"):
        vectorize(mask, tmp_path / "out.gpkg", block=0)


def failing_writer(ending: str) -> Callable[..., int]:
    def write(path: Path, chunks: object, **options: object) -> int:
        if Path(path).suffix == ending:
            raise OutputError(f"{path} could not be written: is the disk full?")
        return whole(path, chunks, **options)

    whole: Callable[..., int] = vectorization.write_features
    return write


def test_when_one_output_fails_none_appears(mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectorization, "write_features", failing_writer(".fgb"))
    monkeypatch.setattr(vectorization, "_CHUNK", 1)
    with pytest.raises(OutputError) as caught:
        vectorize(mask, [tmp_path / "out.gpkg", tmp_path / "out.fgb", tmp_path / "out.shp"], block=6)
    assert str(caught.value) == f"{tmp_path / 'out.fgb'} could not be written: is the disk full?"
    assert [path.name for path in tmp_path.iterdir()] == ["mask.tif"]


def test_a_style_that_a_person_made_stays_unless_overwrite(mask: Path, tmp_path: Path) -> None:
    style = tmp_path / "out.qml"
    style.write_text("<qgis/>")
    vectorize(mask, tmp_path / "out.shp")
    assert style.read_text() == "<qgis/>"
    vectorize(mask, tmp_path / "out.shp", overwrite=True)
    assert "categorizedSymbol" in style.read_text()


def test_a_style_of_the_mask_alone_becomes_one_of_both(mask: Path, tmp_path: Path) -> None:
    write_style(mask, raster_style(ROOFS))
    vectorize(mask, mask.with_suffix(".shp"), legend=ROOFS)
    assert (tmp_path / "mask.qml").read_text(encoding="utf-8") == joint_style(ROOFS)


def test_the_mask_carries_its_legend(mask: Path, tmp_path: Path) -> None:
    assert legend_of_mask(mask) is None
    with rasterio.open(mask, "r+") as dataset:
        dataset.update_tags(**{LEGEND_TAG: json.dumps(ROOFS.to_dict())})
    assert legend_of_mask(mask) == ROOFS
    assert vectorize(mask, tmp_path / "out.gpkg").counts.keys() == {"tin", "Ziegel – rot"}
    with rasterio.open(mask, "r+") as dataset:
        dataset.update_tags(**{LEGEND_TAG: '{"classes": 7}'})
    with pytest.raises(LegendError, match=r"mask\.tif: its tags or tables hold no legend"):
        legend_of_mask(mask)


def test_a_colour_table_gives_colours(tmp_path: Path) -> None:
    colours = {0: (0, 0, 0, 0), 1: (16, 32, 48, 255), 2: (255, 0, 0, 255), 255: (9, 9, 9, 255)}
    mask = write_raster(tmp_path / "mask.tif", houses(), colormap=colours)
    assert legend_of_mask(mask) == Legend((LegendClass("class_1", 1, "#102030"), LegendClass("class_2", 2, "#ff0000")))


def test_names_of_values_are_read_with_the_colours(tmp_path: Path) -> None:
    grid = GeoBox((120, 120), north_up(), UTM)
    names = {0: "background", **dict(zip(ROOFS.values, ROOFS.names, strict=True))}
    with new_raster(tmp_path / "mask.tif", grid, Bands(colours=ROOFS.colours, categories=names)) as raster:
        raster.write(houses(), (slice(0, 120), slice(0, 120)))
    assert legend_of_mask(tmp_path / "mask.tif") == ROOFS


def test_values_that_the_legend_lacks_are_kept_by_number(mask: Path, tmp_path: Path) -> None:
    done = vectorize(mask, tmp_path / "out.gpkg", legend=Legend.binary("house"))
    assert done.counts.keys() == {"house", "class_2"} and min(done.counts.values()) > 0
    assert done.legend.names == ("house", "class_2")


def test_progress_comes_to_its_end(mask: Path, tmp_path: Path) -> None:
    seen: list[tuple[float, float]] = []
    vectorize(
        mask, tmp_path / "out.gpkg", block=12, progress=lambda task, done, total, unit: seen.append((done, total))
    )
    assert len(seen) > 5 and seen[0][0] == 0 and seen[-1][0] == seen[-1][1] == pytest.approx(0.0144)
    assert seen == sorted(seen)


@pytest.mark.real_data
@pytest.mark.slow
def test_a_real_land_cover_map_gives_the_polygons_of_one_pass(real_data: Path, tmp_path: Path) -> None:
    mask = real_data / "odd" / "cog_cmap.tif"
    done = vectorize(mask, tmp_path / "out.fgb", block=1500)
    assert geometries(read(tmp_path / "out.fgb")) == by_gdal(mask)
    assert done.count == 10313
