"""Real label layers, orderly and odd, read and burn as they should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from odc.geo.geobox import GeoBox

from gimseg.errors import VectorError
from gimseg.legend import Legend
from gimseg.vectors import Shapes, check_overlap, open_layer

pytestmark = pytest.mark.real_data

SPACENET = "buildings_int16/SN7_global_monthly_2020_01_mosaic_L15-0331E-1257N_1327_3160_13_"
FIELDS_TIF = "fields_s2/BEFL-TEST-s2_2023-05-01_2023-07-01_B08-B04-B03_min_byte.tif"


def grid_of(path: Path) -> GeoBox:
    with rasterio.open(path) as raster:
        return GeoBox(raster.shape, raster.transform, raster.crs)


def legend_of(field: str, *classes: object) -> Legend:
    return Legend.from_dict({"field": field, "classes": list(classes)})


def shares(shapes: Shapes, grid: GeoBox) -> dict[int, int]:
    """Value -> pixels."""
    values, counts = np.unique(shapes.burn(grid), return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def test_a_shapefile_and_a_geopackage_of_the_same_trees_burn_alike(real_data: Path) -> None:
    grid = grid_of(real_data / "deadwood/R70C21.tif")
    legend = legend_of("label", "Standing", "Fallen")
    burnt = [
        open_layer(real_data / f"deadwood/R70C21.{end}").shapes(grid, legend).burn(grid) for end in ("shp", "gpkg")
    ]
    assert (burnt[0] == burnt[1]).all() and set(np.unique(burnt[0])) == {0, 1, 2}


@pytest.mark.parametrize("site", ["zanzibar_tz", "nairobi_ke", "kampala_ug", "banepa_np"])
@pytest.mark.parametrize("scene", ["00", "01"])
def test_buildings_in_degrees_meet_imagery_in_metres(real_data: Path, site: str, scene: str) -> None:
    grid = grid_of(real_data / f"buildings/{site}_{scene}.tif")
    layer = open_layer(real_data / f"buildings/{site}_labels.geojson")
    check_overlap(layer, grid)
    shapes = layer.shapes(grid)
    assert 0 < len(shapes) <= layer.count
    assert 0.02 < shapes.burn_mask(grid).mean() < 0.7


def test_the_one_broken_building_is_repaired(real_data: Path) -> None:
    repaired = sum(
        open_layer(path).shapes(grid_of(scene)).counts["repaired"]
        for path in (real_data / "buildings").glob("*.geojson")
        for scene in (real_data / "buildings").glob(path.name.replace("labels.geojson", "0[01].tif"))
    )
    assert repaired == 1


def test_labels_far_larger_than_the_image(real_data: Path) -> None:
    grid = grid_of(real_data / f"{SPACENET}clipped.tif")
    layer = open_layer(real_data / f"{SPACENET}Buildings.geojson")
    shapes = layer.shapes(grid)
    assert (layer.count, len(shapes)) == (2108, 525)
    assert shapes.counts["read"] < 600, "the box is given to the driver"


def test_dirty_attributes_are_counted_and_unlabelled(real_data: Path) -> None:
    grid = grid_of(real_data / "banepa_big/banepa_big.tif")
    layer = open_layer(real_data / "banepa_big/banepa_osm_buildings_partial.geojson")
    legend = legend_of("roof:material", {"name": "concrete", "values": ["concrete", "concerte"]}, "tin")
    shapes = layer.shapes(grid, legend)
    assert len(shapes) == 1466 and shapes.unknown == {"null": 150, "clay_tiles": 16, "metal": 2}
    assert set(shares(shapes, grid)) == {0, 1, 2, 255}
    window = grid[4000:4512, 3000:3512]
    assert (shapes.burn(window) == shapes.burn(grid)[4000:4512, 3000:3512]).all()
    with pytest.raises(VectorError, match="did you mean 'roof:material'"):
        layer.shapes(grid, legend_of("roof_material", "tin"))


def test_a_null_geometry_and_a_table_of_styles(real_data: Path) -> None:
    grid = grid_of(real_data / FIELDS_TIF)
    layer = open_layer(real_data / "fields_s2/fields_BEFL-s2-fields-2023_polygons.gpkg")
    assert (layer.layer, layer.count) == ("polygons", 199)
    assert layer.notes == ("1 features without a geometry are left out",)
    assert len(layer.shapes(grid)) == 154
    with pytest.raises(VectorError, match="no geometries"):
        open_layer(layer.path, layer="layer_styles")


def test_areas_of_interest_name_their_split(real_data: Path) -> None:
    grid = grid_of(real_data / FIELDS_TIF)
    layer = open_layer(f"{real_data}/fields_s2/fields_BEFL-s2-fields-2023_locations.gpkg|layername=locations")
    shapes = layer.shapes(grid, Legend.splits("traindata_type"))
    assert layer.count == 16 and {0, 1, 2} <= set(shares(shapes, grid)) and not shapes.partial


def test_sparse_classes(real_data: Path) -> None:
    grid = grid_of(real_data / "landcover_s2/sen2_20210527_aber.tif")
    legend = legend_of("class", "forest", "grass", "urban", "water")
    shapes = open_layer(real_data / "landcover_s2/aber_class_samples.gpkg").shapes(grid, legend)
    assert len(shapes) == 40 and not shapes.unknown and set(shares(shapes, grid)) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(("part", "unknown"), [(1, {}), (2, {"255": 1})])
def test_codes_as_numbers(real_data: Path, part: int, unknown: dict[str, int]) -> None:
    grid = grid_of(real_data / f"landcover_aerial/23322E759967N_clipped_1m_{part}of2.tif")
    legend = legend_of("Quatreclasses", *[{"name": f"code {code}", "values": [code]} for code in (1, 2, 3, 4)])
    shapes = open_layer(real_data / "landcover_aerial/BakerLake_2017_clipped.gpkg").shapes(grid, legend)
    assert shapes.unknown == unknown
    assert set(shares(shapes, grid)) == {0, 1, 2, 3, 4} | ({255} if unknown else set())


def test_one_label_in_three_files_and_two_crs(real_data: Path) -> None:
    grid = grid_of(real_data / "odd/planet4band/image.tif")
    names = ("label.geojson", "label/label.shp", "label_utm.geojson")
    masks = [open_layer(real_data / "odd/planet4band" / name).shapes(grid).burn(grid) for name in names]
    assert masks[0].sum() > 2000 and all((mask != masks[0]).sum() <= 2 for mask in masks)


def test_a_shapefile_without_prj_needs_its_crs(real_data: Path) -> None:
    grid = grid_of(real_data / "odd/heights/hag.tif")
    path = real_data / "odd/heights/buildings.shp"
    with pytest.raises(VectorError, match=r"no CRS.*--vector-crs"):
        open_layer(path).shapes(grid)
    declared = open_layer(path, crs="EPSG:4326").shapes(grid).burn(grid)
    stated = open_layer(real_data / "odd/heights/buildings.geojson").shapes(grid).burn(grid)
    assert stated.sum() > 6000 and (declared == stated).mean() > 0.9999


def test_metres_that_pass_for_degrees(real_data: Path) -> None:
    grid = grid_of(real_data / "odd/sample_geotiff_custom_proj.tif")
    path = real_data / "odd/geotiff_custom_proj_labels.geojson"
    for use in (open_layer(path).shapes, open_layer(path).meets):
        with pytest.raises(VectorError, match=r"in degrees, but its coordinates reach -663347"):
            use(grid)
    layer = open_layer(path, crs=grid.crs)
    check_overlap(layer, grid)
    assert "as declared" in layer.notes[0] and layer.shapes(grid).burn(grid).sum() > 7000


def test_nothing_in_the_file(real_data: Path) -> None:
    with pytest.raises(VectorError, match="0 bytes"):
        open_layer(real_data / "odd/empty.geojson")


def test_the_virtual_raster_is_no_vector(real_data: Path) -> None:
    for name in ("RGB.byte.gcp.vrt", "RGB.byte.tif"):
        with pytest.raises(VectorError, match="is not Shapefile"):
            open_layer(real_data / "odd" / name)


def test_trees_are_points(real_data: Path) -> None:
    grid = grid_of(real_data / "trees_rgbn/riverside_2020_0.tif")
    shapes = open_layer(real_data / "trees_rgbn/riverside_2020_0.geojson").shapes(grid)
    assert shapes.partial and shares(shapes, grid) == {0: 256 * 256 - 44, 1: 44}


def test_labels_of_elsewhere(real_data: Path) -> None:
    grid = grid_of(real_data / "deadwood/R70C21.tif")
    with pytest.raises(VectorError, match=r"lies at -77\.05.*raster at 25\.18.*EPSG:4326"):
        check_overlap(open_layer(real_data / "odd/heights/buildings.geojson"), grid)
