"""Finished blocks to the files that were asked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from gimseg import __version__
from gimseg.legend import LEGEND_TAG, UNLABELLED, Legend
from gimseg.parts import Parts
from gimseg.preflight import Plan
from gimseg.progress import Progress
from gimseg.rasters import new_raster
from gimseg.tiling import chunks, roi_shape

RUN_TAG = "gimseg_run"
"""Tag of a mask that names its run: `Plan.run_id`."""


def assemble(plan: Plan, parts: Parts, progress: Progress) -> np.ndarray:
    """Write the mask from finished blocks; pixels by value, int64 (256)."""
    counts = np.zeros(256, np.int64)
    legend = plan.legend
    total, done = float(np.prod(plan.lattice.shape)) / 1e6, 0.0
    writer = new_raster(
        plan.output,
        plan.geobox,
        nodata=UNLABELLED,
        overwrite=plan.options.overwrite,
        colours=legend.colours,
        tags=_tags(plan),
        category_names={0: "background", **dict(zip(legend.values, legend.names, strict=True))},
    )
    with writer as raster:
        # Whole tiles, always in the same order: the bytes do not tell how large the blocks were.
        for roi in chunks(plan.lattice.shape, 512, 4096):
            classes = parts.read(roi, plan.blocks.at(roi))[0]
            raster.write(classes, roi)
            counts += np.bincount(classes.ravel(), minlength=256)
            done += float(np.prod(roi_shape(roi))) / 1e6
            progress("write", done, total, "Mpx")
    return counts


def name_counts(counts: np.ndarray, legend: Legend) -> dict[str, int]:
    """Pixels by value, (256,), as pixels by class name."""
    values = {"background": 0, **dict(zip(legend.names, legend.values, strict=True)), "no data": UNLABELLED}
    return {name: int(counts[value]) for name, value in values.items()}


def _tags(plan: Plan) -> dict[str, str]:
    """Where the mask comes from. No time: the same run ends with the same bytes."""
    model = plan.identity["model"]
    return {
        "TIFFTAG_SOFTWARE": f"gimseg {__version__}",
        "gimseg_model": model["name"],
        "gimseg_model_fingerprint": model["fingerprint"],
        "gimseg_raster": Path(plan.raster.path).name,
        "gimseg_resolution": " ".join(f"{size:.9g}" for size in plan.resolution),
        "gimseg_window": " ".join(map(str, plan.lattice.window)),
        "gimseg_halo": str(plan.lattice.halo),
        "gimseg_backend": plan.engine.backend,
        RUN_TAG: plan.run_id,
        LEGEND_TAG: json.dumps(plan.legend.to_dict()),
    }
