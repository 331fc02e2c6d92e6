"""Predict a raster with a network that costs nothing, and print the peak memory of this process, MB.

python memory_of.py RASTER OUTPUT [RESOLUTION]
"""

from __future__ import annotations

import resource
import sys

from networks_for_tests import Brightness, model

from gimseg.inference import Predictor


def main() -> None:
    raster, output, *resolution = sys.argv[1:]
    given = model(Brightness(127.5), bands=(1, 2, 3), mean=(0.0,) * 3, std=(1.0,) * 3, halo=32, window=1024)
    options = {"resolution": float(resolution[0])} if resolution else {}
    Predictor(given).predict(raster, output, **options)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


if __name__ == "__main__":
    main()
