"""Time and memory of `vectorize` against one pass of GDAL over the whole mask.

Run: python tests/benchmarks/bench_vectorize.py [SIDE]
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import Affine

WAYS = ("nothing", "trace", "vectorize", "shapes", "shapes and shape", "shapes, shape, write")


def write_mask(path: Path, side: int, *, tile: int = 512) -> None:
    """Buildings, one for each 2000 pixels, some rotated in steps, in a tiled GeoTIFF."""
    rng = np.random.default_rng(7)
    mask = np.zeros((side, side), np.uint8)
    for row, column in rng.integers(0, side - 40, (side * side // 2000, 2)):
        height, width, slant = rng.integers(8, 30, 3)
        for step in range(height):
            start = column + step * (slant % 4) // 6
            mask[row + step, start : start + width] = 1
    profile = {"tiled": True, "blockxsize": tile, "blockysize": tile, "compress": "deflate"}
    place = {"crs": "EPSG:32633", "transform": Affine(0.3, 0, 5e5, 0, -0.3, 5e6)}
    with rasterio.open(path, "w", "GTiff", side, side, 1, dtype="uint8", **place, **profile) as dataset:
        dataset.write(mask, 1)


def run(way: str, path: Path) -> None:
    """Do one way in this process; print count, seconds, peak MB."""
    import geopandas as gpd
    import shapely
    from rasterio.features import shapes

    from gimseg.masks import Mask
    from gimseg.tracing import join, read_strips
    from gimseg.vectorization import vectorize

    count = 0
    start = time.perf_counter()
    if way == "trace":
        count = 0
        mask = Mask.open(path)
        for some in join(strip for cut in mask.cuts(2048) for strip in read_strips(mask, 2048**2, 4, cut)):
            count += len(some.values)
    elif way == "vectorize":
        count = vectorize(path, path.with_suffix(".gpkg"), overwrite=True).count
    elif way.startswith("shapes"):
        with rasterio.open(path) as dataset:
            mask, transform = dataset.read(1), dataset.transform
        found = list(shapes(mask, mask=mask != 0, transform=transform))
        count = len(found)
        if way != "shapes":
            outlines = [shapely.geometry.shape(outline) for outline, _ in found]
        if way.endswith("write"):
            frame = gpd.GeoDataFrame({"class_id": [int(value) for _, value in found]}, geometry=outlines, crs=32633)
            frame.assign(area_m2=frame.area).to_file(path.with_suffix(".gpkg"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{count} {time.perf_counter() - start} {peak}")


def main(side: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask.tif"
        write_mask(path, side)
        base = 0.0
        print(f"{side} x {side} px\n{'way':24}{'polygons':>10}{'seconds':>10}{'MB above start':>16}")
        for way in WAYS:
            command = [sys.executable, __file__, way, str(path)]
            count, seconds, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            base = base or float(peak)
            print(f"{way:24}{int(count):10,}{float(seconds):10.2f}{float(peak) - base:16.0f}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        run(sys.argv[1], Path(sys.argv[2]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 4000)
