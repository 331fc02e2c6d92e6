"""Score a network that costs nothing on a raster, and print the peak memory of this process, MB.

python memory_of_scores.py RASTER TRUTH
"""

from __future__ import annotations

import sys

from memory_of import compute_in_torch, peak_mb
from networks_for_tests import Brightness, model

from gimseg import Dataset, evaluate


def main() -> None:
    compute_in_torch()
    raster, truth = sys.argv[1:]
    given = model(Brightness(127.5), bands=(1, 2, 3), mean=(0.0,) * 3, std=(1.0,) * 3, halo=32, window=1024)
    evaluate(given, Dataset("d", 1.0, [raster], [truth]))
    print(peak_mb())


if __name__ == "__main__":
    main()
