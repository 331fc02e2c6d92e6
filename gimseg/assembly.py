"""Finished blocks to the files that were asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import numpy as np

from gimseg import __version__
from gimseg.freed_memory import give_back_freed_memory
from gimseg.imagery import raster_files
from gimseg.legend import LEGEND_TAG, UNLABELLED, Legend
from gimseg.matching import MatchedPlanes, ReadPlanes
from gimseg.origins import DATE_TAG, MODEL_TAG, image_date
from gimseg.outputs import move_family
from gimseg.parts import Parts
from gimseg.preflight import Plan
from gimseg.products import SCALE
from gimseg.progress import Progress
from gimseg.rasters import Bands, RasterWriter, Roi, new_raster
from gimseg.refined_planes import RefinedPlanes, pixel_sides
from gimseg.renewal import FINGERPRINT_TAG, REFINE_TAG
from gimseg.tiling import chunks, roi_shape

RUN_TAG = "gimseg_run"
"""Tag of a mask that names its run: `Plan.run_id`."""
LEVELS_TAG = "gimseg_levels"
"""Tag of a mask whose raster was normalised by its own statistics: mean and deviation of each band."""
OLDER_TAG = "gimseg_older_model"
"""Tag of a mask of which a part only was predicted again: what made the rest."""


def assemble(plan: Plan, parts: Parts, progress: Progress) -> np.ndarray:
    """Write the mask, and what else was asked for, from finished blocks; pixels by value, int64 (256).

    All files are made in the folder of the parts and appear together, the mask last.
    """
    give_back_freed_memory()
    ready = parts.folder / "ready"
    shutil.rmtree(ready, ignore_errors=True)
    ready.mkdir()
    counts = np.zeros(256, np.int64)
    total, done = float(np.prod(plan.shape)) / 1e6, 0.0
    read = plane_reader(plan, _together(plan, lambda roi: parts.read(roi, plan.blocks.at(roi))))
    with ExitStack() as stack:
        files = [(planes, stack.enter_context(writer)) for planes, writer in _writers(plan, ready)]
        # Whole tiles, always in the same order: the bytes do not tell how large the blocks were.
        for roi in chunks(plan.shape, *_region(plan)):
            values = read(roi)
            for planes, raster in files:
                raster.write(values[planes], roi)
            counts += np.bincount(values[0].ravel(), minlength=256)
            done += float(np.prod(roi_shape(roi))) / 1e6
            progress("write", done, total, "Mpx")
    move_family(ready, plan.output)
    return counts


def _together(plan: Plan, read: ReadPlanes) -> ReadPlanes:
    """Reads what was predicted, and from the older mask what was not to be."""
    renewal = plan.renewal
    if renewal is None:
        return read

    def read_both(roi: Roi) -> np.ndarray:
        new = renewal.mask(roi)
        if new.all():
            return read(roi)
        older = renewal.older.read(roi, plan.planes, plane_slices(plan))
        return np.where(new, read(roi), older) if new.any() else older

    return read_both


def _region(plan: Plan) -> tuple[int, int]:
    """Rows and columns that are written at once: more where much around them is read too."""
    chain = plan.options.refinement
    return (2048, 4096) if chain.steps and chain.margin(pixel_sides(chain, plan.target)) > 128 else (512, 4096)


def plane_reader(plan: Plan, read: ReadPlanes) -> ReadPlanes:
    """Reads planes on the grid of the mask from those that were predicted."""
    if plan.matches:
        read = _matched(plan, read)
    chain = plan.options.refinement
    if not chain.steps:
        return read
    image = plan.view.on(plan.target).read if plan.matches else plan.view.read
    return RefinedPlanes(read, chain, plan.target, plan.products, plan.recipe, image).read


def _matched(plan: Plan, read: ReadPlanes) -> ReadPlanes:
    matched = MatchedPlanes(read, plan.geobox, plan.target, plan.products, plan.recipe)

    def read_matched(roi: Roi) -> np.ndarray:
        # Which pixels hold an image is known to the last one: it is asked of the input itself.
        wanted = plan.raster.file.read(roi).valid
        if plan.aoi is not None:
            wanted = wanted & plan.aoi.burn_mask(plan.target[roi])
        return matched.read(roi, wanted)

    return read_matched


def plane_slices(plan: Plan) -> dict[str, slice]:
    """Where among the planes lies what is delivered, by name."""
    classes = len(plan.legend.classes)
    places = {"classes": slice(0, 1), "probabilities": slice(1, 1 + classes), "uncertainty": slice(-1, None)}
    return {name: places[name] for name in ("classes", *plan.options.products.names)}


def _writers(plan: Plan, folder: Path) -> Iterator[tuple[slice, AbstractContextManager[RasterWriter]]]:
    """Which planes go to which file."""
    legend, tags = plan.legend, _tags(plan)
    categories = {0: "background", **dict(zip(legend.values, legend.names, strict=True))}
    measure = (f"uncertainty ({plan.options.products.uncertainty})",)
    bands = {
        "classes": Bands(nodata=UNLABELLED, colours=legend.colours, categories=categories),
        "probabilities": Bands(len(legend.names), UNLABELLED, legend.names, scale=SCALE),
        "uncertainty": Bands(1, UNLABELLED, measure, scale=SCALE),
    }
    shares_tags = {tag: text for tag, text in tags.items() if tag != LEGEND_TAG}
    files = {"classes": plan.output, **plan.options.products.files(plan.output)}
    for name, planes in plane_slices(plan).items():
        kept = tags if name == "classes" else shares_tags
        path = folder / files[name].name
        yield planes, new_raster(path, plan.target, bands[name], tags=kept, cog=plan.options.cog)


def name_counts(counts: np.ndarray, legend: Legend) -> dict[str, int]:
    """Pixels by value, (256,), as pixels by class name."""
    values = {"background": 0, **dict(zip(legend.names, legend.values, strict=True)), "no data": UNLABELLED}
    return {name: int(counts[value]) for name, value in values.items()}


def _tags(plan: Plan) -> dict[str, str]:
    """Where the mask comes from. No time: the same run ends with the same bytes."""
    model = plan.identity["model"]
    return {
        "TIFFTAG_SOFTWARE": f"gimseg {__version__}",
        MODEL_TAG: model["name"],
        FINGERPRINT_TAG: model["fingerprint"],
        "gimseg_raster": Path(plan.raster.path).name,
        "gimseg_resolution": " ".join(f"{size:.9g}" for size in plan.resolution),
        "gimseg_window": " ".join(map(str, plan.lattice.window)),
        "gimseg_halo": str(plan.lattice.halo),
        "gimseg_backend": plan.engine.backend,
        RUN_TAG: plan.run_id,
        **({LEVELS_TAG: _levels(plan)} if "levels" in plan.identity else {}),
        **({REFINE_TAG: str(plan.options.refinement)} if plan.options.refinement.steps else {}),
        LEGEND_TAG: json.dumps(plan.legend.to_dict()),
        **({} if plan.renewal is None else {OLDER_TAG: plan.renewal.older.origin}),
        **_date(plan),
    }


def _levels(plan: Plan) -> str:
    """Mean and deviation of each band."""
    return ", ".join(f"{mean:.9g} {std:.9g}" for mean, std in zip(*plan.identity["levels"], strict=True))


def _date(plan: Plan) -> dict[str, str]:
    """The day of the image, of a mosaic the latest, if anything tells it."""
    found = [image_date(path, allow_vrt=plan.options.allow_vrt) for path in raster_files(plan.raster)]
    dates = [date for date in found if date is not None]
    return {DATE_TAG: max(dates).isoformat()} if dates else {}
