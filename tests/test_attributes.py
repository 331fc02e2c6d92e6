"""Laws of attributes: ids stay, lengths are those on the ellipsoid, confidence is the mean of the pixels inside."""

from __future__ import annotations

import datetime
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import CRS, Geod
from rasterio.transform import Affine
from worlds import UTM, north_up, write_raster

from gimseg import confidence
from gimseg.attributes import polygon_ids
from gimseg.confidence import Probabilities
from gimseg.errors import GridError, OutputError, RasterError
from gimseg.ground import Ground
from gimseg.legend import Legend, LegendClass
from gimseg.origins import DATE_TAG, MODEL_TAG, image_date
from gimseg.vectorization import vectorize

GROUNDS = [
    pytest.param(UTM, north_up(0.5), id="UTM"),
    pytest.param("EPSG:3857", Affine(2, 0, 1_500_000, 0, -2, 9_000_000), id="Web Mercator at 63 degrees north"),
    pytest.param("EPSG:4326", Affine(1e-5, 0, 179.9999, 0, -1e-5, -17.0), id="degrees across the antimeridian"),
    pytest.param("EPSG:32660", Affine(1, 0, 819_400, 0, -1, -1_882_000), id="metres across the antimeridian"),
    pytest.param("EPSG:2263", Affine(1, 0, 980_000, 0, -1, 200_000), id="feet"),
    pytest.param(UTM, Affine(1.7, 0.5, 500_000, 1.0, -0.9, 5_000_000), id="rotated"),
]


def blobs(side: int = 90, seed: int = 1) -> np.ndarray:
    """Two classes with holes, touching corners and single pixels."""
    rng = np.random.default_rng(seed)
    mask = np.kron(rng.integers(0, 3, (side // 6, side // 6)), np.ones((6, 6))).astype(np.uint8)
    mask[rng.random((side, side)) < 0.05] = 0
    return mask


def polygons(path: Path) -> gpd.GeoDataFrame:
    return gpd.read_parquet(path)


@pytest.mark.parametrize(("crs", "transform"), GROUNDS)
def test_perimeter_and_area_are_those_on_the_ellipsoid(tmp_path: Path, crs: str, transform: Affine) -> None:
    mask = write_raster(tmp_path / "mask.tif", blobs(), crs=crs, transform=transform)
    vectorize(mask, tmp_path / "out.parquet")
    found = polygons(tmp_path / "out.parquet")
    earth = CRS(crs).ellipsoid
    geod = Geod(a=earth.semi_major_metre, b=earth.semi_minor_metre)
    degrees = found.to_crs(CRS(crs).geodetic_crs).geometry if crs != "EPSG:4326" else found.geometry
    lengths = [sum(map(geod.geometry_length, (each.exterior, *each.interiors))) for each in degrees]
    areas = [abs(geod.geometry_area_perimeter(each)[0]) for each in degrees]
    assert np.allclose(found["perimeter_m"], lengths, rtol=1e-7, atol=1e-6)
    # The geodesic sum over polygons of a few square metres is itself good to square millimetres only.
    assert np.allclose(found["area_m2"], areas, rtol=1e-6, atol=1e-5)


def test_long_edges_follow_the_map() -> None:
    ground = Ground.of(Affine(1, 0, 0, 0, -1, 70), CRS("EPSG:4326").to_wkt(), (70, 120))
    (area,), (perimeter,) = ground.measure(np.array([shapely.box(0, 0, 120, 70)]))
    fine = shapely.segmentize(shapely.box(0, 0, 120, 70), 0.05)
    geod = Geod(ellps="WGS84")
    assert area == pytest.approx(abs(geod.geometry_area_perimeter(fine)[0]), rel=1e-6)
    assert perimeter == pytest.approx(geod.geometry_length(fine.exterior), rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 200), st.integers(0, 3))
def test_ids_depend_on_nothing_but_the_polygon(tmp_path_factory: pytest.TempPathFactory, block: int, seed: int) -> None:
    folder = tmp_path_factory.mktemp("ids")
    mask = write_raster(folder / "mask.tif", blobs(seed=seed))
    vectorize(mask, folder / "a.parquet")
    vectorize(mask, folder / "b.parquet", block=block)
    one, other = (
        dict(zip(frame["id"], shapely.normalize(frame.geometry), strict=True))
        for frame in map(polygons, (folder / "a.parquet", folder / "b.parquet"))
    )
    assert one == other and len(one) == len(polygons(folder / "a.parquet"))


def test_ids_know_no_order_and_tell_class_place_and_every_vertex() -> None:
    ring = shapely.Polygon([(0, 0), (4, 0), (4, 4), (2, 5), (0, 4)], [[(1, 1), (2, 1), (2, 2)]])
    turned = shapely.Polygon(
        [*ring.exterior.coords[2:-1], *ring.exterior.coords[:3]][::-1], [ring.interiors[0].coords[1:]]
    )
    moved = shapely.Polygon([(0, 0), (4, 0), (4, 4), (2, 5.01), (0, 4)], [[(1, 1), (2, 1), (2, 2)]])
    shifted = shapely.affinity.translate(ring, 7, 0)
    same = polygon_ids(np.array([ring, turned]), np.array([1, 1]), north_up())
    assert same[0] == same[1] and len(same[0]) == 16
    others = [
        polygon_ids(np.array([each]), np.array([code]), transform)[0]
        for each, code, transform in (
            (ring, 2, north_up()),
            (moved, 1, north_up()),
            (shifted, 1, north_up()),
            (ring, 1, north_up(left=500_001)),
            (shapely.Polygon(ring.exterior), 1, north_up()),
        )
    ]
    assert len({same[0], *others}) == 6


def test_a_change_elsewhere_leaves_the_other_ids(tmp_path: Path) -> None:
    labels = blobs()
    write_raster(tmp_path / "before.tif", labels)
    labels[40:50, 40:50] = 0
    write_raster(tmp_path / "after.tif", labels)
    for name in ("before", "after"):
        vectorize(tmp_path / f"{name}.tif", tmp_path / f"{name}.parquet")
    before, after = (polygons(tmp_path / f"{name}.parquet") for name in ("before", "after"))
    touched = before.intersects(shapely.box(500_040, 4_999_950, 500_050, 4_999_960))
    assert set(before["id"][~touched]) <= set(after["id"]) and not set(before["id"][touched]) <= set(after["id"])


def write_shares(path: Path, shape: tuple[int, ...], *, seed: int = 2, **options: object) -> np.ndarray:
    """Random probabilities as bytes, 255 for nothing; the shares, NaN where there is none."""
    stored = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    stored[stored > 250] = 255
    write_raster(path, stored, nodata=255, **options)
    with rasterio.open(path, "r+") as raster:
        raster.scales = [0.004] * raster.count
    return np.where(stored == 255, np.nan, stored * 0.004)


def by_hand(shares: np.ndarray, frame: gpd.GeoDataFrame, transform: Affine) -> np.ndarray:
    """The mean of the pixels whose centre lies in each polygon, one polygon after the other."""
    rows, columns = np.indices(shares.shape)
    x, y = transform * (columns + 0.5, rows + 0.5)
    means = []
    for each in frame.geometry:
        inside = shares[shapely.contains_xy(each, x, y)]
        means.append(np.nanmean(inside) if np.isfinite(inside).any() else np.nan)
    return np.array(means)


@pytest.mark.parametrize("tile", [7, 1024])
@pytest.mark.parametrize("band", [1, 200, 2**21])
def test_confidence_is_the_mean_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tile: int, band: int) -> None:
    monkeypatch.setattr(confidence, "_TILE", tile)
    monkeypatch.setattr(confidence, "_BAND", band)
    labels = blobs()
    labels[:, :3] = labels[:3] = 1  # one as large as the raster
    mask = write_raster(tmp_path / "mask.tif", labels)
    shares = write_shares(tmp_path / "p.tif", labels.shape)
    vectorize(mask, tmp_path / "out.parquet", probabilities=tmp_path / "p.tif", block=20)
    found = polygons(tmp_path / "out.parquet")
    assert np.allclose(found["confidence"], by_hand(shares, found, north_up()), equal_nan=True, rtol=0, atol=1e-6)
    assert found["confidence"].notna().mean() > 0.9


@pytest.mark.parametrize(
    "transform",
    [
        pytest.param(north_up(2.0, left=499_999.877, top=5_000_000.123), id="coarser"),
        pytest.param(north_up(0.5, left=499_989.877, top=5_000_005.123), id="finer and larger"),
        pytest.param(Affine(1.3, 0.4, 499_990.877, 0.7, -1.1, 4_999_980.123), id="rotated"),
        pytest.param(Affine(1, 0, 499_999.877, 0, 1, 4_999_909.877), id="south-up"),
    ],
)
def test_confidence_from_another_grid(tmp_path: Path, transform: Affine) -> None:
    # Off the mask's grid by a bit: no edge runs through the centre of a pixel, where it would be anybody's.
    mask = write_raster(tmp_path / "mask.tif", blobs())
    shares = write_shares(tmp_path / "p.tif", (120, 130), transform=transform)
    vectorize(mask, tmp_path / "out.parquet", probabilities=tmp_path / "p.tif", simplify_m=0.7)
    found = polygons(tmp_path / "out.parquet")
    holds = by_hand(np.ones_like(shares), found, transform) == 1
    wanted = by_hand(shares, found, transform)[holds]
    assert len(wanted) > 10 and np.allclose(found["confidence"][holds], wanted, equal_nan=True, rtol=0, atol=1e-6)


def test_a_polygon_between_the_centres_has_the_pixel_under_it(tmp_path: Path) -> None:
    shares = write_shares(tmp_path / "p.tif", (9, 9), transform=north_up(10.0))
    ground = Ground.of(north_up(), CRS(UTM).to_wkt(), (90, 90))
    sliver = np.array([shapely.box(500_031, 4_999_951, 500_034, 4_999_954), shapely.box(0, 0, 1, 1)])
    found = Probabilities.open(tmp_path / "p.tif", ground, (90, 90)).means(sliver, np.array(["a", "a"], object))
    assert np.allclose(found, [shares[4, 3], np.nan], equal_nan=True)


def test_each_class_has_the_confidence_of_its_band(tmp_path: Path) -> None:
    labels = blobs()
    mask = write_raster(tmp_path / "mask.tif", labels)
    shares = write_shares(tmp_path / "p.tif", (2, *labels.shape), descriptions=["Tile", "tin"])
    roofs = Legend((LegendClass("tin", 1, "#56b4e9"), LegendClass("tile", 2, "#d55e00")))
    vectorize(mask, tmp_path / "out.parquet", probabilities=tmp_path / "p.tif", legend=roofs)
    found = polygons(tmp_path / "out.parquet")
    for name, band in (("tile", 0), ("tin", 1)):
        some = found[found["class"] == name]
        assert np.allclose(some["confidence"], by_hand(shares[band], some, north_up()), equal_nan=True)
    with pytest.raises(RasterError, match=r"no band 'thatch'.*Tile, tin"):
        vectorize(mask, tmp_path / "b.parquet", probabilities=tmp_path / "p.tif", legend=Legend.binary("thatch"))


def test_what_holds_no_probabilities_is_refused(tmp_path: Path) -> None:
    mask = write_raster(tmp_path / "mask.tif", blobs())
    bad = {
        "bytes": (write_raster(tmp_path / "bytes.tif", blobs()), RasterError, "no scale"),
        "large": (write_raster(tmp_path / "large.tif", np.full((90, 90), 7.0, np.float32)), RasterError, "holds 7"),
        "crs": (
            write_raster(tmp_path / "crs.tif", np.zeros((9, 9), np.float32), crs="EPSG:3035"),
            GridError,
            "LAEA Europe",
        ),
        "beside": (
            write_raster(tmp_path / "far.tif", np.zeros((9, 9), np.float32), transform=north_up(left=0)),
            GridError,
            "beside the mask",
        ),
    }
    for path, kind, told in bad.values():
        with pytest.raises(kind, match=told):
            vectorize(mask, tmp_path / "out.gpkg", probabilities=path)
    with pytest.raises(OutputError, match="input"):
        vectorize(mask, tmp_path / "p.gpkg", probabilities=tmp_path / "p.gpkg", overwrite=True)
    assert not list(tmp_path.glob("*.gpkg")) and not list(tmp_path.glob(".*"))


def test_model_and_date_come_with_the_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = write_raster(tmp_path / "mask.tif", blobs())
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    vectorize(mask, tmp_path / "plain.parquet")
    plain = polygons(tmp_path / "plain.parquet")
    assert "model" not in plain and set(plain["date"]) == {datetime.date(1970, 1, 2)}
    with rasterio.open(mask, "r+") as raster:
        raster.update_tags(**{MODEL_TAG: "roofs", DATE_TAG: "2024-05-01"})
    vectorize(mask, tmp_path / "ours.parquet")
    ours = polygons(tmp_path / "ours.parquet")
    assert set(ours["model"]) == {"roofs"} and set(ours["date"]) == {datetime.date(2024, 5, 1)}
    assert set(ours["id"]) == set(plain["id"])


def test_an_image_tells_its_day(tmp_path: Path) -> None:
    image = write_raster(tmp_path / "image.tif", blobs())
    assert image_date(image) is None
    with rasterio.open(image, "r+") as raster:
        raster.update_tags(TIFFTAG_DATETIME="2023:07:09 12:00:00")
    assert image_date(image) == datetime.date(2023, 7, 9)
    with rasterio.open(image, "r+") as raster:
        raster.update_tags(ns="IMAGERY", ACQUISITIONDATETIME="2023-07-08 09:30:00")
    assert image_date(image) == datetime.date(2023, 7, 8)
