"""Predict a raster with a network that costs nothing, and print the peak memory of this process, MB.

python memory_of.py RASTER OUTPUT [RESOLUTION [all]]

``all``: with probabilities and uncertainty, everything on the raster's own grid.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from networks_for_tests import Brightness, model

from gimseg import openvino_backend
from gimseg.inference import Predictor
from gimseg.products import Products


def compute_in_torch() -> None:
    """Let no trial of backends choose one for the longer raster alone: OpenVINO takes some 80 MB more."""
    openvino_backend.is_installed = lambda: False


def main() -> None:
    compute_in_torch()
    raster, output, *more = sys.argv[1:]
    given = model(Brightness(127.5), bands=(1, 2, 3), mean=(0.0,) * 3, std=(1.0,) * 3, halo=32, window=1024)
    options: dict[str, Any] = {"resolution": float(more[0])} if more else {}
    if more[1:]:
        options |= {"match_input": True, "products": Products(probabilities=True, uncertainty="entropy")}
    Predictor(given).predict(raster, output, **options)
    print(peak_mb())


def peak_mb() -> int:
    """Of this program alone: what ``getrusage`` tells includes the peak of the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) // 1024  # type: ignore[index]


if __name__ == "__main__":
    main()
