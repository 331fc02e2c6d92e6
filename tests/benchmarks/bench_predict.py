"""`gimseg predict` of a real orthophoto by the built-in model: seconds, peak memory, polygons, IoU.

    python tests/benchmarks/bench_predict.py [FOLDER]

FOLDER holds `banepa_big.tif`, `banepa_osm_buildings_partial.geojson` and
`banepa_labelled_aoi.geojson`; without it, the real imagery beside the checkout.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import rasterio

from gimseg import Dataset, evaluate, vectorize

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data" / "banepa_big"


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else BESIDE
    if not folder.is_dir():
        print(f"skipped: needs the real imagery of {folder.name}")
        return
    with tempfile.TemporaryDirectory() as work:
        mask, polygons = Path(work) / "mask.tif", Path(work) / "polygons.shp"
        command = ["predict", str(folder / "banepa_big.tif"), "--nodata", "auto", "-o", str(mask), "-o", str(polygons)]
        started = time.monotonic()
        subprocess.run([sys.executable, "-m", "gimseg", *command, "--quiet"], check=True)
        seconds = time.monotonic() - started
        peak_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        with rasterio.open(mask) as raster, rasterio.open(folder / "banepa_big.tif") as image:
            sizes = [dataset.width * dataset.height / 1e6 for dataset in (image, raster)]
        count = vectorize(mask, Path(work) / "again.gpkg").count
        truth = Dataset(
            "banepa_big",
            0.5,
            [folder / "banepa_big.tif"],
            [folder / "banepa_osm_buildings_partial.geojson"],
            [folder / "banepa_labelled_aoi.geojson"],
            nodata="auto",
        )
        scores = evaluate(mask, truth).of_split()
    print(f"image {sizes[0]:.1f} Mpx, mask {sizes[1]:.1f} Mpx, {seconds:.1f} s in all ({sizes[1] / seconds:.2f} Mpx/s)")
    print(f"peak memory {peak_mb:.0f} MB, {count} polygons")
    print(f"inside the labelled AoI: IoU {scores.iou[1]:.3f}, precision {scores.precision[1]:.3f}, ", end="")
    print(f"recall {scores.recall[1]:.3f}")


if __name__ == "__main__":
    main()
