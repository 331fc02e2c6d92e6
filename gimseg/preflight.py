"""What can be known before the first window is predicted, and refused."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from odc.geo.geobox import GeoBox

from gimseg import __version__
from gimseg.errors import OutputError, PredictionError
from gimseg.imagery import Rasters, choose_grid, list_bands, open_imagery, raster_identity, raster_paths
from gimseg.legend import Legend
from gimseg.levelling import Levels, levelled, measure
from gimseg.models import Model
from gimseg.outputs import check_outputs
from gimseg.parts import content_identity
from gimseg.products import Products
from gimseg.progress import format_duration
from gimseg.raster_files import BLOCK_CACHE_BYTES
from gimseg.raster_views import CACHE_BYTES
from gimseg.rasters import Raster, RasterView
from gimseg.recipes import Recipe
from gimseg.refined_planes import pixel_sides
from gimseg.refinement import Refinement
from gimseg.renewal import Older, Renewal
from gimseg.tiling import Blocks, Lattice, Roi, roi_shape
from gimseg.vector_formats import split_name
from gimseg.vectors import Shapes, check_overlap, open_layer
from gimseg.window_choice import choose_lattice

BLOCK_BYTES = 64 * 2**20
"""Of raster values and validity in a block, about."""
BLEND_BYTES = 256 * 2**20
"""Of sums in a block that is blended, about."""
# Parts and mask are compressed, the mask with overviews: far less than a byte a pixel.
_DISK_SHARE = 1 / 8
_BLOCKS_IN_MEMORY = 5


@dataclass(frozen=True)
class Options:
    """How a raster is to be predicted.

    Args:
        aoi: vector layer; pixels outside its polygons become 255.
        older: a mask of this raster that is there already: what the windows that the AoI
            asks for do not hold is taken from it, see :mod:`gimseg.renewal`.
        bands: of the raster, from 1, in the model's order; None: those of the model.
        nodata: a value that marks invalid pixels, or ``"auto"``, see :func:`gimseg.rasters.open_raster`.
        crs: of a raster that has none.
        vector_crs: of an AoI layer that has none, or a wrong one.
        resolution: metres per pixel; None: the model's.
        match_input: bring the result to the input's own grid, pixel for pixel.
        allow_vrt: read VRTs and ``/vsi`` paths; they can name any file, so for trusted ones only.
        cog: lay the outputs out as Cloud Optimized GeoTIFFs.
        block_size: side of a block, px: memory grows with it, the result does not change;
            None: chosen from what a block takes in memory.
        window: largest side of a window, px; None: see :func:`gimseg.window_choice.choose_lattice`.
        blend: average windows where they overlap; None: where the model needs it.
        on_error: what is to happen where the raster cannot be read: ``"fail"`` when all
            else is done, or ``"nodata"``: 255 there, and a list beside the mask.
        products: what is kept of each pixel.
        refine: how classes are refined, as ``"tv(0.1), open(1 m)"``, see :mod:`gimseg.refinement`; None: not at all.
        overwrite: an existing output may be replaced.
        restart: throw away the finished blocks of an earlier run.
    """

    aoi: str | os.PathLike[str] | None = None
    older: str | os.PathLike[str] | None = None
    bands: Sequence[int] | None = None
    nodata: float | Literal["auto"] | None = None
    crs: Any = None
    vector_crs: str | None = None
    resolution: float | None = None
    match_input: bool = False
    allow_vrt: bool = False
    cog: bool = False
    block_size: int | None = None
    window: int | None = None
    blend: bool | None = None
    on_error: Literal["fail", "nodata"] = "fail"
    products: Products = field(default_factory=Products)
    refine: Refinement | str | None = None
    overwrite: bool = False
    restart: bool = False

    @property
    def aoi_file(self) -> str | None:
        """The file of the AoI layer, without the name of the layer in it."""
        return None if self.aoi is None else split_name(os.fspath(self.aoi))[0]

    @property
    def refinement(self) -> Refinement:
        """How classes are refined; a chain without steps where they are not.

        Raises:
            RefinementError: the text is not understood.
        """
        return Refinement.of(self.refine)


@dataclass(frozen=True)
class Engine:
    """What computes: all that the bytes of a mask depend on besides raster, model and options.

    Args:
        device: that predicts.
        backend: its name; "": still to be chosen.
        batch: windows at once.
        window: largest side of a window, px; None: chosen from model and device.
        note: why this backend, for people.
    """

    device: torch.device
    backend: str = ""
    batch: int = 1
    window: int | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values that pin a run."""
        return {"device": self.device.type, "backend": self.backend, "batch": self.batch, "window": self.window}


@dataclass(frozen=True)
class Plan:
    """A prediction that can start.

    Args:
        raster: the image.
        view: the image on the grid that is predicted.
        target: grid of the mask: that of the view, or the input's own.
        output: the mask.
        engine: that predicts.
        lattice: of windows.
        blocks: row by row.
        recipe: of the model.
        aoi: polygons outside of which nothing is predicted.
        renewal: which windows are predicted again, where the rest is taken from an older mask.
        identity: what pins the run, plain values.
        options: as given.
        notes: what a person should know.
    """

    raster: Raster
    view: RasterView
    target: GeoBox
    output: Path
    engine: Engine
    lattice: Lattice
    blocks: Blocks
    recipe: Recipe
    aoi: Shapes | None
    renewal: Renewal | None
    identity: Mapping[str, Any]
    options: Options
    notes: tuple[str, ...]

    @property
    def legend(self) -> Legend:
        """Of the mask."""
        return self.recipe.legend

    @property
    def geobox(self) -> GeoBox:
        """Grid that is predicted."""
        return self.view.geobox

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the mask, px."""
        return int(self.target.shape[0]), int(self.target.shape[1])

    @property
    def matches(self) -> bool:
        """Whether the result is brought to another grid than that which is predicted."""
        return self.target != self.geobox

    @property
    def products(self) -> Products:
        """What the parts hold: what is delivered, and what that is made of."""
        needed = self.matches or self.options.refinement.of_probabilities
        return replace(self.options.products, probabilities=True) if needed else self.options.products

    @property
    def asked(self) -> Callable[[Roi], np.ndarray] | None:
        """Which pixels of a region are to be predicted, as bool (rows, cols), or None where all are."""
        if self.renewal is not None:
            return self.renewal.wanted
        return None if self.aoi is None else self._inside

    def _inside(self, roi: Roi) -> np.ndarray:
        assert self.aoi is not None
        return self.aoi.burn_mask(self.geobox[roi])

    @property
    def resolution(self) -> tuple[float, float]:
        """Size of a pixel that is predicted along (y, x), in the CRS's unit."""
        return abs(self.geobox.affine.e), abs(self.geobox.affine.a)

    @property
    def run_id(self) -> str:
        """Changes with anything that the bytes of the mask depend on: 16 hexadecimal digits."""
        # The block size pins the parts, not the mask.
        pinned = {name: value for name, value in self.identity.items() if name != "block"}
        return hashlib.sha256(json.dumps(pinned, sort_keys=True, default=str).encode()).hexdigest()[:16]

    @property
    def planes(self) -> int:
        """Bytes that are kept of each pixel."""
        return len(self.products.planes(self.legend))

    @property
    def windows(self) -> int:
        """Windows that are to be computed at most."""
        return math.prod(self.lattice.counts) if self.renewal is None else int(self.renewal.cells.sum())

    @property
    def memory_bytes(self) -> int:
        """What blocks that are read ahead and the caches hold at most, about; the network comes on top."""
        rows, cols = roi_shape(self.blocks[0].read)
        return int(rows * cols * _pixel_bytes(self.view) * _BLOCKS_IN_MEMORY) + BLOCK_CACHE_BYTES + CACHE_BYTES

    @property
    def disk_bytes(self) -> int:
        """What parts and mask take, about."""
        delivered = len(self.options.products.planes(self.legend)) * math.prod(self.shape)
        return int((self.planes * math.prod(self.lattice.shape) + delivered) / 2 * _DISK_SHARE) + 2**20

    def computed_by(self, backend: str, note: str = "") -> Plan:
        """The same plan, computed by the backend of this name."""
        engine = replace(self.engine, backend=backend, note=note)
        return replace(self, engine=engine, identity={**self.identity, "engine": engine.to_dict()})

    def text(self, seconds: float | None = None) -> str:
        """Lines for people.

        Args:
            seconds: that it will take, about.
        """
        lattice, raster = self.lattice, self.raster
        rows, cols = self.shape
        own, size = (" x ".join(f"{part:g}" for part in parts[::-1]) for parts in (raster.resolution, self.resolution))
        resampled = "" if own == size else f", read at {size} {raster.unit}"
        kept = f"of which neighbours share {2 * lattice.halo} px" if lattice.blend else f"halo {lattice.halo} px"
        if math.prod(lattice.counts) == 1:
            kept = "the whole raster"
        why = f" ({self.engine.note})" if self.engine.note else ""
        lines = [
            f"{raster.path}: {raster.shape[1]} x {raster.shape[0]} px of {own} {raster.unit}, "
            f"bands {list_bands(raster.bands)}, {raster.dtype}{resampled}",
            f"{self.output}: {cols} x {rows} px of {_pixel_size(self.target)} {raster.unit}, "
            f"{', '.join(self.legend.names)}" + (", brought back to the input's own pixels" if self.matches else ""),
            *self._refined(),
            f"{self.windows:,} windows of {lattice.window[1]} x {lattice.window[0]} px, {kept}: "
            f"{lattice.cost:.2f} times the pixels; in {len(self.blocks):,} blocks",
            f"{self.engine.device.type}, {self.engine.backend}{why}; about {_megabytes(self.memory_bytes)} of memory "
            f"besides the network's, {_megabytes(self.disk_bytes)} of disk"
            + (f", {format_duration(seconds)}" if seconds is not None else ""),
        ]
        return "\n".join([*lines, *self.notes])

    def _refined(self) -> Iterator[str]:
        chain = self.options.refinement
        if chain.steps:
            yield f"refined by {chain}: {chain.margin(pixel_sides(chain, self.target))} px around each region are read"


def plan_prediction(
    raster: Rasters,
    output: str | os.PathLike[str],
    model: Model,
    fingerprint: str,
    engine: Engine,
    options: Options,
) -> Plan:
    """Check all that can be checked without predicting.

    Args:
        raster: the image; several: a mosaic of them.
        output: the mask.
        model: that predicts.
        fingerprint: of the model.
        engine: that predicts.
        options: see there.

    Raises:
        GimsegError: what stands in the way.
    """
    recipe = model.recipe
    output = Path(output)
    if output.suffix.lower() not in (".tif", ".tiff"):
        raise OutputError(f"{output}: a mask is a GeoTIFF: give a name that ends in .tif")
    paths = raster_paths(raster)
    inputs = [*paths, *(path for path in (options.aoi_file, options.older) if path is not None)]
    check_outputs([output, *options.products.files(output).values()], inputs, overwrite=options.overwrite)
    opened = open_imagery(
        paths,
        recipe,
        bands=options.bands,
        crs=options.crs,
        nodata=options.nodata,
        allow_vrt=options.allow_vrt,
    )
    identity = _identity(opened, model, fingerprint, options)
    plan = plan_raster(opened, model, engine, options, output=output, identity=identity)
    free = shutil.disk_usage(output.absolute().parent).free
    if free < plan.disk_bytes:
        raise OutputError(
            f"{output} needs about {_megabytes(plan.disk_bytes)} of disk, {_megabytes(free)} are free: make room or "
            "write to another disk"
        )
    return plan


def plan_raster(
    raster: Raster,
    model: Model,
    engine: Engine,
    options: Options,
    *,
    output: Path = Path(),
    identity: Mapping[str, Any] | None = None,
) -> Plan:
    """The plan of a raster that is open.

    Raises:
        GridError: resolution or grid cannot be had.
        PredictionError: raster, window or AoI do not suit the model.
    """
    recipe = model.recipe
    options.refinement.check_classes(len(recipe.legend.classes))
    if raster.dtype != recipe.dtype:
        raise PredictionError(
            f"{raster.path} holds {raster.dtype}, the model learned from {recipe.dtype}: their values mean different "
            f"things. Convert the image to {recipe.dtype} as the training images were, or train on images like it"
        )
    geobox, notes = choose_grid(raster, recipe, options.resolution)
    _check_older(options)
    engine = replace(engine, window=options.window or engine.window)
    view = raster.on(geobox)
    if recipe.own_levels:
        # Of the whole raster, whatever the area of interest: parts that are predicted again fit the others.
        found = measure(view, lenient=options.on_error == "nodata").levels
        view = levelled(raster, found).on(geobox)
        identity = {**(identity or {}), "levels": [list(numbers) for numbers in found]}
        notes = [*notes, f"{raster.path}: normalised by its own statistics, {_told(found)}"]
    lattice, blocks = _tile(view, model, engine, options)
    aoi = _open_aoi(options, geobox)
    renewal = None
    if options.older is not None and aoi is not None:
        older = Older.open(options.older, geobox, recipe.legend, options.products)
        renewal = Renewal(lattice, geobox, aoi, older)
        identity = {**(identity or {}), **renewal.identity()}
    target = raster.own_grid() if options.match_input else geobox
    pixel_sides(options.refinement, target)
    return Plan(
        raster=raster,
        view=view,
        target=target,
        output=output,
        engine=engine,
        lattice=lattice,
        blocks=blocks,
        recipe=recipe,
        aoi=aoi,
        renewal=renewal,
        identity={**(identity or {}), **_place(engine, lattice, blocks)},
        options=options,
        notes=(*raster.notes, *notes),
    )


def _told(levels: Levels) -> str:
    return "; ".join(f"mean {mean:.4g}, deviation {std:.4g}" for mean, std in zip(*levels, strict=True))


def _tile(view: RasterView, model: Model, engine: Engine, options: Options) -> tuple[Lattice, Blocks]:
    lattice = choose_lattice(
        view.shape, model, engine.device, batch=engine.batch, window=engine.window, blend=options.blend
    )
    return lattice, choose_blocks(view, lattice, model.recipe.legend.n_channels, options.block_size)


def choose_blocks(view: RasterView, lattice: Lattice, channels: int, side: int | None = None) -> Blocks:
    """The blocks of a raster: of a given side, or of :data:`BLOCK_BYTES`.

    A file in strips is decoded in whole rows: its blocks are one row of windows high
    and as wide as memory allows, so that rows are decoded few times.

    Args:
        view: the raster on its grid.
        lattice: of windows.
        channels: of the network's output.
        side: of a block, px.
    """
    if side is not None:
        return Blocks.of_side(lattice, side)
    if lattice.blend:
        # At a block's border windows are computed for both its sides: large blocks waste less.
        return Blocks.of_side(lattice, math.isqrt(BLEND_BYTES // (4 * (channels + 1))))
    pixels = BLOCK_BYTES / _pixel_bytes(view)
    if view.file.in_strips:
        return Blocks.of_side(lattice, lattice.cell[0], max(int(pixels / lattice.window[0]), 1))
    return Blocks.of_side(lattice, int(math.sqrt(pixels)))


def _pixel_bytes(view: RasterView) -> float:
    return len(view.file.bands) * np.dtype(view.dtype).itemsize + 1


def shrink(plan: Plan, model: Model) -> Plan | None:
    """The same prediction with half the batch, or half the window, for a device that ran out of memory.

    Returns:
        a plan that throws finished blocks away, since theirs are other windows; None
        where no smaller window holds what the network looks at.
    """
    engine, recipe = plan.engine, model.recipe
    if engine.batch > 1:
        engine = replace(engine, batch=engine.batch // 2, window=engine.window or max(plan.lattice.window))
    else:
        side = max(plan.lattice.window) // 2 // recipe.stride * recipe.stride
        if side < max(4 * recipe.halo, recipe.stride):
            return None
        engine = replace(engine, window=side)
    options = replace(plan.options, window=engine.window, restart=True)
    lattice, blocks = _tile(plan.view, model, engine, options)
    at_once = f"{engine.batch} window{'s' * (engine.batch > 1)} of {max(lattice.window)} px at once"
    return replace(
        plan,
        engine=engine,
        lattice=lattice,
        renewal=None if plan.renewal is None else replace(plan.renewal, lattice=lattice),
        blocks=blocks,
        options=options,
        identity={**plan.identity, **_place(engine, lattice, blocks)},
        notes=(*plan.notes, f"the device ran out of memory: went on with {at_once}"),
    )


def _check_older(options: Options) -> None:
    if options.older is None:
        return
    if options.aoi is None:
        raise PredictionError(f"{options.older} is to be predicted again in part: say where with an area of interest")
    if options.match_input:
        raise PredictionError(
            "a mask on the input's own pixels is interpolated from the prediction beside it: predict it everywhere "
            "(--everywhere)"
        )
    if options.refinement.steps:
        raise PredictionError(
            f"a mask that is refined by {options.refinement} looks at what lies around its windows: predict it "
            "everywhere (--everywhere)"
        )


def _open_aoi(options: Options, geobox: GeoBox) -> Shapes | None:
    path = options.aoi
    if path is None:
        return None
    layer = open_layer(path, crs=options.vector_crs)
    check_overlap(layer, geobox)
    shapes = layer.shapes(geobox)
    if shapes.partial or not len(shapes):
        found = "points or lines" if shapes.partial else "no polygon on the raster"
        raise PredictionError(f"{path} holds {found}: an area of interest is made of polygons that meet the raster")
    return shapes


def _identity(raster: Raster, model: Model, fingerprint: str, options: Options) -> dict[str, Any]:
    """All that the bytes of the mask depend on, but for the windows."""
    return {
        "gimseg": __version__,
        "raster": raster_identity(raster),
        "model": {"name": model.name, "fingerprint": fingerprint},
        "bands": list(raster.bands),
        "nodata": options.nodata,
        "crs": None if options.crs is None else str(options.crs),
        "vector_crs": options.vector_crs,
        "resolution": options.resolution,
        "match_input": options.match_input,
        "cog": options.cog,
        "products": options.products.identity(model.recipe),
        "refine": str(options.refinement),
        "aoi": None if options.aoi is None else _layer_identity(os.fspath(options.aoi)),
    }


def _layer_identity(path: str) -> dict[str, Any]:
    file, layer = split_name(path)
    return content_identity(file) if layer is None else {**content_identity(file), "layer": layer}


def _place(engine: Engine, lattice: Lattice, blocks: Blocks) -> dict[str, Any]:
    """Which windows and blocks the parts of a run have, and what computes them."""
    return {
        "engine": engine.to_dict(),
        "windows": {"shape": list(lattice.window), "halo": lattice.halo, "blend": lattice.blend},
        "block": list(blocks.step),
    }


def _pixel_size(geobox: GeoBox) -> str:
    a, b, _, d, e, _ = tuple(geobox.affine)[:6]
    return f"{math.hypot(a, d):g} x {math.hypot(b, e):g}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
