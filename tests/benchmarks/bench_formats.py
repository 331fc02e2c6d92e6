"""Features a second into each format, and what each attribute costs.

Run: python tests/benchmarks/bench_formats.py [COUNT]
"""

from __future__ import annotations

import datetime
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
import shapely
from pyproj import CRS
from rasterio.transform import Affine

from gimseg.attributes import Attributes, polygon_ids
from gimseg.cleaning import Cleaned
from gimseg.confidence import Probabilities
from gimseg.ground import Ground
from gimseg.origins import Origin
from gimseg.vector_output import write_features

ENDINGS = (".gpkg", ".fgb", ".shp", ".parquet", ".geojson", ".geojsonl")
PLACE = Affine(0.3, 0, 5e5, 0, -0.3, 5e6)
STAIRS = np.array(
    [(0, 0), (9, 0), (9, 2), (11, 2), (11, 7), (13, 7), (13, 12), (4, 12), (4, 8), (2, 8), (2, 5), (0, 5)]
)
SIDE = 8000


def quickest(work: Callable[[], object], times: int = 3) -> float:
    """Seconds of the best of some runs."""
    took = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    return min(took)


def main(count: int) -> None:
    rng = np.random.default_rng(7)
    corners = rng.integers(0, SIDE - 20, (count, 2))
    corners = corners[np.argsort(corners[:, 1])]
    polygons = shapely.polygons([STAIRS + corner for corner in corners])
    codes, names = np.ones(count, np.int64), np.full(count, "building", object)
    with tempfile.TemporaryDirectory() as folder:
        shares = Path(folder) / "p.tif"
        profile = {"dtype": "uint8", "tiled": True, "compress": "deflate", "crs": "EPSG:32633", "transform": PLACE}
        with rasterio.open(shares, "w", "GTiff", SIDE, SIDE, 1, **profile) as raster:
            raster.write(np.kron(rng.integers(0, 250, (SIDE // 8, SIDE // 8)), np.ones((8, 8))).astype(np.uint8), 1)
            raster.scales = [0.004]
        ground = Ground.of(PLACE, CRS("EPSG:32633").to_wkt(), (SIDE, SIDE))
        probabilities = Probabilities.open(shares, ground, (SIDE, SIDE))
        placed = ground.place(polygons)
        print(f"{count:,} polygons of {len(STAIRS) + 1} vertices, {SIDE} x {SIDE} px\n{'':24}{'polygons/s':>12}")
        parts: dict[str, Callable[[], object]] = {
            "id": lambda: polygon_ids(polygons, codes, PLACE),
            "area and perimeter": lambda: ground.measure(placed),
            "confidence": lambda: probabilities.means(placed, names),
        }
        for name, work in parts.items():
            print(f"{name:24}{count / quickest(work):12,.0f}", flush=True)
        attributes = Attributes(ground, Origin("model", datetime.date(2026, 1, 1)), probabilities)
        table = attributes.table(Cleaned(polygons, codes, np.zeros(count, bool)), codes, names)
        table = table.rename(columns={"perimeter_m": "perim_m"})
        fields = {name.replace("perimeter_m", "perim_m"): kind for name, kind in attributes.fields.items()}
        for ending in ENDINGS:
            path = Path(folder) / f"out{ending}"
            chunks = [table[start : start + 10_000] for start in range(0, count, 10_000)]
            took = quickest(lambda path=path, chunks=chunks: write_features(path, chunks, fields=fields, crs=table.crs))  # type: ignore[misc]
            print(f"write {ending:18}{count / took:12,.0f}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50_000)
