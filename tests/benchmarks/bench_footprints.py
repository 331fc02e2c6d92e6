"""Outlines of buildings against the footprints that people drew: as traced, simplified, with right angles.

Drawn footprints are burnt at 0.3 m, once as they are and once with the blur and the ragged
edges that a network's mask has, traced, and cleaned in each way.

Run: python tests/benchmarks/bench_footprints.py [FOLDER OF REAL DATA]
With the library buildingregulariser installed beside gimseg, it is measured too.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely
from rasterio.features import rasterize
from scipy.ndimage import gaussian_filter

from gimseg.right_angles import right_angled
from gimseg.tracing import trace

PIXEL = 0.3
TOLERANCE = 0.5  # metres, the default of buildingregulariser
LEAST_AREA = 15.0

Way = Callable[[np.ndarray], np.ndarray]


def footprints(folder: Path) -> np.ndarray:
    """Valid drawn footprints in metres, without the doubles."""
    files = [
        *sorted((folder / "buildings").glob("*_labels.geojson")),
        *(folder / "banepa_big").glob("*partial.geojson"),
    ]
    found = []
    for path in files:
        layer = gpd.read_file(path).explode()
        metres = layer.to_crs(layer.estimate_utm_crs()).geometry.values
        kept = shapely.is_valid(metres) & (shapely.get_type_id(metres) == 3) & (shapely.area(metres) >= LEAST_AREA)
        found.append(metres[kept])
    drawn = np.concatenate(found)
    return drawn[np.unique(np.round(shapely.bounds(drawn), 1), axis=0, return_index=True)[1]]


def traced(drawn: np.ndarray, ragged: bool) -> np.ndarray:
    """The outline of each footprint's own mask, in metres; None where the mask falls apart to nothing."""
    rng = np.random.default_rng(3)
    outlines = np.empty(len(drawn), object)
    for place, footprint in enumerate(drawn):
        left, bottom, right, top = footprint.bounds
        # Footprints lie on the pixel grid as chance has it.
        x, y = left - 3 - rng.random() * PIXEL, bottom - 3 - rng.random() * PIXEL
        shape = int((top - y + 3) / PIXEL), int((right - x + 3) / PIXEL)
        mask = rasterize([footprint], shape, transform=(PIXEL, 0, x, 0, PIXEL, y), dtype=np.uint8)
        if ragged:
            noise = gaussian_filter(rng.normal(size=shape), 2)
            mask = (gaussian_filter(mask.astype(float), 2) + 0.12 * noise / noise.std() > 0.5).astype(np.uint8)
        parts = np.concatenate([some.polygons for some in trace([mask])])
        if len(parts):
            largest = parts[shapely.area(parts).argmax()]
            outlines[place] = shapely.transform(largest, lambda xy, origin=(x, y): xy * PIXEL + origin)
    return outlines


def main_angle(polygons: np.ndarray) -> np.ndarray:
    """Of the smallest rectangle around each, degrees modulo 90."""
    corners = [shapely.get_coordinates(one)[:2] for one in shapely.minimum_rotated_rectangle(polygons)]
    x, y = np.array([b - a for a, b in corners]).T
    return np.degrees(np.arctan2(y, x)) % 90


def regularised(polygons: np.ndarray) -> np.ndarray:
    return right_angled(polygons, TOLERANCE)[0]


def by_the_library(polygons: np.ndarray) -> np.ndarray:
    from buildingregulariser import regularize_geodataframe

    frame = gpd.GeoDataFrame({"place": np.arange(len(polygons))}, geometry=polygons, crs=32645)
    done = regularize_geodataframe(frame, simplify_tolerance=TOLERANCE, num_cores=1)
    done = done.explode().drop_duplicates("place").set_index("place")
    return done.geometry.reindex(frame["place"]).values


def row(name: str, way: Way, outlines: np.ndarray, drawn: np.ndarray) -> None:
    start = time.process_time()
    made = np.asarray(way(outlines), object)
    seconds = time.process_time() - start
    there = ~shapely.is_missing(made) & shapely.is_valid(made)
    made, truth = made[there], drawn[there]
    common = shapely.area(shapely.intersection(made, truth))
    iou = common / (shapely.area(made) + shapely.area(truth) - common)
    angle = np.abs((main_angle(made) - main_angle(truth) + 45) % 90 - 45)
    corners = shapely.get_num_coordinates(made) - 1 - shapely.get_num_interior_rings(made)
    print(
        f"{name:30}{iou.mean():9.3f}{np.median(iou):9.3f}{corners.mean():10.1f}"
        f"{shapely.hausdorff_distance(made, truth).mean():11.2f}{np.median(angle):10.2f}{len(made):8} "
        f"{len(outlines) / max(seconds, 1e-9):10,.0f}",
        flush=True,
    )


def main(folder: Path) -> None:
    if not folder.is_dir():
        print(f"no real data in {folder}: nothing is measured")
        return
    drawn = footprints(folder)
    simplified: Way = lambda polygons: shapely.simplify(polygons, TOLERANCE)  # noqa: E731
    ways: dict[str, Way] = {"as traced": lambda polygons: polygons, "simplified": simplified}
    ways["right angles"] = regularised
    if importlib.util.find_spec("buildingregulariser"):
        ways["buildingregulariser"] = by_the_library
    for ragged in (False, True):
        outlines = traced(drawn, ragged)
        there = ~shapely.is_missing(outlines)
        print(f"\n{there.sum()} footprints, {'ragged' if ragged else 'clean'} masks of {PIXEL} m")
        print(
            f"{'':30}{'mean IoU':>9}{'median':>9}{'vertices':>10}{'Hausdorff':>11}{'angle':>10}{'valid':>8}{'a s':>10}"
        )
        row("drawn", lambda polygons, same=drawn[there]: same, outlines[there], drawn[there])
        for name, way in ways.items():
            row(name, way, outlines[there], drawn[there])
        share = right_angled(outlines[there], TOLERANCE)[1].mean()
        print(f"{share:.1%} of the polygons got right angles")


if __name__ == "__main__":
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
