"""Time and memory of `vectorize` against one pass of GDAL over the whole mask.

Run: python tests/benchmarks/bench_vectorize.py [SIDE ...] [--ways WAY ...] [--same]

Each way runs in a process of its own. Seconds are those of the clock and of all cores
together; memory is the peak of all its processes together, looked at fifty times a second,
and how far that is above an interpreter that has imported all. --same compares the polygons
of `vectorize` with those of `rasterio.features.shapes`, one by one.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import geopandas as gpd
import numpy as np
import rasterio
import shapely
from rasterio.features import shapes
from rasterio.transform import Affine

from gimseg.masks import Mask
from gimseg.tracing import join, read_strips
from gimseg.vectorization import vectorize

WAYS = ("trace", "vectorize", "shapes", "shapes and shape", "shapes, shape, geopandas", "gdal_polygonize")


def write_mask(path: Path, side: int, *, tile: int = 512) -> None:
    """Buildings, one for each 2000 pixels, some rotated in steps, some on others, in a tiled GeoTIFF."""
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


def with_gdal(way: str, path: Path) -> int:
    """One of the ways that see the whole mask at once; the number of polygons."""
    with rasterio.open(path) as dataset:
        mask, transform = dataset.read(1), dataset.transform
    found = list(shapes(mask, mask=mask != 0, transform=transform))
    if way != "shapes":
        outlines = [shapely.geometry.shape(outline) for outline, _ in found]
    if way.endswith("geopandas"):
        frame = gpd.GeoDataFrame({"class_id": [int(value) for _, value in found]}, geometry=outlines, crs=32633)
        frame.assign(area_m2=frame.area).to_file(path.with_suffix(".gdal.gpkg"))
    return len(found)


def run(way: str, path: Path) -> None:
    """Do one way in this process; print count, seconds on the clock and of all cores."""
    count = 0
    before = time.process_time()
    start = time.perf_counter()
    if way == "trace":
        mask = Mask.open(path)
        strips = (strip for cut in mask.cuts(2048) for strip in read_strips(mask, 2048 * 2048, 4, cut))
        count = sum(len(some.values) for some in join(strips))
    elif way == "vectorize":
        count = vectorize(path, path.with_suffix(".gpkg"), overwrite=True).count
    elif way == "gdal_polygonize":
        out = path.with_suffix(".polygonized.gpkg")
        out.unlink(missing_ok=True)
        command = ["gdal_polygonize.py", "-q", "-mask", str(path), str(path), str(out)]
        subprocess.run(command, check=True, capture_output=True)
        count = gpd.read_file(out, ignore_geometry=True).shape[0]
    elif way.startswith("shapes"):
        count = with_gdal(way, path)
    seconds = time.perf_counter() - start
    others = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{count} {seconds} {time.process_time() - before + others.ru_utime + others.ru_stime}")


def watched(command: list[str]) -> tuple[str, float]:
    """What a command prints, and the most memory, MB, that it and its children held at once."""
    peak = 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            peak = max(peak, resident_mb(process.pid))
            time.sleep(0.02)
        assert process.stdout is not None
        said = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{command} failed")
    return said, peak


def resident_mb(pid: int) -> float:
    """Of a process and its children; 0 once it has ended."""
    folder = Path("/proc") / str(pid)
    try:
        pages = int((folder / "statm").read_text().split()[1])
        children = [child for task in (folder / "task").iterdir() for child in (task / "children").read_text().split()]
    except (OSError, ValueError):
        return 0.0
    return pages * resource.getpagesize() / 1e6 + sum(resident_mb(int(child)) for child in children)


def same(path: Path) -> str:
    """Whether the layer holds the polygons of one pass of GDAL, each as often."""
    layer = gpd.read_file(path.with_suffix(".gpkg"), layer="polygons").geometry.values
    with rasterio.open(path) as dataset:
        mask, transform = dataset.read(1), dataset.transform
    ours, theirs = Counter(shapely.to_wkb(shapely.normalize(layer)).tolist()), Counter[bytes]()
    for outline, _ in shapes(mask, mask=mask != 0, transform=transform):
        theirs[shapely.to_wkb(shapely.normalize(shapely.geometry.shape(outline)))] += 1
    return "the same polygons" if ours == theirs else f"{(ours - theirs).total()} polygons differ"


def main(sides: list[int], ways: list[str], compare: bool) -> None:
    for side in sides:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "mask.tif"
            write_mask(path, side)
            base = 0.0
            columns = f"{'polygons':>10}{'seconds':>10}{'all cores':>10}{'MB':>8}{'above start':>13}"
            print(f"{side} x {side} px\n{'way':26}{columns}")
            for way in ["nothing", *ways]:
                if way == "gdal_polygonize" and shutil.which("gdal_polygonize.py") is None:
                    continue
                command = [sys.executable, __file__, "--way", way, str(path)]
                said, peak = watched(command)
                count, seconds, cpu = (float(text) for text in said.split())
                base = base or peak
                print(f"{way:26}{count:10,.0f}{seconds:10.2f}{cpu:10.2f}{peak:8.0f}{peak - base:13.0f}", flush=True)
            if compare:
                print(f"vectorize and shapes give {same(path)}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--way", nargs=2, metavar=("WAY", "MASK"))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--same", action="store_true")
    parser.add_argument("sides", type=int, nargs="*", default=[4000])
    given = parser.parse_args()
    if given.way:
        run(given.way[0], Path(given.way[1]))
    else:
        main(given.sides, given.ways, given.same)
