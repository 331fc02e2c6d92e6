"""Synthetic scenes: the truth lies on the picture, the same seed gives the same scene, files read back."""

from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from rasterio.features import rasterize
from scipy.ndimage import binary_dilation, mean

from gimseg.errors import GimsegError, GridError, OutputError
from gimseg.layouts import MATERIALS, STYLES, TURF, draw_layout
from gimseg.scenes import Scene, make_scene, write_scene


@pytest.fixture(scope="module")
def village() -> Scene:
    return make_scene(1, (512, 640))


@pytest.fixture(scope="module")
def corner() -> Scene:
    return make_scene(5, (128, 128))


def burnt(scene: Scene) -> np.ndarray:
    return rasterize(
        [(footprint, 1) for footprint in scene.buildings.geometry],
        scene.valid.shape,
        transform=scene.geobox.affine,
        dtype="uint8",
    ).astype(bool)


def test_same_seed_same_bytes(corner: Scene) -> None:
    again = make_scene(5, (128, 128))
    assert again.image.tobytes() == corner.image.tobytes()
    assert again.buildings.equals(corner.buildings)
    assert again.objects.equals(corner.objects)
    assert again.geobox == corner.geobox


def test_other_seeds_give_other_layouts_in_other_places(corner: Scene) -> None:
    other = make_scene(6, (128, 128))
    assert (other.image != corner.image).mean() > 0.5
    assert not shapely.box(*other.buildings.total_bounds).intersects(shapely.box(*corner.buildings.total_bounds))


@pytest.mark.parametrize("pair", [(0, 1), (0, 63), (0, 64), (7, 4095), (130, 131)])
def test_no_two_seeds_share_ground(pair: tuple[int, int]) -> None:
    one, two = (make_scene(seed, (16, 16)).geobox.extent.geom for seed in pair)
    assert one.distance(two) > 1500


def test_picture_and_validity_lie_on_the_geobox(village: Scene) -> None:
    assert village.image.shape == (3, 512, 640)
    assert village.image.dtype == np.uint8
    assert village.valid.shape == tuple(village.geobox.shape) == (512, 640)
    assert village.geobox.crs == "EPSG:32637"
    assert village.geobox.resolution.xy == (0.3, -0.3)
    assert village.buildings.crs == village.objects.crs == "EPSG:32637"


def test_border_is_constant_and_nothing_else_is(village: Scene) -> None:
    assert 0.85 < village.valid.mean() < 0.99
    assert (village.image[:, ~village.valid] == 255).all()
    assert village.image[:, village.valid].max() < 255
    assert make_scene(1, (64, 64), border=False).valid.all()


def test_no_building_on_the_border(village: Scene) -> None:
    assert not (burnt(village) & ~village.valid).any()
    assert village.geobox.extent.geom.buffer(1e-6).covers(shapely.unary_union(village.buildings.geometry))


def test_footprints_lie_on_roofs(village: Scene) -> None:
    """Colours change where the footprints have their edges, and moved footprints fit worse."""
    roofs = burnt(village)
    image = village.image.astype(float)
    numbers = range(1, len(village.buildings) + 1)

    def colours(growth_m: float) -> np.ndarray:
        """Mean colour (3, buildings) of a seam that begins `growth_m` outside each footprint."""
        begin, end = (village.buildings.buffer(at) for at in (growth_m, growth_m + 0.6))
        seams = [(seam, number) for seam, number in zip(end.difference(begin), numbers, strict=True) if seam]
        labels = rasterize(seams, roofs.shape, transform=village.geobox.affine, dtype="int32")
        with np.errstate(invalid="ignore"):  # a sliver at the border may have no seam
            return np.array([mean(band, labels, numbers) for band in image])

    change = np.abs(colours(-1.0) - colours(0.4)).sum(axis=0)
    assert np.nanmedian(change) > 60

    def step_at_edges(roofs: np.ndarray) -> float:
        """Mean step of the picture from row to row where `roofs` begin or end."""
        return float(np.abs(np.diff(image, axis=1)).sum(axis=0)[np.diff(roofs.astype(np.int8), axis=0) != 0].mean())

    for shift in (-3, 3):
        assert step_at_edges(roofs) > 1.5 * step_at_edges(np.roll(roofs, shift, axis=0))


def test_shadows_fall_outside_on_the_side_away_from_the_sun(village: Scene) -> None:
    roofs = burnt(village)
    dark = village.image.astype(float).mean(axis=0)
    ring = ~binary_dilation(roofs, iterations=1) & village.valid
    # The sun stands between east-south-east and south-south-east.
    north_west = np.roll(roofs, (-4, -4), axis=(0, 1)) & ring
    south_east = np.roll(roofs, (4, 4), axis=(0, 1)) & ring
    assert np.median(dark[north_west]) < 0.75 * np.median(dark[south_east])


def test_footprints_are_simple_valid_and_apart(village: Scene) -> None:
    footprints = village.buildings.geometry
    assert footprints.is_valid.all()
    assert (footprints.geom_type == "Polygon").all()
    assert footprints.area.min() > 0.5
    assert set(village.buildings["material"]) <= set(MATERIALS)
    assert shapely.unary_union(footprints).area == pytest.approx(footprints.area.sum(), rel=1e-9)


def test_objects_have_kinds(village: Scene) -> None:
    assert {"road", "field", "tree", "car"} <= set(village.objects["kind"])
    assert village.objects.geometry.is_valid.all()


@pytest.mark.parametrize("seed", range(6))
def test_a_village_has_eighty_to_a_hundred_and_fifty_buildings(seed: int) -> None:
    side = 1024 * 0.3
    layout = draw_layout(seed, side + 50, side + 50, STYLES["village"])
    frame = shapely.box(25, 25, 25 + side, 25 + side)
    assert 75 <= sum(building.footprint.intersects(frame) for building in layout.buildings) <= 155


def test_styles_differ_in_how_much_is_built() -> None:
    built = {}
    for name, style in STYLES.items():
        layouts = [draw_layout(seed, 260, 260, style) for seed in range(2)]
        built[name] = sum(building.footprint.area for layout in layouts for building in layout.buildings)
    assert built["farmland"] < 0.6 * built["village"] < built["village"] < 0.8 * built["town"]


def test_turf_roofs_and_clay_floors_are_of_the_highland_alone() -> None:
    for name, style in STYLES.items():
        layout = draw_layout(3, 260, 260, style)
        turf = [building for building in layout.buildings if building.material == TURF]
        assert (0.3 < len(turf) / len(layout.buildings) < 0.7) == (name == "highland") == (len(layout.floors) > 5)
        assert bool(turf) == bool(layout.floors) == (name == "highland")
        houses = shapely.unary_union([building.footprint for building in layout.buildings])
        assert not any(floor.to_polygon().intersects(houses) for floor in layout.floors)


@pytest.mark.parametrize("seed", range(5))
def test_small_scenes_show_a_building(seed: int) -> None:
    scene = make_scene(seed, (128, 128))
    assert 0.01 < burnt(scene).mean() < 0.7


def test_one_layout_at_every_resolution() -> None:
    fine, coarse = make_scene(3, (256, 256), resolution=0.25), make_scene(3, (64, 64), resolution=1.0)
    assert fine.geobox.extent.geom.equals(coarse.geobox.extent.geom)
    assert fine.buildings.geometry.geom_equals(coarse.buildings.geometry).all()
    assert fine.valid.mean() == pytest.approx(coarse.valid.mean(), abs=0.01)


@pytest.mark.parametrize("shape", [(16, 16), (40, 700), (300, 20)])
def test_odd_shapes(shape: tuple[int, int]) -> None:
    scene = make_scene(2, shape, resolution=0.5, style="town")
    assert scene.image.shape == (3, *shape)


def test_refusals_say_what_to_give() -> None:
    with pytest.raises(GridError, match="EPSG:4326 is not a projected CRS in metres"):
        make_scene(1, (32, 32), crs="EPSG:4326")
    with pytest.raises(GridError, match="EPSG:2263 is not a projected CRS in metres"):
        make_scene(1, (32, 32), crs="EPSG:2263")
    with pytest.raises(GridError, match="at least 16 x 16"):
        make_scene(1, (8, 32))
    with pytest.raises(GridError, match=r"0\.05 to 2 m"):
        make_scene(1, (32, 32), resolution=5)
    with pytest.raises(GimsegError, match="village, farmland, town"):
        make_scene(1, (32, 32), style="city")


@pytest.mark.parametrize("suffix", [".geojson", ".shp", ".gpkg", ".fgb"])
@pytest.mark.parametrize("labels_crs", ["EPSG:4326", "EPSG:3857"])
def test_what_is_written_reads_back(corner: Scene, tmp_path: Path, suffix: str, labels_crs: str) -> None:
    paths = write_scene(corner, tmp_path, "corner", labels_crs=labels_crs, labels_format=suffix)
    assert paths == (tmp_path / "corner.tif", tmp_path / f"corner_labels{suffix}")
    with rasterio.open(paths.image) as raster:
        assert np.array_equal(raster.read(), corner.image)
        assert raster.crs == "EPSG:32637"
        assert raster.transform == corner.geobox.affine
        assert raster.nodata is None
        assert (raster.dataset_mask() == 255).all()
        assert raster.profile["compress"] == "deflate" and raster.profile["tiled"]
    labels = geopandas.read_file(paths.labels)
    assert labels.crs == labels_crs
    expected = corner.buildings.to_crs(labels_crs)
    # FlatGeobuf stores features in the order of their index.
    labels, expected = (frame.iloc[np.argsort(frame.bounds["minx"].round(7))] for frame in (labels, expected))
    assert list(labels["material"]) == list(expected["material"])
    difference = shapely.hausdorff_distance(labels.geometry.values, expected.geometry.values)
    assert difference.max() < 1e-6


def test_nothing_is_overwritten_unasked(corner: Scene, tmp_path: Path) -> None:
    write_scene(corner, tmp_path, "corner")
    with pytest.raises(OutputError, match="--overwrite"):
        write_scene(corner, tmp_path, "corner")
    write_scene(corner, tmp_path, "corner", overwrite=True)
    with pytest.raises(OutputError, match="no label format"):
        write_scene(corner, tmp_path, "other", labels_format=".kml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corner.tif", "corner_labels.geojson"]
